//! Products of f32 matrices on the 512-bit vectors of x86-64, and large ones on its tiles, where there are some ([`tiles`]).
//!
//! On vectors an output is the sum over blocks of at most [`MAX_SUMMANDS`] summands, each block added up in order by fused
//! multiply-adds from zero, the blocks added in order, after what is kept. Where the blocks begin depends on the number of
//! summands alone. So a row has the same bits alone and in any company, whatever the number of columns, the strides and
//! the threads.
//!
//! A task packs some columns, so few that they stay in the second-level cache, and takes its rows past them a strip at a
//! time; the sums of a strip with a panel of columns are in registers.

use crate::cpu::{Output, View};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

mod avx512;
mod pack;
mod pieces;
mod tiles;

use avx512::{FETCHED, Operands, Outputs, ROWS, STEPS};
use pack::Part;

/// Summands that are added up in registers at a time.
pub(crate) const MAX_SUMMANDS: usize = 576;
/// Numbers between two packed rows: whole cache lines, an odd number of them, so that rows spread over the cache.
const A_STRIDE: usize = MAX_SUMMANDS + 16;
/// Columns of a panel.
const PANEL: usize = 32;
/// Packed numbers at a time, 768 KiB.
const PACKED_NUMBERS: usize = 3 << 16;
/// So many rows repay that columns are packed once more.
const REPAYING_ROWS: usize = 512;

/// Whether the machine has what the products need.
pub(crate) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

/// Whether the machine has the instructions, and `[m, _] x b` so many rows that it pays to pack `b`. Where its rows are whole
/// the `gemm` crate reads few of them in place.
pub(crate) fn pays(m: usize, b: &View<'_>) -> bool {
    m >= if b.col_stride == 1 { 17 } else { 4 } && is_available()
}

/// 16 numbers in a cache line of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// Room for packed numbers.
#[derive(Default)]
struct Room {
    columns: Vec<Line>,
    rows: Vec<Line>,
    /// Columns in pieces, which all threads read: at most 8 MiB.
    shared: Vec<Line>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// As many numbers, at the start of cache lines.
fn numbers(room: &mut Vec<Line>, count: usize) -> *mut f32 {
    if room.len() * 16 < count {
        room.resize(count.div_ceil(16), Line([0.0; 16]));
    }
    room.as_mut_ptr().cast()
}

/// Part `i` of `parts` of a range from zero; they differ by one at most.
fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    i * len / parts..(i + 1) * len / parts
}

/// How often rows are shared out, where columns are shared out `across` times: each thread has work and, where there are
/// many rows, so much that one which is held up does not keep the others waiting.
fn down(rows: usize, across: usize, threads: usize) -> usize {
    let enough = threads.div_ceil(across).min(rows.div_ceil(ROWS));
    enough.max((4 * threads).div_ceil(across).min(rows / REPAYING_ROWS))
}

/// `c = a b` or `c += a b`: `[m, k] x [k, n]`.
pub(crate) struct Product<'a> {
    pub(crate) mnk: (usize, usize, usize),
    pub(crate) a: View<'a>,
    pub(crate) b: View<'a>,
    pub(crate) c: Output,
    /// Whether the products are added to `c`.
    pub(crate) keep: bool,
}

