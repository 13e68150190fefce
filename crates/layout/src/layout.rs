//! One row of one pass as plain integers, checked once when it is built.

mod draw;

use std::ops::Range;

use crate::{Base, TokenId, Visibility};

/// What a position feeds to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A row of the model's token embedding table.
    Token(TokenId),
    /// The j-th added special token `[Ej]`.
    Special(u32),
    /// The last-layer hidden state at a position of an earlier row of the plan.
    Soft {
        /// The row's place in the plan.
        row: u32,
        /// The position within it.
        position: u32,
        /// Whether gradients end here.
        detached: bool,
    },
}

/// What a position is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Part of a row without special tokens.
    Plain,
    /// The text before the special tokens.
    Prefix,
    /// A special token.
    Special,
    /// The text after the special tokens.
    Suffix,
}

/// Which side of the contrastive loss a pooled vector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The anchor; also the view of an embedding outside training.
    Query,
    /// The vector the query must be close to.
    Positive,
    /// A hard negative of the query.
    Negative,
}

/// One vector read from the row: a weighted sum of last-layer hidden states.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// The side of the contrastive loss.
    pub view: View,
    /// Positions and weights; the weights sum to 1.
    pub weights: Vec<(u32, f32)>,
}

impl Pooled {
    /// The mean over `positions`.
    #[must_use]
    pub fn mean(view: View, positions: Range<u32>) -> Self {
        let weight = 1.0 / positions.len() as f32;
        Self { view, weights: positions.map(|position| (position, weight)).collect() }
    }

    /// The last of `positions`; none if there is none, which [`Layout::new`] refuses.
    #[must_use]
    pub fn last(view: View, positions: Range<u32>) -> Self {
        Self { view, weights: positions.last().map(|position| (position, 1.0)).into_iter().collect() }
    }
}

/// The parts of a row before they are checked; every vector has one entry per position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayoutParts {
    /// What each position feeds to the decoder.
    pub inputs: Vec<Input>,
    /// What each position is for.
    pub roles: Vec<Role>,
    /// RoPE positions.
    pub positions: Vec<u32>,
    /// What each position must predict; `None` carries no loss. Already shifted.
    pub labels: Vec<Option<TokenId>>,
    /// Whether the adapter acts on each position.
    pub adapted: Vec<bool>,
    /// Who may attend to whom.
    pub visibility: Visibility,
    /// The vectors read from the row.
    pub pooled: Vec<Pooled>,
}

/// One row of one pass: non-empty, equal lengths, every range inside the row, every query sees a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    parts: LayoutParts,
}

/// What is wrong with the parts of a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// No position at all.
    #[error("a row must have at least one position, found none")]
    Empty,
    /// More positions than fit a position index.
    #[error("a row must have fewer than 2^32 positions, found {num_tokens}")]
    TooLong {
        /// The number of positions found.
        num_tokens: usize,
    },
    /// Vectors of different lengths.
    #[error("expected {expected} {field}, one per input, found {found}")]
    Length {
        /// The vector that differs.
        field: &'static str,
        /// The number of inputs.
        expected: usize,
        /// Its own length.
        found: usize,
    },
    /// An anchor is empty, out of order, outside the row, or beside a base that has none; or a window of nothing.
    #[error(
        "anchors {anchors:?} of base {base:?}: expected sorted, disjoint, non-empty ranges inside 0..{num_tokens} \
         and a window of at least 1, or another base without anchors"
    )]
    Anchors {
        /// The base found.
        base: Base,
        /// The anchors found.
        anchors: Vec<Range<u32>>,
        /// The length of the row.
        num_tokens: u32,
    },
    /// A soft input that reads what is not there yet.
    #[error("row {row}: a soft input reads position {position} of row {from}, expected a position of an earlier row")]
    Soft {
        /// The row with the input.
        row: usize,
        /// The row that it reads.
        from: u32,
        /// The position that it reads.
        position: u32,
    },
    /// A cut is empty or reaches outside the row.
    #[error("cut {index}: {field} {start}..{end} must be a non-empty range inside 0..{num_tokens}")]
    Cut {
        /// The index of the cut.
        index: usize,
        /// `queries` or `keys`.
        field: &'static str,
        /// Start of the range found.
        start: u32,
        /// End of the range found.
        end: u32,
        /// The length of the row.
        num_tokens: u32,
    },
    /// A pooled vector reads a position outside the row.
    #[error("pooled vector {index} reads position {position}, the row has {num_tokens}")]
    PooledPosition {
        /// The index of the pooled vector.
        index: usize,
        /// The position found.
        position: u32,
        /// The length of the row.
        num_tokens: u32,
    },
    /// Pooling weights that are not finite or do not sum to 1.
    #[error("pooled vector {index}: weights must be finite and sum to 1, they sum to {sum}")]
    PooledWeights {
        /// The index of the pooled vector.
        index: usize,
        /// The sum found.
        sum: f64,
    },
    /// A query without any key, whose softmax would be undefined.
    #[error("position {query} may attend to nothing, not even itself")]
    Blind {
        /// The query.
        query: u32,
    },
}

