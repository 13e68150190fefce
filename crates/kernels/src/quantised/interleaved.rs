//! Sixteen rows of blocks side by side: a register has four numbers of each row, so that products need neither shuffles nor
//! sums across a register, and memory is read from end to end (as `llama.cpp` repacks weights for its own products).
//!
//! Input becomes whole numbers of 24 bits: three signed bytes, each multiplied with the bits of the weights (`vpdpbusd`).
//! What shares a scale, a piece, has exact sums of whole numbers, which round when they become f32. A number is off by 2^-24
//! of the largest of its piece at most. Pieces whose largest number is below 1e-31 are zeros, and ones whose sum is no f32
//! give no numbers.

mod formats;

use super::Block;
use crate::cpu;
use crate::vector::LANES;
pub(super) use formats::Interleave;
use rayon::prelude::*;
use std::arch::x86_64::{
    _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm512_abs_ps, _mm512_add_epi32, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps,
    _mm512_mul_ps, _mm512_reduce_add_epi32, _mm512_reduce_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_srai_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows side by side: one for each number of a register.
pub(super) const ROWS: usize = LANES;
/// The largest whole number of a piece: its three signed bytes stay so where rounding makes it one more.
const LARGEST: f32 = (127 << 16) as f32;
/// Numbers of 32 bits in four of which each byte is one of four numbers: the most of a piece.
const QUADS: usize = 8;

/// Whether the CPU has what [`group`] needs.
pub(super) fn has_units() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// A piece of a row of input.
pub(super) struct Piece {
    /// Fours of numbers, the highest bytes of all, then the middle ones, then the lowest.
    digits: [[i32; QUADS]; 3],
    /// What the bits of the weights stand for more than these, times all numbers: what their sums begin with.
    starts: [i32; 3],
    /// What a whole number stands for.
    scale: f32,
    /// Sum of all numbers.
    sum: f32,
}

/// The pieces of rows of input whose length is a multiple of theirs.
pub(super) fn pieces<B: Interleave>(x: &[f32]) -> Vec<Piece> {
    let numbers = B::QUADS * 4;
    // SAFETY: matrices lie side by side where the CPU has the instructions alone; pieces are of 16 or 32 numbers.
    x.chunks_exact(numbers).map(|x| unsafe { piece(x, B::OFFSET) }).collect()
}

/// # Safety
/// The CPU has what [`group`] needs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn piece(x: &[f32], offset: i32) -> Piece {
    let (vectors, _) = x.as_chunks::<LANES>();
    let mut most = _mm512_setzero_ps();
    let mut zeros = _mm512_setzero_ps();
    for x in vectors {
        // SAFETY: sixteen numbers are read.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        most = _mm512_max_ps(most, _mm512_abs_ps(x));
        // Stays zero; what is not a finite number would be lost in the maximum.
        zeros = _mm512_fmadd_ps(x, _mm512_setzero_ps(), zeros);
    }
    let mut lanes = [0f32; LANES];
    // SAFETY: sixteen numbers are written.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), zeros) };
    let scale = _mm512_reduce_max_ps(most) / LARGEST + lanes.iter().sum::<f32>();
    // What is below 1e-31 is as good as zero.
    let per = _mm512_set1_ps(if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
    let mut digits = [[0i32; QUADS]; 3];
    let mut sums = [0i32; 3];
    for (i, x) in vectors.iter().enumerate() {
        // SAFETY: as above.
        let mut rest = _mm512_cvtps_epi32(_mm512_mul_ps(unsafe { _mm512_loadu_ps(x.as_ptr()) }, per));
        for level in (0..3).rev() {
            let byte = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(rest));
            rest = _mm512_srai_epi32::<8>(_mm512_sub_epi32(rest, byte));
            sums[level] += _mm512_reduce_add_epi32(byte);
            // SAFETY: sixteen bytes are written, four numbers of the eight.
            unsafe { _mm_storeu_si128(digits[level][i * 4..][..4].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(byte)) };
        }
    }
    let sum = (sums[0] * 65536 + sums[1] * 256) as f32 + sums[2] as f32;
    Piece { digits, starts: sums.map(|sum| -offset * sum), scale, sum: sum * scale }
}