impl Product<'_> {
    /// Writes the product.
    ///
    /// # Safety
    /// The machine has the instructions ([`is_available`]). No size is zero, both views hold their matrices, and the
    /// output is nobody else's; with `keep` it holds numbers.
    pub(crate) unsafe fn run(&self) {
        let (m, n, k) = self.mnk;
        if tiles::are_faster(self.mnk) {
            // SAFETY: the machine has the units; the caller answers for the rest.
            return unsafe { self.run_on_tiles() };
        }
        // SAFETY: tasks have rows or columns of their own, so that no two write the same outputs.
        let task = |rows, columns| unsafe { ROOM.with_borrow_mut(|room| self.task(room, rows, columns)) };
        let panels = n.div_ceil(PANEL);
        let widest = (PACKED_NUMBERS / (PANEL * k.min(MAX_SUMMANDS))).max(1);
        let threads = if m * n * k < 1 << 16 { 1 } else { rayon::current_num_threads() };
        let across = panels.div_ceil(widest).next_multiple_of(threads).min(panels);
        let down = if threads == 1 { 1 } else { down(m, across, threads) };
        let run = |i: usize| {
            let panels = part(panels, across, i % across);
            task(part(m, down, i / across), panels.start * PANEL..(panels.end * PANEL).min(n));
        };
        if threads == 1 {
            (0..across * down).for_each(run);
        } else {
            (0..across * down).into_par_iter().with_max_len(1).for_each(run);
        }
    }

    /// Some rows times some columns.
    ///
    /// # Safety
    /// As of [`Self::run`]; nobody else writes these outputs.
    unsafe fn task(&self, room: &mut Room, rows: Range<usize>, columns: Range<usize>) {
        let k = self.mnk.2;
        let (blocks, strips) = (k.div_ceil(MAX_SUMMANDS), rows.len().div_ceil(ROWS));
        for block in 0..blocks {
            let summands = part(k, blocks, block);
            let b = numbers(&mut room.columns, columns.len().next_multiple_of(PANEL) * summands.len());
            let packed = Packed { b, columns: columns.clone(), summands, keep: self.keep || block > 0 };
            // SAFETY: there is room for the columns; the caller answers for the rest.
            unsafe { self.pack(&packed) };
            for strip in 0..strips {
                let at = |strip| {
                    let strip = part(rows.len(), strips, strip);
                    rows.start + strip.start..rows.start + strip.end
                };
                let next = if strip + 1 < strips { at(strip + 1) } else { at(0) };
                // SAFETY: the rows are the task's, the columns packed.
                unsafe { self.strip(&packed, &mut room.rows, at(strip), next) };
            }
        }
    }

    /// Packs columns, each panel `[summands, 32]`; after the last column there are zeros.
    ///
    /// # Safety
    /// As of [`Self::run`]; there is room.
    unsafe fn pack(&self, packed: &Packed) {
        for (panel, columns) in packed.panels() {
            let part = part_of(&self.b, packed.summands.clone(), columns);
            // SAFETY: the summands and the columns are of the matrix, and there is room.
            unsafe { part.copy_to(panel, PANEL, PANEL) };
        }
    }

    /// A strip of rows times packed columns; `next` are the rows that follow.
    ///
    /// # Safety
    /// As of [`Self::task`]; there are at most [`ROWS`] rows.
    unsafe fn strip(&self, packed: &Packed, room: &mut Vec<Line>, rows: Range<usize>, next: Range<usize>) {
        let summands = packed.summands.len();
        let of = |row| at(&self.a, row, packed.summands.start);
        // Rows a multiple of 4 KiB apart share the few places of a cache that an address can go to.
        let in_place = self.a.col_stride == 1 && !self.a.row_stride.is_multiple_of(1024);
        let (mut a, mut a_stride) = (of(rows.start), self.a.row_stride);
        if !in_place {
            let part = part_of(&self.a, rows.clone(), packed.summands.clone());
            let room = numbers(room, ROWS * A_STRIDE);
            // SAFETY: the rows and the summands are of the matrix; there is room for them.
            unsafe { part.copy_to(room, A_STRIDE, summands) };
            (a, a_stride) = (room, A_STRIDE);
        }
        for (panel, (b, columns)) in packed.panels().enumerate() {
            let (next, next_stride) = self.ahead(packed, panel, &next);
            // SAFETY: the rows and the columns are of the output, those of the operands packed or in place.
            unsafe {
                let Output { first, stride } = self.c.row(rows.start);
                let c = first.add(columns.start);
                let outputs = Outputs { c, stride, columns: columns.len(), keep: packed.keep };
                let operands = Operands { a, a_stride, b, summands, next, next_stride };
                avx512::tile(rows.len(), operands, outputs);
            }
        }
    }

    /// What to ask for during the tile of a panel, so that the rows `next` are in the second-level cache after the last.
    fn ahead(&self, packed: &Packed, panel: usize, next: &Range<usize>) -> ([*const f32; FETCHED], usize) {
        let summands = &packed.summands;
        if self.a.col_stride == 1 {
            let rows = next.len().div_ceil(packed.columns.len().div_ceil(PANEL));
            let row = |i: usize| next.start + (panel * rows + i.min(rows - 1)).min(next.len() - 1);
            return (std::array::from_fn(|i| at(&self.a, row(i), summands.start)), STEPS);
        }
        let stretch = summands.len() / STEPS;
        let first = |i: usize| summands.start + (panel * FETCHED + i) * stretch;
        (std::array::from_fn(|i| at(&self.a, next.start, first(i).min(summands.end - 1))), self.a.col_stride)
    }
}

/// Where element (i, j) of a view is.
fn at(view: &View<'_>, i: usize, j: usize) -> *const f32 {
    view.values.as_ptr().wrapping_add(i * view.row_stride + j * view.col_stride)
}

/// Some rows and columns of a view.
fn part_of(view: &View<'_>, rows: Range<usize>, columns: Range<usize>) -> Part {
    Part {
        first: at(view, rows.start, columns.start),
        row_stride: view.row_stride,
        col_stride: view.col_stride,
        rows: rows.len(),
        columns: columns.len(),
    }
}