impl Layout {
    /// Checks the parts of a row.
    ///
    /// # Errors
    /// The first [`LayoutError`] that the parts meet.
    pub fn new(parts: LayoutParts) -> Result<Self, LayoutError> {
        let expected = parts.inputs.len();
        if expected == 0 {
            return Err(LayoutError::Empty);
        }
        let num_tokens = u32::try_from(expected).map_err(|_| LayoutError::TooLong { num_tokens: expected })?;
        for (field, found) in [
            ("roles", parts.roles.len()),
            ("positions", parts.positions.len()),
            ("labels", parts.labels.len()),
            ("adapted", parts.adapted.len()),
        ] {
            if found != expected {
                return Err(LayoutError::Length { field, expected, found });
            }
        }
        check_anchors(&parts.visibility, num_tokens)?;
        check_cuts(&parts.visibility, num_tokens)?;
        check_pooled(&parts.pooled, num_tokens)?;
        Ok(Self { parts })
    }

    /// The number of positions.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.parts.inputs.len()
    }

    /// What each position feeds to the decoder.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.parts.inputs
    }

    /// What each position is for.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.parts.roles
    }

    /// RoPE positions.
    #[must_use]
    pub fn positions(&self) -> &[u32] {
        &self.parts.positions
    }

    /// What each position must predict; `None` carries no loss.
    #[must_use]
    pub fn labels(&self) -> &[Option<TokenId>] {
        &self.parts.labels
    }

    /// Whether the adapter acts on each position.
    #[must_use]
    pub fn adapted(&self) -> &[bool] {
        &self.parts.adapted
    }

    /// Who may attend to whom.
    #[must_use]
    pub fn visibility(&self) -> &Visibility {
        &self.parts.visibility
    }

    /// The vectors read from the row.
    #[must_use]
    pub fn pooled(&self) -> &[Pooled] {
        &self.parts.pooled
    }

    /// The length of the longest leading segment of unadapted ordinary tokens without labels that see nothing outside
    /// it.
    ///
    /// Such a segment needs no gradient when only the adapter and the special rows are trained: it runs
    /// through the inference path, and the rest of the row runs against its keys and values. 0 if none.
    #[must_use]
    pub fn frozen_len(&self) -> usize {
        let num_tokens = self.num_tokens() as u32;
        let (mut frozen, mut reach) = (0, 0);
        let positions = self.inputs().iter().zip(self.adapted()).zip(self.labels());
        for (query, ((input, adapted), label)) in (0_u32..).zip(positions) {
            if *adapted || !matches!(input, Input::Token(_)) || label.is_some() {
                break;
            }
            let keys = self.visibility().allowed_keys(query, num_tokens);
            reach = keys.last().map_or(reach, |range| reach.max(range.end));
            if reach <= query + 1 {
                frozen = query as usize + 1;
            }
        }
        frozen
    }

    /// The end of the last pooled position: nothing after it can matter to a pooled vector of a causal row.
    /// 0 if nothing is pooled.
    #[must_use]
    pub fn last_pooled_end(&self) -> usize {
        let positions = self.pooled().iter().flat_map(|pooled| &pooled.weights);
        positions.map(|&(position, _)| position as usize + 1).max().unwrap_or(0)
    }

    /// Takes the first `left_out` tokens out of every vector that is a mean over them and the `kept` tokens after them;
    /// the other weights grow until they sum to 1 again.
    pub(crate) fn leave_out_of_means(&mut self, left_out: usize, kept: usize) -> Result<(), LayoutError> {
        let Self { parts: LayoutParts { inputs, pooled, .. } } = self;
        for Pooled { weights, .. } in &mut *pooled {
            let of_tokens = weights.iter().all(|(at, _)| matches!(inputs[*at as usize], Input::Token(_)));
            if of_tokens && weights.len() == left_out + kept {
                weights.drain(..left_out);
                let sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
                weights.iter_mut().for_each(|(_, weight)| *weight = (f64::from(*weight) / sum) as f32);
            }
        }
        check_pooled(pooled, inputs.len() as u32)
    }

    /// The first `num_tokens` positions; a pooled vector that reads beyond them is dropped.
    ///
    /// # Panics
    /// If `num_tokens` is 0 or more than the row has, or if a query of a [`Base::Full`](crate::Base::Full)
    /// row is left without a key.
    #[must_use]
    pub fn truncated(&self, num_tokens: usize) -> Self {
        let parts = &self.parts;
        assert!(
            (1..=self.num_tokens()).contains(&num_tokens),
            "truncated to {num_tokens} of {} positions",
            self.num_tokens()
        );
        let inside = |pooled: &&Pooled| pooled.weights.iter().all(|&(position, _)| (position as usize) < num_tokens);
        Self::new(LayoutParts {
            inputs: parts.inputs[..num_tokens].to_vec(),
            roles: parts.roles[..num_tokens].to_vec(),
            positions: parts.positions[..num_tokens].to_vec(),
            labels: parts.labels[..num_tokens].to_vec(),
            adapted: parts.adapted[..num_tokens].to_vec(),
            visibility: parts.visibility.truncated(num_tokens as u32),
            pooled: parts.pooled.iter().filter(inside).cloned().collect(),
        })
        .expect("the start of a valid causal row is a valid row")
    }
}

