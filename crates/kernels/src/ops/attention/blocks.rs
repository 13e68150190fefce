//! The forward pass of attention, a block of queries at a time: each key and value is read once for all of them.
//!
//! Rows of a block are pairs of a query and a head that share keys. Scores are computed with rows side by side in
//! vector lanes, sums over values with the numbers of a head side by side; either way an output is summed over its own
//! keys in their order, and keys that it may not see add nothing (their values, finite ones, times zero), so that a row's
//! result is the same bits in any block.

use super::tiles::MANY_KEYS;
use super::{AttentionSpec, Keys};
use crate::cpu::exp;
use crate::vector::{LANES, Vector, fetch};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Queries of a block at most.
const QUERIES: usize = 16;
/// Rows that are computed together at most, in vectors.
const VECTORS: usize = 3;
/// Keys whose scores are in registers at a time, with [`VECTORS`] of rows each.
const KEYS: usize = 8;
/// Rows whose sums over values are in registers at a time, with [`WIDTH`] vectors each.
const ROWS: usize = 4;
const WIDTH: usize = 4;

/// Keys, and values, that are fetched before they are needed.
const AHEAD: usize = 16;

type Numbers = [f32; LANES];

/// Consecutive queries and the keys that any of them may attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    /// Disjoint; in the order of each query's own.
    keys: Vec<(u32, u32)>,
    /// Keys that the queries may attend to, counted for each query.
    num_seen: usize,
    /// Whether each query sees a run of [`MANY_KEYS`] keys or more, and no others; else none does.
    pub(super) sees_many: bool,
}

fn count(intervals: &[(u32, u32)]) -> usize {
    intervals.iter().map(|(from, to)| (to - from) as usize).sum()
}

/// See [`Block::sees_many`].
fn sees_many(intervals: &[(u32, u32)]) -> bool {
    matches!(intervals, [(from, to)] if (to - from) as usize >= MANY_KEYS)
}

fn is_sorted(intervals: &[(u32, u32)]) -> bool {
    intervals.is_sorted_by(|a, b| a.1 <= b.0)
}