/// Lays rows of so many blocks side by side, and rows of zeros behind the last.
pub(super) fn interleave<const SIZE: usize>(bytes: &[u8], blocks: usize) -> Vec<[u8; SIZE]>
where
    [u8; SIZE]: Interleave,
{
    const { assert!(<[u8; SIZE]>::HALVES.1 * 2 + <[u8; SIZE]>::WORDS.1 * 4 == SIZE, "all bytes have a place") };
    let groups = bytes.len().div_ceil(ROWS * blocks * SIZE);
    let lay = |places: &mut [MaybeUninit<[u8; SIZE]>]| {
        let rows = bytes.par_chunks(ROWS * blocks * SIZE);
        places.par_chunks_mut(ROWS * blocks).zip(rows).for_each(|(group, rows)| {
            if rows.len() < size_of_val(group) {
                group.fill(MaybeUninit::new([0; SIZE]));
            }
            for (lane, row) in rows.chunks(blocks * SIZE).enumerate() {
                for (block, place) in row.as_chunks::<SIZE>().0.iter().zip(group.chunks_mut(ROWS)) {
                    let place = place.as_mut_ptr().cast::<u8>();
                    // SAFETY: both parts lie in their blocks; of those in `place` none is read.
                    for_places::<SIZE>(lane, |from, to| unsafe {
                        block[from.clone()].as_ptr().copy_to_nonoverlapping(place.add(to.start), from.len());
                    });
                }
            }
        });
    };
    // SAFETY: sixteen rows fill every place of their group, and what fewer rows leave is zero.
    unsafe { cpu::filled(groups * ROWS * blocks, lay) }
}

/// Block `at` of row `row`.
pub(super) fn block<const SIZE: usize>(side_by_side: &[[u8; SIZE]], blocks: usize, row: usize, at: usize) -> [u8; SIZE]
where
    [u8; SIZE]: Interleave,
{
    let place = side_by_side[(row / ROWS * blocks + at) * ROWS..][..ROWS].as_flattened();
    let mut block = [0u8; SIZE];
    for_places::<SIZE>(row % ROWS, |of_block, of_group| block[of_block].copy_from_slice(&place[of_group]));
    block
}

/// Where the parts of a block lie in it, and among those of all rows.
#[inline(always)]
fn for_places<const SIZE: usize>(lane: usize, mut each: impl FnMut(Range<usize>, Range<usize>))
where
    [u8; SIZE]: Interleave,
{
    let ((half, halves), (word, words)) = (<[u8; SIZE]>::HALVES, <[u8; SIZE]>::WORDS);
    for i in 0..halves {
        let (from, to) = (half + i * 2, (i * ROWS + lane) * 2);
        each(from..from + 2, to..to + 2);
    }
    for i in 0..words {
        let (from, to) = (word + i * 4, halves * ROWS * 2 + (i * ROWS + lane) * 4);
        each(from..from + 4, to..to + 4);
    }
}

/// Products of the rows that lie at `rows`, sixteen at a time, with `t` rows of `x`, `[rows, t]`.
pub(super) fn dots<const SIZE: usize>(rows: &[[u8; SIZE]], blocks: usize, x: &[Piece], t: usize, out: &mut [f32])
where
    [u8; SIZE]: Interleave,
{
    /// Rows of `x` whose sums are in registers at a time.
    const AT_ONCE: usize = 8;
    let of_row = x.len() / t;
    for (rows, out) in rows.chunks_exact(blocks * ROWS).zip(out.chunks_mut(ROWS * t)) {
        for (x, first) in x.chunks(AT_ONCE * of_row).zip((0..t).step_by(AT_ONCE)) {
            match x.len() / of_row {
                1 => products::<1, SIZE>(rows, blocks, x, (first, t), out),
                2 => products::<2, SIZE>(rows, blocks, x, (first, t), out),
                3 => products::<3, SIZE>(rows, blocks, x, (first, t), out),
                4 => products::<4, SIZE>(rows, blocks, x, (first, t), out),
                5 => products::<5, SIZE>(rows, blocks, x, (first, t), out),
                6 => products::<6, SIZE>(rows, blocks, x, (first, t), out),
                7 => products::<7, SIZE>(rows, blocks, x, (first, t), out),
                _ => products::<AT_ONCE, SIZE>(rows, blocks, x, (first, t), out),
            }
        }
    }
}

