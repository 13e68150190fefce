//! Numbers of 24 bits as sums of three bf16 numbers.

use super::avx512::{LANES, first};
use super::pack::Part;
use super::{A_STRIDE, Line, MAX_SUMMANDS, numbers};
use crate::amx::{LINES_OF_STEP, PIECES};
use crate::bf16::BLOCK;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_extracti64x4_epi64, _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_store_si512, _mm512_sub_ps,
};

/// The numbers rounded to bf16, those of the first register in the low half; the same as f32 bits, shifted down, of each
/// register; and what the rounding leaves.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn rounded(numbers: [__m512; 2]) -> (__m512i, [__m512i; 2], [__m512; 2]) {
    // SAFETY: both types are 512 bits, of which every pattern is one of whole numbers.
    let line: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(numbers[1], numbers[0])) };
    let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(line));
    let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(line));
    let rest = |number, bits| _mm512_sub_ps(number, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)));
    (line, [low, high], [rest(numbers[0], low), rest(numbers[1], high)])
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(line: &mut Line, bits: __m512i) {
    // SAFETY: a line is 64 bytes, at a multiple of them.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), bits) };
}

impl Part {
    /// The pieces of some rows, as [`crate::amx::block_of_pieces`] takes them; after
    /// the last number of a row there are zeros, for rows that are not there whatever there was.
    ///
    /// # Safety
    /// The CPU has AVX-512 with bf16. The part is there, at most 32 rows of at most [`MAX_SUMMANDS`] numbers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn rows_in_pieces(&self, lines: &mut [Line], scratch: &mut Vec<Line>) {
        debug_assert!(self.rows <= BLOCK && self.columns <= MAX_SUMMANDS);
        let (mut from, mut stride) = (self.first, self.row_stride);
        if self.col_stride != 1 {
            let room = numbers(scratch, BLOCK * A_STRIDE);
            // SAFETY: the part is there, as the caller says, and room for it.
            unsafe { self.copy_to(room, A_STRIDE, self.columns) };
            (from, stride) = (room, A_STRIDE);
        }
        for (step, lines) in lines.chunks_mut(LINES_OF_STEP).enumerate() {
            let left = self.columns.saturating_sub(step * BLOCK);
            let places = [first(left), first(left.saturating_sub(LANES))];
            for row in 0..self.rows {
                let from = from.wrapping_add(row * stride + step * BLOCK);
                // SAFETY: what is masked out is not read.
                let mut left_over = unsafe {
                    [_mm512_maskz_loadu_ps(places[0], from), _mm512_maskz_loadu_ps(places[1], from.wrapping_add(LANES))]
                };
                for piece in 0..PIECES {
                    let (line, _, rest) = rounded(left_over);
                    store(&mut lines[piece * BLOCK + row], line);
                    left_over = rest;
                }
            }
        }
    }

    /// The pieces of some columns, as [`crate::amx::block_of_pieces`] takes them;
    /// after the last column and the last number there are zeros.
    ///
    /// # Safety
    /// As of [`Self::rows_in_pieces`], for at most 32 columns of at most [`MAX_SUMMANDS`] numbers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn columns_in_pieces(&self, lines: &mut [Line], scratch: &mut Vec<Line>) {
        debug_assert!(self.columns <= BLOCK && self.rows <= MAX_SUMMANDS);
        let (mut from, mut stride) = (self.first, self.row_stride);
        if self.col_stride != 1 || self.columns < BLOCK {
            let room = numbers(scratch, MAX_SUMMANDS * BLOCK);
            // SAFETY: the part is there, as the caller says, and room for it.
            unsafe { self.copy_to(room, BLOCK, BLOCK) };
            (from, stride) = (room, BLOCK);
        }
        let load = |summand: usize, half: usize| {
            if summand >= self.rows {
                return _mm512_setzero_ps();
            }
            // SAFETY: the summand is there, and 32 columns of it.
            unsafe { _mm512_loadu_ps(from.add(summand * stride + half * LANES)) }
        };
        for (step, lines) in lines.chunks_mut(LINES_OF_STEP).enumerate() {
            for (pair, half) in (0..LANES).flat_map(|pair| [(pair, 0), (pair, 1)]) {
                let summand = step * BLOCK + 2 * pair;
                let mut left_over = [load(summand, half), load(summand + 1, half)];
                for piece in 0..PIECES {
                    let (_, [even, odd], rest) = rounded(left_over);
                    let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                    store(&mut lines[piece * BLOCK + half * LANES + pair], pairs);
                    left_over = rest;
                }
            }
        }
    }
}
