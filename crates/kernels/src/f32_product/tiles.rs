//! Products of f32 matrices on tiles of bf16 numbers.
//!
//! A number of 24 bits is the sum of three bf16 numbers, each of which is what those before it leave, rounded. Of the nine
//! products of the pieces of two numbers the six largest are added up; the others come to at most 2^-24 of the product,
//! which is what one rounding of it does (Henry, Tang, Heinecke 2019, arXiv 1904.06376). Six products on tiles take about
//! half the time of one on vectors.
//!
//! A sum starts from what is kept and takes 32 summands at a time, of which it adds the six products in order, small ones
//! first; that depends on the number of summands alone. So a row has the same bits in any company, of products on tiles.
//!
//! Tiles take numbers below 2^-126 for zeros, so that numbers below 2^-103, and sums below 2^-103 of products, lose
//! bits; a product with an infinite number, or with one that bf16 rounds to infinity, is NaN.

use super::avx512::LANES;
use super::{Line, MAX_SUMMANDS, Product, ROOM, Room, numbers, part, part_of};
use crate::amx::{self, FETCHED_LINES, LINES_OF_STEP, Tiles};
use crate::bf16::{BLOCK, Format};
use crate::cpu::Output;
use rayon::prelude::*;
use std::ops::Range;

/// Rows, columns and summands from which on tiles are faster.
const LEAST: (usize, usize, usize) = (128, 128, 64);
/// Rows of a task: their pieces stay in the second-level cache while the columns pass by.
const TASK_ROWS: usize = 128;
/// Lines of columns in pieces at a time, 8 MiB.
const SHARED_LINES: usize = 1 << 17;

/// Whether there are tiles, and a product of this size is faster on them.
pub(super) fn are_faster((m, n, k): (usize, usize, usize)) -> bool {
    m >= LEAST.0
        && n >= LEAST.1
        && k >= LEAST.2
        && amx::is_available(Format::Bf16)
        && std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Columns in pieces over some summands, a panel of 32 after another.
struct Columns<'a> {
    lines: &'a [Line],
    columns: Range<usize>,
    summands: Range<usize>,
    keep: bool,
}

