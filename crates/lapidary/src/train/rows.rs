//! The stream of training rows: read, shuffled, encoded, cut, counted, and resumable at any row.

use super::recipe::{BudgetRecipe, Cut};
use crate::Error;
use crate::data::{self, DataSpec, Record, Records, RowRef, ShuffleBuffer};
use crate::text::Tokenizer;
use layout::{Example, Rng, TokenId};
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// Where the stream stands, and what it has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Passes over the data finished so far.
    pub epoch: u64,
    /// Rows drawn in this pass.
    pub draws: u64,
    /// Rows cut to the longest allowed.
    pub num_cut: u64,
    /// Rows passed over as too short, or as lacking a positive that the method needs.
    pub num_short: u64,
}

/// Endless rows of training text.
pub struct RowStream<'a> {
    spec: DataSpec,
    tokenizer: &'a Tokenizer,
    budget: BudgetRecipe,
    seed: u64,
    position: Position,
    rows: ShuffleBuffer<Records, Record>,
    usable_in_pass: u64,
    pairs_alone: bool,
}

impl<'a> RowStream<'a> {
    /// Opens the data at a position; reading on gives the rows that an uninterrupted stream would give.
    ///
    /// # Errors
    /// When the data cannot be opened or has fewer rows than the position says.
    pub fn open(
        spec: &DataSpec,
        tokenizer: &'a Tokenizer,
        budget: &BudgetRecipe,
        seed: u64,
        position: Position,
    ) -> Result<Self, Error> {
        let rows = Self::pass(spec, budget, seed, position.epoch)?;
        let start = Position { draws: 0, ..position };
        let mut stream = Self {
            spec: spec.clone(),
            tokenizer,
            budget: budget.clone(),
            seed,
            position: start,
            rows,
            usable_in_pass: 0,
            pairs_alone: false,
        };
        for _ in 0..position.draws {
            if stream.rows.next().transpose()?.is_none() {
                return Err(Error::Recipe(format!(
                    "the data have fewer than the {} rows read before the checkpoint",
                    position.draws
                )));
            }
        }
        stream.position = position;
        // A pass that has been under way had usable rows, or it would have ended with an error.
        stream.usable_in_pass = u64::from(position.draws > 0);
        Ok(stream)
    }

    fn pass(
        spec: &DataSpec,
        budget: &BudgetRecipe,
        seed: u64,
        epoch: u64,
    ) -> Result<ShuffleBuffer<Records, Record>, Error> {
        Ok(ShuffleBuffer::new(data::open(spec)?, budget.shuffle_buffer, seed, epoch))
    }

    /// The same stream, in which texts without a positive are passed over, and counted, as too short ones are.
    #[must_use]
    pub fn pairs_alone(self, pairs_alone: bool) -> Self {
        Self { pairs_alone, ..self }
    }

    /// Where the stream stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next usable row and where it came from; the data start over when they end.
    ///
    /// # Errors
    /// When a row cannot be read, or a whole pass has no usable row.
    pub fn next_example(&mut self) -> Result<(Example, RowRef), Error> {
        loop {
            let Some(record) = self.rows.next().transpose()? else {
                if self.usable_in_pass == 0 {
                    return Err(Error::Setting {
                        field: "data".into(),
                        expected: format!("rows of at least {} tokens", self.budget.min_tokens),
                        found: format!("none among {} rows", self.position.draws),
                    });
                }
                self.position = Position { epoch: self.position.epoch + 1, draws: 0, ..self.position };
                self.usable_in_pass = 0;
                self.rows = Self::pass(&self.spec, &self.budget, self.seed, self.position.epoch)?;
                continue;
            };
            self.position.draws += 1;
            let mut text = self.encode(&record.text)?;
            if text.len() < self.budget.min_tokens {
                self.position.num_short += 1;
                continue;
            }
            let positive =
                record.positive.as_deref().map(|text| self.encode(text)).transpose()?.filter(|ids| !ids.is_empty());
            if self.pairs_alone && positive.is_none() {
                self.position.num_short += 1;
                continue;
            }
            if self.budget.cut == Cut::Random {
                // Each draw has its own stream of numbers: a resume needs no generator state.
                let mut rng = Rng::seed_from_u64(self.seed);
                rng.set_stream(self.position.epoch << 40 | self.position.draws);
                text.truncate(rng.random_range(self.budget.min_tokens..=text.len()));
            }
            self.usable_in_pass += 1;
            let negatives = record.negatives.iter().map(|text| self.encode(text)).collect::<Result<Vec<_>, _>>()?;
            let negatives = negatives.into_iter().filter(|ids| !ids.is_empty()).collect();
            return Ok((Example { text, positive, negatives }, record.source));
        }
    }

    fn encode(&mut self, text: &str) -> Result<Vec<TokenId>, Error> {
        // A token has at least one byte, but encoding a huge row whole would cost time for tokens that are cut.
        let mut end = text.len().min(self.budget.max_tokens.saturating_mul(64));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut ids = self.tokenizer.encode(&text[..end])?;
        if ids.len() > self.budget.max_tokens || end < text.len() {
            self.position.num_cut += 1;
            ids.truncate(self.budget.max_tokens);
        }
        Ok(ids)
    }
}

/// The first usable rows of the data in file order, at their full length: a fixed sample for the standardisation.
///
/// # Errors
/// When a row cannot be read.
pub fn first_rows(
    spec: &DataSpec,
    tokenizer: &Tokenizer,
    budget: &BudgetRecipe,
    count: usize,
) -> Result<Vec<Vec<TokenId>>, Error> {
    let unshuffled = BudgetRecipe { shuffle_buffer: 1, cut: Cut::Longest, ..budget.clone() };
    let mut stream = RowStream::open(spec, tokenizer, &unshuffled, 0, Position::default())?;
    let mut rows = Vec::new();
    while rows.len() < count {
        let (example, _) = stream.next_example()?;
        if stream.position.epoch > 0 {
            break;
        }
        rows.push(example.text);
    }
    Ok(rows)
}
