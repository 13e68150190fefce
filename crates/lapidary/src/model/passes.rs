//! Rows of plans that run together: in one forward pass, or in several where rows read hidden states of earlier ones.

use super::adapter::AdapterView;
use super::decoder::{Decoder, ForwardOptions, HiddenDropout};
use super::kv_cache::Kv;
use super::segment::Segment;
use crate::Error;
use kernels::{Tensor, ops};
use layout::{Input, Layout, Plan, Rng};
use std::ops::Range;

/// One row, and which part of it runs.
#[derive(Debug, Clone)]
pub struct PassRow<'a> {
    /// The row.
    pub layout: &'a Layout,
    /// The positions that run; empty: none.
    pub part: Range<usize>,
    /// Place of the row's plan among all rows: soft inputs count from there.
    first_of_plan: usize,
    pass: usize,
    /// Place of the part's first position in the hidden states.
    at: usize,
}

/// Rows of one or more plans. Row i of a batch is also row i of its KV cache.
#[derive(Debug, Clone, Default)]
pub struct Passes<'a> {
    rows: Vec<PassRow<'a>>,
    num_passes: usize,
}

impl<'a> Passes<'a> {
    /// Rows of `plans`, of each the part that `part` names. A soft input must read a position that runs.
    ///
    /// # Errors
    /// When a soft input reads no position of an earlier row.
    pub fn new(
        plans: impl IntoIterator<Item = &'a Plan>,
        mut part: impl FnMut(&'a Layout) -> Range<usize>,
    ) -> Result<Self, Error> {
        let mut passes = Self::default();
        for plan in plans {
            let first_of_plan = passes.rows.len();
            for (layout, pass) in plan.rows.iter().zip(plan.passes().map_err(layout::MethodError::from)?) {
                passes.num_passes = passes.num_passes.max(pass + 1);
                passes.rows.push(PassRow { layout, part: part(layout), first_of_plan, pass, at: 0 });
            }
        }
        passes.place();
        Ok(passes)
    }

    /// The same rows, of each no more than the vectors need: up to its last pooled position, and to the last that a row
    /// with vectors reads.
    #[must_use]
    pub fn up_to_pooled(&self) -> Self {
        let mut passes = self.clone();
        let mut ends: Vec<usize> = self.rows.iter().map(|row| row.layout.last_pooled_end()).collect();
        // A row reads earlier ones alone.
        for (number, row) in self.rows.iter().enumerate().rev() {
            let end = ends[number].clamp(row.part.start, row.part.end);
            passes.rows[number].part.end = end;
            for input in &row.layout.inputs()[row.part.start..end] {
                if let Input::Soft { row: from, position, .. } = *input {
                    let from = &mut ends[row.first_of_plan + from as usize];
                    *from = (*from).max(position as usize + 1);
                }
            }
        }
        passes.place();
        passes
    }

    /// Parts lie in the order of their passes.
    fn place(&mut self) {
        let mut at = 0;
        for pass in 0..self.num_passes {
            for row in self.rows.iter_mut().filter(|row| row.pass == pass) {
                row.at = at;
                at += row.part.len();
            }
        }
    }

    /// The rows, in the order of the plans.
    pub fn rows(&self) -> &[PassRow<'a>] {
        &self.rows
    }

    /// The positions that run.
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.part.len()).sum()
    }

    /// Hidden states after the last norm of all parts, in the order of [`PassRow::place`]: `[T, D]`.
    ///
    /// A soft input takes the place of a token embedding, and is scaled as one by families that scale these
    /// (`inputs_embeds` of transformers).
    ///
    /// # Errors
    /// As [`Decoder::forward`], and when a soft input reads a position that does not run.
    pub fn forward(
        &self,
        decoder: &Decoder,
        mut kv: Kv<'_>,
        adapter: Option<&AdapterView>,
        mut dropout: Option<(f32, &mut Rng)>,
    ) -> Result<Tensor, Error> {
        let mut states: Option<Tensor> = None;
        for pass in 0..self.num_passes {
            let part = |row: &PassRow<'a>| if row.pass == pass { row.part.clone() } else { 0..0 };
            let segment = Segment::of_rows(self.rows.iter().map(|row| (row.layout, part(row))));
            if segment.num_tokens() == 0 {
                continue;
            }
            let soft = self.soft(pass, states.as_ref())?;
            let dropout = dropout.as_mut().map(|(ratio, rng)| HiddenDropout { ratio: *ratio, rng });
            // With a graph and without, vectors are to be the same.
            let is_rounded_in_graphs = decoder.config().head_dim <= ops::WIDEST_ROUNDED;
            let bf16_attention = !decoder.device().is_cpu() && is_rounded_in_graphs;
            let soft = soft.as_ref();
            let options = ForwardOptions { adapter, soft, dropout, bf16_attention, observe: None };
            let found = decoder.forward(&segment, kv.reborrow(), options)?;
            states = Some(match states {
                Some(before) => Tensor::cat(&[before, found], 0)?,
                None => found,
            });
        }
        states.ok_or_else(|| Error::Internal("a forward pass over no positions".into()))
    }

    /// The states that the soft inputs of a pass take, in their order, `[S, D]`.
    fn soft(&self, pass: usize, states: Option<&Tensor>) -> Result<Option<Tensor>, Error> {
        let mut places = Vec::new();
        let mut any_detached = false;
        let num_states = states.map_or(Ok(0), |states| states.dim(0))?;
        for row in self.rows.iter().filter(|row| row.pass == pass) {
            for input in &row.layout.inputs()[row.part.clone()] {
                let Input::Soft { row: from, position, detached } = *input else { continue };
                let from = &self.rows[row.first_of_plan + from as usize];
                if !from.part.contains(&(position as usize)) {
                    return Err(Error::Internal(format!("a soft input reads position {position}, which does not run")));
                }
                // Detached states lie behind all others.
                let behind = if detached { num_states } else { 0 };
                any_detached |= detached;
                places.push(vec![((from.place(position as usize) as usize + behind) as u32, 1.0)]);
            }
        }
        let Some(states) = states.filter(|_| !places.is_empty()) else { return Ok(None) };
        let source = if any_detached { Tensor::cat(&[states, &states.detach()], 0)? } else { states.clone() };
        Ok(Some(ops::pool(&source, places)?))
    }
}

impl PassRow<'_> {
    /// Where the state of a position of the part lies among the hidden states.
    ///
    /// # Panics
    /// In debug builds, for a position outside the part.
    pub fn place(&self, position: usize) -> u32 {
        debug_assert!(self.part.contains(&position), "position {position} outside {:?}", self.part);
        (self.at + position - self.part.start) as u32
    }

    /// The pooled vectors that lie within the part, as places and weights.
    pub fn pooled(&self) -> impl Iterator<Item = (layout::View, Vec<(u32, f32)>)> + '_ {
        let inside =
            |pooled: &&layout::Pooled| pooled.weights.iter().all(|(at, _)| self.part.contains(&(*at as usize)));
        self.layout.pooled().iter().filter(inside).map(|pooled| {
            (pooled.view, pooled.weights.iter().map(|(at, weight)| (self.place(*at as usize), *weight)).collect())
        })
    }
}
