//! Numbers of eight bits: rows and columns with a scale each, turned first so that no number stands out.
//!
//! A Hadamard matrix over the summands leaves a product what it is, and spreads a number far larger than its neighbours
//! over all of them (QuaRot, arXiv 2404.00456), so that one scale for a whole row loses little.

use super::{BLOCK, Line, Packed, zero_lines};
use crate::vector::{LANES, Vector};
use rayon::prelude::*;

/// Numbers that rows and columns are filled up to.
pub(super) const STEP: usize = 64;
/// The largest whole number of eight bits with a sign whose negative is one too.
const LARGEST: f32 = 127.0;

/// What the columns of a matrix were rounded with, those that fill its last panel too.
pub(super) struct Columns {
    /// What a whole number of the column stands for.
    pub(super) scales: Vec<f32>,
    /// Sums of the whole numbers.
    pub(super) sums: Vec<i32>,
}

/// Multiplies a row, whose length is a multiple of [`STEP`], by a symmetric matrix that is its own inverse: Hadamard
/// matrices over numbers sixteen places apart, so that all of it is sums of vectors.
fn turn(row: &mut [f32]) {
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    let (wholes, rest) = vectors.as_chunks_mut::<16>();
    wholes.iter_mut().for_each(hadamard);
    let (eights, rest) = rest.as_chunks_mut::<8>();
    eights.iter_mut().for_each(hadamard);
    let (fours, _) = rest.as_chunks_mut::<4>();
    fours.iter_mut().for_each(hadamard);
}

#[inline(always)]
fn hadamard<const N: usize>(vectors: &mut [[f32; LANES]; N]) {
    let mut turned = vectors.each_ref().map(Vector::load);
    let mut apart = 1;
    while apart < N {
        for first in (0..N).step_by(2 * apart) {
            for i in first..first + apart {
                let (a, b) = (turned[i], turned[i + apart]);
                (turned[i], turned[i + apart]) = (a.plus(b), a.minus(b));
            }
        }
        apart *= 2;
    }
    let scale = Vector::splat(1.0 / (N as f32).sqrt());
    for (to, vector) in vectors.iter_mut().zip(turned) {
        vector.times(scale).store(to);
    }
}

/// Turns a row in place, and what a whole number stands for; not a number where the row has one that is none.
fn turn_and_scale(row: &mut [f32]) -> f32 {
    turn(row);
    let (fours, _) = row.as_chunks::<STEP>();
    let zero = Vector::splat(0.0);
    let (mut most, mut sums) = ([zero; 4], [zero; 4]);
    for numbers in fours {
        let (vectors, _) = numbers.as_chunks::<LANES>();
        for ((most, sum), x) in most.iter_mut().zip(&mut sums).zip(vectors) {
            let x = Vector::load(x);
            *most = most.max(x.abs());
            // Stays zero; what is not a finite number would be lost in the maximum.
            *sum = sum.plus_product(x, zero);
        }
    }
    let [a, b, c, d] = most;
    let mut lanes = [0f32; LANES];
    a.max(b).max(c.max(d)).store(&mut lanes);
    let [a, b, c, d] = sums;
    lanes.iter().fold(0f32, |most, x| most.max(*x)) / LARGEST + a.plus(b).plus(c.plus(d)).sum()
}