fn check_anchors(visibility: &Visibility, num_tokens: u32) -> Result<(), LayoutError> {
    let Visibility { base, anchors, .. } = visibility;
    let right = match base {
        Base::Causal | Base::Full => anchors.is_empty(),
        Base::Anchored { window } => {
            *window > 0
                && anchors.iter().all(|anchor| !anchor.is_empty() && anchor.end <= num_tokens)
                && anchors.windows(2).all(|pair| pair[0].end <= pair[1].start)
        }
    };
    if right { Ok(()) } else { Err(LayoutError::Anchors { base: *base, anchors: anchors.clone(), num_tokens }) }
}

fn check_cuts(visibility: &Visibility, num_tokens: u32) -> Result<(), LayoutError> {
    for (index, cut) in visibility.cuts.iter().enumerate() {
        for (field, range) in [("queries", &cut.queries), ("keys", &cut.keys)] {
            if range.is_empty() || range.end > num_tokens {
                let (start, end) = (range.start, range.end);
                return Err(LayoutError::Cut { index, field, start, end, num_tokens });
            }
        }
    }
    match (0..num_tokens).find(|&query| visibility.allowed_keys(query, num_tokens).is_empty()) {
        Some(query) => Err(LayoutError::Blind { query }),
        None => Ok(()),
    }
}

fn check_pooled(pooled: &[Pooled], num_tokens: u32) -> Result<(), LayoutError> {
    /// Rounding of the f32 weights, far below any real mistake.
    const TOLERANCE: f64 = 1e-4;
    for (index, pooled) in pooled.iter().enumerate() {
        if let Some(&(position, _)) = pooled.weights.iter().find(|entry| entry.0 >= num_tokens) {
            return Err(LayoutError::PooledPosition { index, position, num_tokens });
        }
        // A weight that is not finite makes the sum NaN or infinite.
        let sum: f64 = (pooled.weights.iter()).map(|entry| f64::from(entry.1)).sum();
        if sum.is_nan() || (sum - 1.0).abs() > TOLERANCE {
            return Err(LayoutError::PooledWeights { index, sum });
        }
    }
    Ok(())
}