/// The keys of either list; none where that would change the order in which one of them has its keys, and a row is summed.
fn union(a: &[(u32, u32)], b: &[(u32, u32)]) -> Option<Vec<(u32, u32)>> {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let whole = short.len().saturating_sub(1);
    if !is_sorted(a) || !is_sorted(b) {
        // One that sees further than the other, as the next query of the same row does.
        let goes_on = short[..whole] == long[..whole] && short[whole].0 == long[whole].0;
        let ends_first = short.len() == long.len() || short[whole].1 <= long[whole].1;
        let mut all = long.to_vec();
        all[whole].1 = all[whole].1.max(short[whole].1);
        return (goes_on && ends_first).then_some(all);
    }
    let mut all: Vec<_> = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    for (from, to) in all {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    Some(merged)
}

impl Block {
    pub(super) fn new(query: usize, intervals: &[(u32, u32)]) -> Self {
        let (keys, num_seen) = (intervals.to_vec(), count(intervals));
        Self { queries: query..query + 1, keys, num_seen, sees_many: sees_many(intervals) }
    }

    /// Takes the next query in, unless it would see mostly other keys than those of the block, or most scores of the
    /// block would be of hidden keys, or only one of them sees many.
    pub(super) fn try_push(&mut self, intervals: &[(u32, u32)]) -> bool {
        let queries = self.queries.len() + 1;
        if queries > QUERIES || self.sees_many != sees_many(intervals) {
            return false;
        }
        let Some(keys) = union(&self.keys, intervals) else { return false };
        let (before, after, seen) = (count(&self.keys), count(&keys), count(intervals));
        if 2 * (after - before) > seen || after * queries > 2 * (self.num_seen + seen) {
            return false;
        }
        self.queries.end += 1;
        self.keys = keys;
        self.num_seen += seen;
        true
    }
}

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[H]` vectors of rows, each `V` registers wide.
    queries: Vec<Numbers>,
    /// `[keys of the block]` vectors of rows: scores, then probabilities before their division by `sums`.
    scores: Vec<Numbers>,
}

/// Some rows of a block for one key head.
struct Rows<'a> {
    spec: &'a AttentionSpec,
    keys: &'a Keys<'a>,
    block: &'a Block,
    head: usize,
    /// Rows `r` of the block are query `r / group`, head `r % group` of those of the key head.
    rows: Range<usize>,
    group: usize,
}

impl AttentionSpec {
    /// Outputs `[queries of the block, N, H]` of queries of the same shape: every number is written.
    pub(super) fn forward_block(
        &self,
        block: &Block,
        keys: &Keys<'_>,
        (q, out): (&[f32], &mut [MaybeUninit<f32>]),
        scratch: &mut Scratch,
    ) {
        let num_rows = q.len() / (keys.kv_heads * keys.head_dim);
        let group = num_rows / block.queries.len();
        for head in 0..keys.kv_heads {
            for first in (0..num_rows).step_by(VECTORS * LANES) {
                let rows = first..num_rows.min(first + VECTORS * LANES);
                let rows = Rows { spec: self, keys, block, head, rows, group };
                match rows.rows.len().div_ceil(LANES) {
                    1 => rows.run::<1>(q, out, scratch),
                    2 => rows.run::<2>(q, out, scratch),
                    _ => rows.run::<VECTORS>(q, out, scratch),
                }
            }
        }
    }
}

impl Rows<'_> {
    /// Where row `row` begins in queries and outputs `[_, N, H]`.
    fn at(&self, row: usize) -> usize {
        let heads = self.group * self.keys.kv_heads;
        (row / self.group * heads + self.head * self.group + row % self.group) * self.keys.head_dim
    }

    /// The block's keys, as [`Keys::runs`] has them.
    fn runs(&self) -> impl Iterator<Item = ([&[f32]; 2], usize)> {
        self.keys.runs(&self.block.keys, self.head).map(|(_, numbers, num_keys)| (numbers, num_keys))
    }

    fn run<const V: usize>(&self, q: &[f32], out: &mut [MaybeUninit<f32>], scratch: &mut Scratch) {
        let h = self.keys.head_dim;
        scratch.queries.resize(h * V, [0.0; LANES]);
        let scale = Vector::splat(self.spec.scale);
        for vector in 0..V {
            let first = self.rows.start + vector * LANES;
            let rows: [Option<&[f32]>; LANES] = std::array::from_fn(|lane| {
                let row = first + lane;
                (row < self.rows.end).then(|| &q[self.at(row)..][..h])
            });
            for at in (0..h).step_by(LANES) {
                let part = rows.map(|row| row.map_or(Vector::splat(0.0), |row| load(&row[at..]).times(scale)));
                let places = scratch.queries[at * V + vector..].iter_mut().step_by(V);
                places.zip(Vector::transposed(part)).for_each(|(to, numbers)| numbers.store(to));
            }
        }
        let num_keys = count(&self.block.keys);
        scratch.scores.resize((num_keys * V).max(scratch.scores.len()), [0.0; LANES]);
        let (queries, _) = scratch.queries.as_chunks::<V>();
        let (scores, _) = scratch.scores[..num_keys * V].as_chunks_mut::<V>();
        self.scores(queries, scores);
        if let Some(cap) = self.spec.softcap {
            scores.iter_mut().flatten().flatten().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        self.hide(scores);
        let sums = exponentials(scores);
        self.sum_values(scores, &sums, out);
    }

    fn scores<const V: usize>(&self, queries: &[[Numbers; V]], scores: &mut [[Numbers; V]]) {
        let stride = self.keys.kv_heads * self.keys.head_dim;
        let mut scores = scores;
        for ([k, _], num_keys) in self.runs() {
            let (run, rest) = scores.split_at_mut(num_keys);
            scores = rest;
            let (whole, last) = run.as_chunks_mut::<KEYS>();
            let num_whole = whole.len() * KEYS;
            for (i, scores) in whole.iter_mut().enumerate() {
                (0..KEYS).for_each(|n| fetch_head(k, (i * KEYS + n + AHEAD) * stride, queries.len()));
                *scores = products(queries, &k[i * KEYS * stride..], stride);
            }
            for (i, score) in last.iter_mut().enumerate() {
                [*score] = products(queries, &k[(num_whole + i) * stride..], stride);
            }
        }
    }

    /// Scores of keys that a row may not see become those of no key.
    fn hide<const V: usize>(&self, scores: &mut [[Numbers; V]]) {
        for query in self.rows.start / self.group..self.rows.end.div_ceil(self.group) {
            let mut seen = self.spec.mask.intervals(self.block.queries.start + query).iter().peekable();
            let lanes = (query * self.group).max(self.rows.start)..((query + 1) * self.group).min(self.rows.end);
            let lanes = lanes.start - self.rows.start..lanes.end - self.rows.start;
            let mut first = 0;
            for (from, to) in &self.block.keys {
                let mut hidden = *from;
                // A query's intervals lie within those of its block.
                while hidden < *to {
                    let (next, after) = match seen.peek() {
                        Some((next, after)) if next < to => (*next, *after),
                        _ => (*to, *to),
                    };
                    for scores in &mut scores[first + (hidden - from) as usize..first + (next - from) as usize] {
                        let scores = scores.as_flattened_mut();
                        scores[lanes.clone()].fill(f32::NEG_INFINITY);
                    }
                    if next < *to {
                        seen.next();
                    }
                    hidden = after;
                }
                first += (to - from) as usize;
            }
        }
    }

    /// Outputs: values weighted by `p`, over `sums`.
    fn sum_values<const V: usize>(&self, p: &[[Numbers; V]], sums: &[Numbers; V], out: &mut [MaybeUninit<f32>]) {
        let (h, stride) = (self.keys.head_dim, self.keys.kv_heads * self.keys.head_dim);
        for first in self.rows.clone().step_by(ROWS) {
            let lane = first - self.rows.start;
            for at in (0..h).step_by(WIDTH * LANES) {
                let width = (h - at).min(WIDTH * LANES);
                let mut block = [[[0f32; LANES]; WIDTH]; ROWS];
                let mut p = p;
                for ([_, v], num_keys) in self.runs() {
                    let (of_run, rest) = p.split_at(num_keys);
                    p = rest;
                    add_weighted(of_run, lane, (&v[at..], stride, width), &mut block);
                }
                for (row, block) in (first..self.rows.end).zip(&block) {
                    let inverse = 1.0 / sums.as_flattened()[row - self.rows.start];
                    let out = &mut out[self.at(row) + at..][..width];
                    out.iter_mut().zip(block.as_flattened()).for_each(|(out, sum)| {
                        out.write(sum * inverse);
                    });
                }
            }
        }
    }
}

/// The first sixteen numbers, or as many as there are and zeros.
#[inline(always)]
fn load(x: &[f32]) -> Vector {
    match x.first_chunk() {
        Some(whole) => Vector::load(whole),
        None => Vector::load(&std::array::from_fn(|i| x.get(i).copied().unwrap_or_default())),
    }
}

/// Asks for a key's or a value's numbers of a head, which a long row has in memory alone.
#[inline(always)]
fn fetch_head(numbers: &[f32], at: usize, count: usize) {
    (0..count).step_by(LANES).for_each(|i| fetch(numbers.as_ptr().wrapping_add(at + i)));
}

/// Products of the rows with `N` keys, `stride` numbers apart.
#[inline(always)]
fn products<const V: usize, const N: usize>(queries: &[[Numbers; V]], k: &[f32], stride: usize) -> [[Numbers; V]; N] {
    assert!(k.len() >= (N - 1) * stride + queries.len(), "attention: keys too short");
    let mut sums = [[Vector::splat(0.0); V]; N];
    for (i, q) in queries.iter().enumerate() {
        let q = q.each_ref().map(Vector::load);
        for (n, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `i` is below the number of vectors of `queries`, so that the assertion above covers the address.
            let k = Vector::splat(unsafe { *k.get_unchecked(n * stride + i) });
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum = sum.plus_product(k, q);
            }
        }
    }
    sums.map(numbers)
}

#[inline(always)]
fn numbers<const N: usize>(vectors: [Vector; N]) -> [Numbers; N] {
    vectors.map(|vector| {
        let mut numbers = [0.0; LANES];
        vector.store(&mut numbers);
        numbers
    })
}

/// Scores become `e^(score - max)`, those of hidden keys nothing; returns the sum of each row.
fn exponentials<const V: usize>(scores: &mut [[Numbers; V]]) -> [Numbers; V] {
    let (mut max, mut sums) = ([[f32::NEG_INFINITY; LANES]; V], [[0f32; LANES]; V]);
    for scores in &*scores {
        let pairs = max.as_flattened_mut().iter_mut().zip(scores.as_flattened());
        pairs.for_each(|(max, score)| *max = if *score > *max { *score } else { *max });
    }
    for scores in scores {
        let of_rows = max.as_flattened().iter().zip(sums.as_flattened_mut());
        for (score, (max, sum)) in scores.as_flattened_mut().iter_mut().zip(of_rows) {
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { exp(*score - max) };
            *sum += *score;
        }
    }
    sums
}

/// Adds to the rows from `lane` on values `[keys]` of `width` numbers, `stride` numbers apart, each times its weight.
fn add_weighted<const V: usize>(
    p: &[[Numbers; V]],
    lane: usize,
    (v, stride, width): (&[f32], usize, usize),
    sums: &mut [[Numbers; WIDTH]; ROWS],
) {
    let mut registers = sums.map(|sums| sums.each_ref().map(Vector::load));
    for (key, p) in p.iter().enumerate() {
        fetch_head(v, (key + AHEAD) * stride, width);
        let p = &p.as_flattened()[lane..lane + ROWS];
        let v = &v[key * stride..key * stride + width];
        let v = match <&[Numbers; WIDTH]>::try_from(v.as_chunks::<LANES>().0) {
            Ok(v) => v.each_ref().map(Vector::load),
            Err(_) => {
                let mut padded = [[0.0; LANES]; WIDTH];
                padded.as_flattened_mut()[..width].copy_from_slice(v);
                padded.each_ref().map(Vector::load)
            }
        };
        for (sums, p) in registers.iter_mut().zip(p) {
            let p = Vector::splat(*p);
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum = sum.plus_product(p, v);
            }
        }
    }
    *sums = registers.map(numbers);
}

#[cfg(test)]
mod tests {
    use super::super::AttentionMask;

    #[test]
    fn queries_of_a_window_stay_together_beyond_it() {
        let mut mask = AttentionMask::new();
        (0..600u32).for_each(|query| mask.push([(query.saturating_sub(199), query + 1)]).unwrap());
        assert!(mask.blocks.len() < 45, "{} blocks", mask.blocks.len());
        assert!(mask.blocks.iter().all(|block| block.sees_many == (block.queries.start >= 128)));
    }
}
