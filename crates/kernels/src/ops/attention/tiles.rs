//! The forward pass of attention with products of bf16 numbers, for consecutive queries that see many keys.
//!
//! Scores, softmax and the sums over values are f32; queries, keys, values and the weights `e^(score - max)` are rounded to
//! bf16 for the products, as PyTorch's attention in bf16 has them. Keys are numbered from the first that the queries see, and
//! those behind a query's last add nothing (their values, finite ones, times zero), so that its result is the same bits
//! with any others.

use super::{AttentionSpec, Keys};
use crate::bf16::{BLOCK, Blocks, Format, Outputs, Packed, Rounded};
use crate::cpu::exp_of;
use crate::vector::{LANES, Vector};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Queries that share one packing of their keys.
pub(super) const QUERIES: usize = 64;
/// Keys in one piece that make it worth while: those of a causal row's query at which a group begins.
pub const MANY_KEYS: usize = 2 * QUERIES + 1;

/// Consecutive queries, each of which sees the keys from `from` on to an end of its own.
pub(super) struct Group {
    pub(super) queries: Range<usize>,
    pub(super) from: usize,
}

/// Memory of a thread.
pub(super) struct Scratch {
    keys: Packed,
    values: Packed,
    /// `[32, keys]`.
    scores: Vec<f32>,
    /// `e^(score - max)`, of the same shape.
    weights: Rounded,
    sums: Outputs,
}

impl Default for Scratch {
    fn default() -> Self {
        let (keys, values, weights) = (Packed::empty(), Packed::empty(), Rounded::zeros(Format::Bf16, 0, 0));
        Self { keys, values, scores: Vec::new(), weights, sums: Outputs::new() }
    }
}

impl AttentionSpec {
    /// Outputs `[queries of the group, N, H]` of queries of the same shape: every number is written.
    pub(super) fn forward_group(
        &self,
        group: &Group,
        keys: &Keys<'_>,
        (q, out): (&[f32], &mut [MaybeUninit<f32>]),
        scratch: &mut Scratch,
    ) {
        let (h, count) = (keys.head_dim, group.queries.len());
        let heads = q.len() / (count * h);
        let per_key = heads / keys.kv_heads;
        let end = |query: usize| self.mask.intervals(group.queries.start + query)[0].1 as usize - group.from;
        let num_keys = (0..count).map(end).max().unwrap_or(0);
        let units = Blocks::new(Format::Bf16).unwrap_or_else(|| unreachable!("there are units where there are groups"));
        for head in 0..keys.kv_heads {
            scratch.keys.fill_columns((h, num_keys), |key| keys.at(group.from + key, head).0);
            scratch.values.fill_rows((num_keys, h), |key| keys.at(group.from + key, head).1);
            // Row r is query r / per_key, and of the heads that share keys the one at r % per_key.
            let at = |row: usize| (row / per_key * heads + head * per_key + row % per_key) * h;
            let num_rows = count * per_key;
            for first in (0..num_rows).step_by(BLOCK) {
                let rows = first..num_rows.min(first + BLOCK);
                let ends: Vec<usize> = rows.clone().map(|row| end(row / per_key)).collect();
                let mut scaled = Rounded::zeros(Format::Bf16, rows.len(), h);
                for (to, row) in rows.clone().enumerate() {
                    let q: Vec<f32> = q[at(row)..][..h].iter().map(|q| self.scale * q).collect();
                    scaled.set_row(to, &q);
                }
                let inverses = scratch.weigh(&units, &scaled, &ends);
                for panel in 0..h.div_ceil(BLOCK) {
                    let sums = (scratch.sums.0.as_flattened_mut(), BLOCK);
                    units.product_of_few(&scratch.weights, (&scratch.values, panel), sums);
                    let columns = panel * BLOCK..h.min((panel + 1) * BLOCK);
                    for ((row, sums), inverse) in rows.clone().zip(&scratch.sums.0).zip(&inverses) {
                        let out = &mut out[at(row)..][columns.clone()];
                        out.iter_mut().zip(sums).for_each(|(out, sum)| {
                            out.write(sum * inverse);
                        });
                    }
                }
            }
        }
    }
}

impl Scratch {
    /// Weights of rows of scaled queries over the keys before their ends; returns one over the sum of each row.
    fn weigh(&mut self, units: &Blocks, scaled: &Rounded, ends: &[usize]) -> Vec<f32> {
        let num_keys = ends.iter().copied().max().unwrap_or(0);
        let width = num_keys.next_multiple_of(BLOCK);
        self.scores.resize(self.scores.len().max(BLOCK * width), 0.0);
        for panel in 0..width / BLOCK {
            let scores = (&mut self.scores[panel * BLOCK..], width);
            units.product_of_few(scaled, (&self.keys, panel), scores);
        }
        self.weights.reshape(ends.len(), width);
        let rows = ends.iter().zip(self.scores.chunks_exact_mut(width)).enumerate();
        rows.map(|(row, (end, scores))| 1.0 / exponentials(scores, *end, row, &mut self.weights)).collect()
    }
}

/// The weights of a row, their sum returned; `scores` is a whole number of lines.
fn exponentials(scores: &mut [f32], end: usize, row: usize, weights: &mut Rounded) -> f32 {
    // What lies beyond the end takes no part.
    scores[end..end.next_multiple_of(BLOCK)].fill(f32::NEG_INFINITY);
    let (lines, _) = scores.as_chunks::<BLOCK>();
    let lines = &lines[..end.div_ceil(BLOCK)];
    let mut most = [Vector::splat(f32::NEG_INFINITY); 2];
    for line in lines {
        for (most, scores) in most.iter_mut().zip(line.as_chunks::<LANES>().0) {
            *most = most.max(Vector::load(scores));
        }
    }
    let mut lanes = [0f32; LANES];
    most[0].max(most[1]).store(&mut lanes);
    let max = Vector::splat(lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut sums = [Vector::splat(0.0); 2];
    for (at, line) in lines.iter().enumerate() {
        let mut of_line = [0f32; BLOCK];
        let halves = line.as_chunks::<LANES>().0.iter().zip(of_line.as_chunks_mut::<LANES>().0);
        for ((scores, weights), sum) in halves.zip(&mut sums) {
            let weight = exp_of(Vector::load(scores).minus(max));
            weight.store(weights);
            *sum = sum.plus(weight);
        }
        of_line[BLOCK.min(end - at * BLOCK)..].fill(0.0);
        weights.set_line(row, at, &of_line);
    }
    weights.clear_lines(row, lines.len());
    sums[0].plus(sums[1]).sum()
}