/// Products of sixteen rows with T rows of `x`, which are those from `first` on of `t`.
fn products<const T: usize, const SIZE: usize>(
    rows: &[[u8; SIZE]],
    blocks: usize,
    x: &[Piece],
    (first, t): (usize, usize),
    out: &mut [f32],
) where
    [u8; SIZE]: Interleave,
{
    let of_row = x.len() / T;
    let x: [&[Piece]; T] = std::array::from_fn(|i| &x[i * of_row..(i + 1) * of_row]);
    let mut sums = [[0f32; ROWS]; T];
    // SAFETY: matrices lie side by side where the CPU has the instructions alone; sixteen rows of so many blocks are there,
    // and the pieces of as many numbers of each row of `x`.
    unsafe { group::<T, SIZE>(rows.as_flattened().as_ptr(), blocks, x, &mut sums) };
    for (row, out) in out.chunks_mut(t).enumerate() {
        out[first..first + T].iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums[row]);
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW and VNNI; at `rows` sixteen rows of so many blocks lie side by side; each row of `x` has all
/// their pieces.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn group<const T: usize, const SIZE: usize>(
    rows: *const u8,
    blocks: usize,
    x: [&[Piece]; T],
    out: &mut [[f32; ROWS]; T],
) where
    [u8; SIZE]: Interleave,
{
    /// Bytes between what is asked for into the nearest cache and into the next.
    const FURTHER: usize = 2048;
    const LINE: usize = 64;
    let quads = <[u8; SIZE]>::QUADS;
    let pieces = <[u8; SIZE]>::PARTS * QUADS / quads;
    let (share, near) = (ROWS * SIZE / pieces, <[u8; SIZE]>::AHEAD);
    let mut sums = [_mm512_setzero_ps(); T];
    for at in 0..blocks {
        let block = rows.wrapping_add(at * ROWS * SIZE);
        // SAFETY: as the caller says, here and below.
        let scales = unsafe { <[u8; SIZE]>::scales(block) };
        for piece in 0..pieces {
            // A share of the lines with each piece: many at once would be waited for. Hints, which do not fail.
            for line in (piece * share..(piece + 1) * share).step_by(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(near + line).cast());
                _mm_prefetch::<_MM_HINT_T1>(block.wrapping_add(near + FURTHER + line).cast());
            }
            let mut weights = [_mm512_set1_epi32(0); QUADS];
            for (quad, weights) in weights[..quads].iter_mut().enumerate() {
                // SAFETY: as above.
                *weights = unsafe { <[u8; SIZE]>::quad(block, piece, quad) };
            }
            // SAFETY: as above.
            let (scale, minimum) = unsafe { <[u8; SIZE]>::of_piece(&scales, piece) };
            for t in 0..T {
                // SAFETY: as the caller says.
                let x = unsafe { x[t].get_unchecked(at * pieces + piece) };
                let mut dots = [_mm512_set1_epi32(0); 3];
                for (dot, (start, digits)) in dots.iter_mut().zip(x.starts.iter().zip(&x.digits)) {
                    *dot = _mm512_set1_epi32(*start);
                    for (weights, digits) in weights[..quads].iter().zip(digits) {
                        *dot = _mm512_dpbusd_epi32(*dot, *weights, _mm512_set1_epi32(*digits));
                    }
                }
                let high = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(dots[0]), dots[1]));
                let dot = _mm512_fmadd_ps(high, _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(dots[2]));
                sums[t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(x.scale)), sums[t]);
                if let Some(minimum) = minimum {
                    sums[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.sum), sums[t]);
                }
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        // SAFETY: sixteen numbers are written.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
    }
}