impl Product<'_> {
    /// As [`Self::run`], on tiles.
    ///
    /// # Safety
    /// As of [`Self::run`]; [`are_faster`] has said yes.
    pub(super) unsafe fn run_on_tiles(&self) {
        let (m, n, k) = self.mnk;
        let steps = k.div_ceil(BLOCK);
        let blocks = steps.div_ceil(MAX_SUMMANDS / BLOCK);
        let at_a_time = SHARED_LINES / (steps.div_ceil(blocks) * LINES_OF_STEP) * BLOCK;
        // Taken, not borrowed: while this thread waits for others it may be given another product.
        let mut shared = ROOM.with_borrow_mut(|room| std::mem::take(&mut room.shared));
        for (first, block) in (0..n).step_by(at_a_time).flat_map(|first| (0..blocks).map(move |block| (first, block))) {
            let (columns, steps) = (first..(first + at_a_time).min(n), part(steps, blocks, block));
            let summands = steps.start * BLOCK..(steps.end * BLOCK).min(k);
            let lines_of_panel = steps.len() * LINES_OF_STEP;
            let panels = columns.len().div_ceil(BLOCK);
            if shared.len() < panels * lines_of_panel {
                shared.resize(panels * lines_of_panel, Line([0.0; LANES]));
            }
            let lines = &mut shared[..panels * lines_of_panel];
            lines.par_chunks_mut(lines_of_panel).enumerate().for_each(|(panel, lines)| {
                let from = columns.start + panel * BLOCK;
                let part = part_of(&self.b, summands.clone(), from..(from + BLOCK).min(columns.end));
                // SAFETY: the summands and the columns are of the matrix; the machine has the instructions.
                ROOM.with_borrow_mut(|room| unsafe { part.columns_in_pieces(lines, &mut room.rows) });
            });
            let packed = Columns { lines, columns, summands, keep: self.keep || block > 0 };
            let tasks = m.div_ceil(TASK_ROWS);
            let shares = rayon::current_num_threads().div_ceil(tasks).min(panels);
            (0..tasks * shares).into_par_iter().for_each(|task| {
                let rows = task / shares * TASK_ROWS..(task / shares * TASK_ROWS + TASK_ROWS).min(m);
                // SAFETY: tasks have rows or columns of their own, so that no two write the same outputs.
                unsafe { self.rows_by(&packed, rows, part(panels, shares, task % shares)) };
            });
        }
        ROOM.with_borrow_mut(|room| room.shared = shared);
    }

    /// Some rows by some panels of columns.
    ///
    /// # Safety
    /// As of [`Self::run_on_tiles`]; the rows are of the product, the panels of `packed`, which holds columns of it, and nobody
    /// else writes these outputs.
    unsafe fn rows_by(&self, packed: &Columns<'_>, rows: Range<usize>, panels: Range<usize>) {
        let lines_of_panel = packed.summands.len().div_ceil(BLOCK) * LINES_OF_STEP;
        let strips = rows.len().div_ceil(BLOCK);
        ROOM.with_borrow_mut(|room| {
            let Room { columns: pieces, rows: scratch, .. } = room;
            numbers(pieces, strips * lines_of_panel * LANES);
            let strip_of = |strip: usize| rows.start + strip * BLOCK..(rows.start + (strip + 1) * BLOCK).min(rows.end);
            for (strip, lines) in pieces.chunks_mut(lines_of_panel).enumerate().take(strips) {
                let part = part_of(&self.a, strip_of(strip), packed.summands.clone());
                // SAFETY: the rows and the summands are of the matrix; the machine has the instructions.
                unsafe { part.rows_in_pieces(lines, scratch) };
            }
            let _tiles = Tiles::new();
            for panel in panels {
                let columns = panel * BLOCK..((panel + 1) * BLOCK).min(packed.columns.len());
                let b = &packed.lines[panel * lines_of_panel..][..lines_of_panel];
                for (strip, a) in pieces.chunks(lines_of_panel).enumerate().take(strips) {
                    let rows = strip_of(strip);
                    // SAFETY: the output has these rows and columns; the tiles are set up, and both operands have the
                    // lines of all steps.
                    unsafe {
                        let c = self.c.row(rows.start).column(packed.columns.start + columns.start);
                        block((a, strip), b, (c, rows.len(), columns.len()), packed.keep);
                    }
                }
            }
        });
    }
}