/// Packed columns over some summands.
struct Packed {
    b: *mut f32,
    columns: Range<usize>,
    summands: Range<usize>,
    keep: bool,
}

impl Packed {
    /// The numbers of each panel and its columns.
    fn panels(&self) -> impl Iterator<Item = (*mut f32, Range<usize>)> {
        let starts = self.columns.clone().step_by(PANEL).enumerate();
        starts.map(|(panel, first)| {
            let numbers = self.b.wrapping_add(panel * PANEL * self.summands.len());
            (numbers, first..(first + PANEL).min(self.columns.end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{rows_of, transposed};
    use rand::SeedableRng as _;

    fn product(mnk: (usize, usize, usize), a: View<'_>, b: View<'_>, kept: Option<&[f32]>) -> Vec<f32> {
        let (m, n, _) = mnk;
        let mut c = kept.map_or_else(|| vec![f32::NAN; m * n], <[f32]>::to_vec);
        let output = Output { first: c.as_mut_ptr(), stride: n };
        // SAFETY: the tests ask for the instructions first; the operands and the output have these sizes.
        unsafe { Product { mnk, a, b, c: output, keep: kept.is_some() }.run() };
        c
    }

    fn numbers(rng: &mut impl rand::Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-1f32..1.0)).collect()
    }

    /// Blocks of summands, each added up in order, for each output of `[m, k] x [n, k]`.
    fn in_order((m, n, k): (usize, usize, usize), a: &[f32], b: &[f32], kept: Option<&[f32]>) -> Vec<f32> {
        let blocks = k.div_ceil(MAX_SUMMANDS);
        let of = |i: usize, j: usize| {
            let sums = (0..blocks)
                .map(|block| part(k, blocks, block).fold(0.0, |sum, s| a[i * k + s].mul_add(b[j * k + s], sum)));
            let start = kept.map(|kept| kept[i * n + j]);
            start.into_iter().chain(sums).reduce(|sum, block| sum + block).unwrap_or_default()
        };
        (0..m * n).map(|at| of(at / n, at % n)).collect()
    }

    /// The documented order of summation on vectors, bit for bit: in all shapes, alone and in company, with all threads and one.
    #[test]
    fn the_order_of_a_sum_depends_on_its_length_alone() {
        if !is_available() {
            return;
        }
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        for (m, n, k) in [(1, 5, 3), (9, 40, 100), (31, 33, 576), (70, 50, 577), (520, 65, 1300), (17, 320, 1100)] {
            let (a, b, kept) = (numbers(&mut rng, m * k), numbers(&mut rng, n * k), numbers(&mut rng, m * n));
            let by_columns: Vec<f32> = (0..k * m).map(|at| a[at % m * k + at / m]).collect();
            for kept in [None, Some(&kept[..])] {
                let all = product((m, n, k), rows_of(&a, k), transposed(&b, k), kept);
                assert_eq!(all, in_order((m, n, k), &a, &b, kept), "[{m}, {n}, {k}]");
                assert_eq!(all, product((m, n, k), transposed(&by_columns, m), transposed(&b, k), kept));
                let alone = one.install(|| product((m, n, k), rows_of(&a, k), transposed(&b, k), kept));
                assert_eq!(all, alone, "[{m}, {n}, {k}] with one thread");
                for row in 0..m {
                    let kept = kept.map(|kept| &kept[row * n..(row + 1) * n]);
                    let alone = product((1, n, k), rows_of(&a[row * k..(row + 1) * k], k), transposed(&b, k), kept);
                    assert_eq!(alone, all[row * n..(row + 1) * n], "row {row} of [{m}, {n}, {k}]");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_rows_and_columns() {
        if !is_available() {
            return;
        }
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let (m, n, k) = (30, 45, 50);
        let (mut a, mut b) = (numbers(&mut rng, m * k), numbers(&mut rng, n * k));
        (a[3 * k + 7], a[15 * k], a[29 * k + 49]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        (b[2 * k + 7], b[44 * k + 49], b[20 * k]) = (f32::INFINITY, f32::NAN, 0.0);
        let want = in_order((m, n, k), &a, &b, None);
        assert!(want.iter().any(|x| x.is_nan()) && want.iter().any(|x| x.is_infinite()));
        for (found, want) in product((m, n, k), rows_of(&a, k), transposed(&b, k), None).iter().zip(want) {
            assert!(*found == want || found.is_nan() && want.is_nan(), "{found} {want}");
        }
    }
}