/// Rounds a row into its lines, padded with zeros; what a whole number stands for.
pub(super) fn round_row(x: &[f32], turned: &mut [f32], lines: &mut [Line]) -> f32 {
    turned[..x.len()].copy_from_slice(x);
    turned[x.len()..].fill(0.0);
    let scale = turn_and_scale(turned);
    // What is too small for a normal number is as good as zero.
    let per = Vector::splat(if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
    let (numbers, _) = turned.as_chunks::<STEP>();
    for (line, numbers) in lines.iter_mut().zip(numbers) {
        let mut bytes = [0u8; STEP];
        let (vectors, _) = numbers.as_chunks::<LANES>();
        let (places, _) = bytes.as_chunks_mut::<LANES>();
        for (place, x) in places.iter_mut().zip(vectors) {
            Vector::load(x).times(per).store_signed(place);
        }
        *line = Line::of_bytes(bytes);
    }
    scale
}

impl Line {
    #[inline(always)]
    pub(super) fn of_bytes(bytes: [u8; 64]) -> Self {
        // SAFETY: both are 64 bytes of plain data.
        Self(unsafe { std::mem::transmute::<[u8; 64], [u16; 32]>(bytes) })
    }

    #[inline(always)]
    pub(super) fn bytes(&self) -> [u8; 64] {
        // SAFETY: both are 64 bytes of plain data.
        unsafe { std::mem::transmute::<[u16; 32], [u8; 64]>(self.0) }
    }
}

impl Packed {
    /// Packs the transpose of row-major `[n, k]` numbers as eight bits: four consecutive summands of a column side by
    /// side, as `tdpbssd` and `vpdpbusd` read them.
    pub(crate) fn int8(values: &[f32], (k, n): (usize, usize)) -> Self {
        let (steps, panels) = (k.div_ceil(STEP), n.div_ceil(BLOCK));
        let mut lines = zero_lines(panels * steps * BLOCK);
        let mut columns = Columns { scales: vec![0.0; panels * BLOCK], sums: vec![0; panels * BLOCK] };
        let places = columns.scales.par_chunks_mut(BLOCK).zip(columns.sums.par_chunks_mut(BLOCK));
        lines.par_chunks_mut(steps * BLOCK).zip(places).zip(values.par_chunks(BLOCK * k)).for_each(
            |((lines, (scales, sums)), values)| {
                let (mut turned, mut column) = (vec![0f32; steps * STEP], zero_lines(steps));
                for (j, values) in values.chunks(k).enumerate() {
                    scales[j] = round_row(values, &mut turned, &mut column);
                    let bytes: Vec<u8> = column.iter().flat_map(Line::bytes).collect();
                    sums[j] = bytes.iter().map(|byte| i32::from(*byte as i8)).sum();
                    for (quad, bytes) in bytes.chunks(4).enumerate() {
                        let line = &mut lines[quad * 2 + j / LANES];
                        let mut all = line.bytes();
                        all[j % LANES * 4..][..4].copy_from_slice(bytes);
                        *line = Line::of_bytes(all);
                    }
                }
            },
        );
        Self { lines, k, n, columns: Some(columns) }
    }

    /// Column `j` of numbers of eight bits as it was rounded, turned back, `[k]`.
    pub(super) fn column_of_bytes(&self, columns: &Columns, j: usize, out: &mut [f32]) {
        let panel = &self.lines[j / BLOCK * self.lines_of_panel()..][..self.lines_of_panel()];
        let quads = panel.iter().skip(j % BLOCK / LANES).step_by(2);
        let of_quad = |line: &Line| <[u8; 4]>::try_from(&line.bytes()[j % LANES * 4..][..4]).unwrap_or_default();
        let mut turned: Vec<f32> =
            quads.flat_map(of_quad).map(|byte| f32::from(byte as i8) * columns.scales[j]).collect();
        turn(&mut turned);
        out.copy_from_slice(&turned[..out.len()]);
    }

    /// Sums of products of whole numbers, 32 bits each, become those of the numbers that they stand for.
    #[inline]
    pub(super) fn scale_sums(&self, rows: &[f32], panel: usize, sums: &mut [[f32; BLOCK]; BLOCK]) {
        let Some(columns) = &self.columns else { return };
        let (columns, _) = columns.scales[panel * BLOCK..(panel + 1) * BLOCK].as_chunks::<LANES>();
        let columns = [Vector::load(&columns[0]), Vector::load(&columns[1])];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let (halves, _) = sums.as_chunks_mut::<LANES>();
            for (half, columns) in halves.iter_mut().zip(columns) {
                Vector::load(half).of_whole_bits().times(columns.times(Vector::splat(*row))).store(half);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::{Format, Units};
    use rand::{Rng as _, SeedableRng as _};
    use std::mem::MaybeUninit;

    fn numbers(rng: &mut rand_chacha::ChaCha8Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-1f32..1.0)).collect()
    }

    fn product(packed: &Packed, units: Units, x: &[f32]) -> Vec<f32> {
        let mut y = vec![MaybeUninit::new(0f32); x.len() / packed.k * packed.n];
        // SAFETY: `y` holds numbers.
        unsafe { packed.product(units, x, (0..packed.k, 0..packed.n), &mut y, packed.n, false) };
        // SAFETY: as above.
        y.into_iter().map(|y| unsafe { y.assume_init() }).collect()
    }

    /// The matrices of the definition: the sign of (i, j) is that of the parity of the bits that both have.
    #[test]
    fn turning_is_a_product_with_hadamard_matrices() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (len, sizes) in [(64, &[4][..]), (192, &[8, 4]), (576, &[16, 16, 4]), (1536, &[16; 6])] {
            let x = numbers(&mut rng, len);
            let mut turned = x.clone();
            turn(&mut turned);
            let mut first = 0;
            for size in sizes {
                for (i, lane) in (0..*size).flat_map(|i| (0..LANES).map(move |lane| (i, lane))) {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let term = |j: usize| sign(j) * f64::from(x[first + j * LANES + lane]);
                    let want = (0..*size).map(term).sum::<f64>() / (*size as f64).sqrt();
                    assert!((want - f64::from(turned[first + i * LANES + lane])).abs() < 1e-6, "{len} {i} {lane}");
                }
                first += size * LANES;
            }
            assert_eq!(first, len);
            turn(&mut turned);
            assert!(x.iter().zip(&turned).all(|(x, turned)| (x - turned).abs() < 1e-6), "{len}: its own inverse");
        }
    }

    /// Whole numbers are off by half at most, and turning keeps the length of a difference.
    #[test]
    fn columns_are_within_half_a_whole_number() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let (k, n) = (100, 33);
        let mut matrix = numbers(&mut rng, k * n);
        matrix[5] = 300.0;
        let packed = Packed::int8(&matrix, (k, n));
        for (j, exact) in matrix.chunks(k).enumerate() {
            let mut found = vec![0f32; k];
            packed.column(j, &mut found);
            let most = packed.columns.as_ref().unwrap().scales[j] / 2.0 * 128f32.sqrt();
            let distance = found.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(distance <= most * 1.0001, "{j}: {distance} {most}");
            // What stands out is spread over sixteen: the scale is a quarter of what it would be.
            assert!(j > 0 || packed.columns.as_ref().unwrap().scales[0] < 300.0 / 127.0 / 1.9);
        }
    }

    /// Rows are rounded as columns are: as columns of a matrix they can be read back.
    #[test]
    fn products_are_those_of_rounded_numbers() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for (t, k, n) in [(1, 64, 32), (3, 64, 17), (33, 192, 70), (160, 128, 100), (300, 576, 192)] {
            let (matrix, x) = (numbers(&mut rng, k * n), numbers(&mut rng, t * k));
            let (packed, rows) = (Packed::int8(&matrix, (k, n)), Packed::int8(&x, (k, t)));
            let read = |packed: &Packed, j| {
                let mut column = vec![0f32; k];
                packed.column(j, &mut column);
                column
            };
            let columns: Vec<Vec<f32>> = (0..n).map(|j| read(&packed, j)).collect();
            for units in Units::available(Format::Int8) {
                let y = product(&packed, units, &x);
                for (i, y) in y.chunks(n).enumerate() {
                    let row = read(&rows, i);
                    for (y, column) in y.iter().zip(&columns) {
                        let want: f64 = row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        // Reading back rounds k numbers below 2, the portable sums pass 2^24 at most a few times.
                        assert!((f64::from(*y) - want).abs() < k as f64 * 1e-6, "{units:?} {t} {k} {n}: {y} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_fills_up_a_step_changes_nothing() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        let (matrix, x) = (numbers(&mut rng, 33 * 100), numbers(&mut rng, 5 * 100));
        let filled = |rows: &[f32]| -> Vec<f32> {
            rows.chunks(100).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, 28))).collect()
        };
        let (short, long) = (Packed::int8(&matrix, (100, 33)), Packed::int8(&filled(&matrix), (128, 33)));
        for units in Units::available(Format::Int8) {
            assert_eq!(product(&short, units, &x), product(&long, units, &filled(&x)), "{units:?}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_on_all_units_and_in_any_company() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        // Sums of so few products are whole numbers in f32 too.
        let (k, n, t) = (96, 70, 200);
        let (packed, x) = (Packed::int8(&numbers(&mut rng, k * n), (k, n)), numbers(&mut rng, t * k));
        let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        let all = bits(product(&packed, Units::Portable, &x));
        for units in Units::available(Format::Int8) {
            assert_eq!(bits(product(&packed, units, &x)), all, "{units:?}");
            for row in [0, 1, 31, 32, 150, 199] {
                let alone = bits(product(&packed, units, &x[row * k..(row + 1) * k]));
                assert_eq!(alone, all[row * n..(row + 1) * n], "{units:?} {row}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_and_one_without_meaning() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (k, n) = (96, 40);
        let packed = Packed::int8(&numbers(&mut rng, k * n), (k, n));
        let mut x = numbers(&mut rng, 4 * k);
        x[..k].fill(0.0);
        (x[k + 7], x[2 * k + 90]) = (f32::NAN, f32::NEG_INFINITY);
        for units in Units::available(Format::Int8) {
            let y = product(&packed, units, &x);
            assert!(y[..n].iter().all(|y| *y == 0.0), "{units:?}");
            assert!(y[n..3 * n].iter().all(|y| y.is_nan()), "{units:?}");
            assert!(y[3 * n..].iter().all(|y| y.is_finite()), "{units:?}");
        }
    }
}