/// A block of at most 32 x 32 outputs, of strip `strip` of a task by a panel.
///
/// # Safety
/// [`Tiles`] are set up on this thread; `a` and `b` have the lines of equally many steps, of one at least; the output is there and nobody else's, with `keep` it holds numbers.
unsafe fn block((a, strip): (&[Line], usize), b: &[Line], (c, rows, columns): (Output, usize, usize), keep: bool) {
    let steps = a.len() / LINES_OF_STEP;
    debug_assert_eq!(a.len(), b.len());
    // The strips of a task ask for the next panel together.
    let next = b.as_ptr().wrapping_add(b.len() + strip * steps * FETCHED_LINES).cast();
    let (a, b) = (a.as_ptr().cast(), b.as_ptr().cast());
    if rows == BLOCK && columns == BLOCK {
        // SAFETY: as the caller says.
        return unsafe { amx::block_of_pieces(a, (b, next), steps, (c.first, c.stride, keep)) };
    }
    let mut whole = [[0f32; BLOCK]; BLOCK];
    // SAFETY: `whole` has the block's size; the output has these rows and columns, which hold numbers if they are kept.
    unsafe {
        if keep {
            for (row, whole) in whole.iter_mut().enumerate().take(rows) {
                std::ptr::copy_nonoverlapping(c.row(row).first, whole.as_mut_ptr(), columns);
            }
        }
        amx::block_of_pieces(a, (b, next), steps, (whole.as_mut_ptr().cast(), BLOCK, keep));
        for (row, whole) in whole.iter().enumerate().take(rows) {
            std::ptr::copy_nonoverlapping(whole.as_ptr(), c.row(row).first, columns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{View, rows_of, transposed};
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    fn product((m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>, kept: Option<&[f32]>) -> Vec<f32> {
        let mut c = kept.map_or_else(|| vec![f32::NAN; m * n], <[f32]>::to_vec);
        let output = Output { first: c.as_mut_ptr(), stride: n };
        // SAFETY: the tests ask for the units first; the operands and the output have these sizes.
        unsafe { Product { mnk: (m, n, k), a, b, c: output, keep: kept.is_some() }.run_on_tiles() };
        c
    }

    fn there_are_none() -> bool {
        !are_faster((1 << 10, 1 << 10, 1 << 10))
    }

    /// Numbers of either sign over 24 powers of two.
    fn numbers(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
        let number = |_| rng.random_range(-1f32..1.0) * 2f32.powi(rng.random_range(-12..12));
        (0..count).map(number).collect()
    }

    fn by_columns(values: &[f32], cols: usize) -> Vec<f32> {
        let rows = values.len() / cols;
        (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
    }

    /// All 24 bits are in the pieces, and none is lost in adding them up.
    #[test]
    fn times_one_is_the_number_itself() {
        if there_are_none() {
            return;
        }
        let n = 70;
        let one: Vec<f32> = (0..n * n).map(|at| f32::from(at % (n + 1) == 0)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut x: Vec<f32> = (0..n * n)
            .map(|_| f32::from_bits(rng.random_range(0..0x7f00_0000) | (rng.random_range(0..2) << 31)))
            .map(|x| if x.abs() < 1e-31 { x.signum() } else { x })
            .collect();
        x[..4].copy_from_slice(&[0.0, 1.0 + f32::EPSILON, 16_777_215.0, f32::from_bits(0x3fff_ffff)]);
        let shape = (n, n, n);
        assert_eq!(product(shape, rows_of(&x, n), rows_of(&one, n), None), x);
        assert_eq!(product(shape, rows_of(&one, n), rows_of(&x, n), None), x);
    }

    /// Nearer to sums in f64 than f32 multiply-adds one after another, of all kinds of views, added or not; and a row has the
    /// same bits alone and in company, with all threads and one.
    #[test]
    fn products_are_sums_and_their_bits_depend_on_nothing_else() {
        if there_are_none() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        for (m, n, k) in [(33, 70, 31), (130, 65, 577), (300, 40, 1153), (5, 2600, 576)] {
            let (a, b, kept) = (numbers(&mut rng, m * k), numbers(&mut rng, n * k), numbers(&mut rng, m * n));
            let (a_columns, b_columns) = (by_columns(&a, k), by_columns(&b, k));
            for kept in [None, Some(&kept[..])] {
                let all = product((m, n, k), rows_of(&a, k), transposed(&b, k), kept);
                let others = [
                    product((m, n, k), transposed(&a_columns, m), rows_of(&b_columns, n), kept),
                    one.install(|| product((m, n, k), rows_of(&a, k), transposed(&b, k), kept)),
                    (0..m)
                        .flat_map(|row| {
                            let kept = kept.map(|kept| &kept[row * n..(row + 1) * n]);
                            product((1, n, k), rows_of(&a[row * k..(row + 1) * k], k), transposed(&b, k), kept)
                        })
                        .collect(),
                ];
                for (which, other) in others.iter().enumerate() {
                    assert!(all == *other, "[{m}, {n}, {k}]: other bits than {which}");
                }
                let (mut of_tiles, mut of_vectors) = (0.0, 0.0);
                for (at, found) in all.iter().enumerate() {
                    let factors = (0..k).map(|s| (a[at / n * k + s], b[at % n * k + s]));
                    let start = kept.map_or(0.0, |kept| kept[at]);
                    let sum: f64 = factors.clone().map(|(a, b)| f64::from(a) * f64::from(b)).sum();
                    let (sum, error) =
                        (sum + f64::from(start), |found: f32, sum: f64| (f64::from(found) - sum).powi(2));
                    of_tiles += error(*found, sum);
                    of_vectors += error(start + factors.fold(0.0, |sum, (a, b)| a.mul_add(b, sum)), sum);
                }
                // One product more is rounded, where there are few of them.
                assert!(of_tiles <= of_vectors * if k < 100 { 2.0 } else { 1.0 }, "{of_tiles} {of_vectors}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_rows_and_columns() {
        if there_are_none() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let (m, n, k) = (70, 45, 50);
        let (mut a, mut b) = (numbers(&mut rng, m * k), numbers(&mut rng, n * k));
        let finite = product((m, n, k), rows_of(&a, k), transposed(&b, k), None);
        (a[3 * k + 7], a[40 * k], a[69 * k + 49]) = (f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::NEG_INFINITY);
        (b[2 * k + 7], b[44 * k + 49]) = (f32::from_bits(u32::MAX), f32::MAX);
        let found = product((m, n, k), rows_of(&a, k), transposed(&b, k), None);
        for (at, (found, finite)) in found.iter().zip(finite).enumerate() {
            let is_touched = [3, 40, 69].contains(&(at / n)) || [2, 44].contains(&(at % n));
            assert!(if is_touched { !found.is_finite() } else { *found == finite }, "{at}: {found}");
        }
    }

    /// Rows and columns with numbers between them, which stay as they are, by way of [`Product::run`], at the border where
    /// tiles begin to be faster, while other tiles of the thread are in use.
    #[test]
    fn what_lies_between_stays_and_tiles_in_use_too() {
        if there_are_none() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let _others = Tiles::new();
        for less in [0, 1] {
            let (m, n, k, stride) = (LEAST.0 + 1, LEAST.1 - less, LEAST.2, LEAST.1 + 3);
            assert_eq!(are_faster((m, n, k)), less == 0);
            let (a, b) = (numbers(&mut rng, 2 * m * (k + 1)), numbers(&mut rng, 2 * k * (n + 1)));
            let a = View { values: &a, row_stride: 2 * (k + 1), col_stride: 2 };
            let b = View { values: &b, row_stride: 2 * (n + 1), col_stride: 2 };
            let mut c = vec![7f32; m * stride];
            let output = Output { first: c.as_mut_ptr(), stride };
            // SAFETY: the units are there; the operands and the output have these sizes.
            unsafe { Product { mnk: (m, n, k), a, b, c: output, keep: false }.run() };
            for (at, found) in c.iter().enumerate() {
                let (row, column) = (at / stride, at % stride);
                if column >= n {
                    assert_eq!(*found, 7.0, "({row}, {column})");
                    continue;
                }
                let factors = (0..k).map(|s| (a.values[2 * (row * (k + 1) + s)], b.values[2 * (s * (n + 1) + column)]));
                let terms: Vec<f64> = factors.map(|(a, b)| f64::from(a) * f64::from(b)).collect();
                let (sum, size): (f64, f64) = (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum());
                assert!((f64::from(*found) - sum).abs() <= 2e-6 * size, "({row}, {column}): {found} in place of {sum}");
            }
        }
        // The products have set up and released tiles of their own: these ones are still there.
        let (lines, mut sums) = ([Line([0.0; LANES]); LINES_OF_STEP], [[1f32; BLOCK]; BLOCK]);
        let (lines, c) = (lines.as_ptr().cast(), (sums.as_mut_ptr().cast(), BLOCK, false));
        // SAFETY: the tiles are set up above; there are the lines of a step, and 32 x 32 outputs.
        unsafe { amx::block_of_pieces(lines, (lines, lines), 1, c) };
        assert_eq!(sums, [[0.0; BLOCK]; BLOCK]);
    }
}
