//! Parts of matrices copied to where a tile reads them, on AVX-512.

use super::avx512::{LANES, first};
use std::arch::x86_64::{
    __m512, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_unpackhi_ps, _mm512_unpacklo_ps,
};

/// A part of a matrix: element (i, j) is `i * row_stride + j * col_stride` numbers from its first.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) first: *const f32,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Part {
    /// Copies it to rows `stride` numbers apart; behind its columns come zeros, up to `width` of them together.
    ///
    /// # Safety
    /// The CPU has AVX-512, the part is there, and there is room for its rows, `width` numbers each.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn copy_to(&self, to: *mut f32, stride: usize, width: usize) {
        // SAFETY: as the caller says.
        unsafe {
            match (self.row_stride, self.col_stride) {
                (_, 1) => self.copy_rows(to, stride, width),
                (1, _) => self.copy_columns(to, stride, width),
                _ => self.copy_each(to, stride, width),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn copy_rows(&self, to: *mut f32, stride: usize, width: usize) {
        let whole = self.columns / LANES * LANES;
        for row in 0..self.rows {
            // SAFETY: the row is there, and room for it; what is masked out is not touched.
            unsafe {
                let (from, to) = (self.first.add(row * self.row_stride), to.add(row * stride));
                for column in (0..whole).step_by(LANES) {
                    _mm512_storeu_ps(to.add(column), _mm512_loadu_ps(from.add(column)));
                }
                for column in (whole..width).step_by(LANES) {
                    let places = first(self.columns.saturating_sub(column));
                    let numbers = _mm512_maskz_loadu_ps(places, from.wrapping_add(column));
                    _mm512_mask_storeu_ps(to.add(column), first(width - column), numbers);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn copy_columns(&self, to: *mut f32, stride: usize, width: usize) {
        for column in (0..width).step_by(LANES) {
            for row in (0..self.rows).step_by(LANES) {
                let from = self.first.wrapping_add(column * self.col_stride + row);
                let counts = (self.columns.saturating_sub(column), self.rows - row);
                // SAFETY: so many columns of so many numbers are there, and room for each row.
                unsafe {
                    let block = transposed((from, self.col_stride), counts);
                    for (i, numbers) in block.into_iter().enumerate().take(self.rows - row) {
                        _mm512_mask_storeu_ps(to.add((row + i) * stride + column), first(width - column), numbers);
                    }
                }
            }
        }
    }

    unsafe fn copy_each(&self, to: *mut f32, stride: usize, width: usize) {
        for row in 0..self.rows {
            for column in 0..width {
                // SAFETY: the number is there if it is one of the part, and room for it.
                unsafe {
                    let from = self.first.wrapping_add(row * self.row_stride + column * self.col_stride);
                    *to.add(row * stride + column) = if column < self.columns { *from } else { 0.0 };
                }
            }
        }
    }
}

/// The transpose of at most sixteen lines of at most sixteen numbers; what is not there is zero.
///
/// # Safety
/// The CPU has AVX-512; the lines are there, `stride` numbers apart.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn transposed((from, stride): (*const f32, usize), (lines, numbers): (usize, usize)) -> [__m512; LANES] {
    let mut x = [_mm512_setzero_ps(); LANES];
    for (i, x) in x.iter_mut().enumerate().take(lines) {
        // SAFETY: as the caller says; what is masked out is not read.
        *x = unsafe { _mm512_maskz_loadu_ps(first(numbers), from.add(i * stride)) };
    }
    // In quarter q of `quads[4 j + i]`: number `4 q + i` of lines `4 j` to `4 j + 3`.
    let mut quads = x;
    for i in (0..LANES).step_by(4) {
        let (low, high) = (_mm512_unpacklo_ps(x[i], x[i + 1]), _mm512_unpackhi_ps(x[i], x[i + 1]));
        let (next_low, next_high) = (_mm512_unpacklo_ps(x[i + 2], x[i + 3]), _mm512_unpackhi_ps(x[i + 2], x[i + 3]));
        quads[i] = _mm512_shuffle_ps::<0b01_00_01_00>(low, next_low);
        quads[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low, next_low);
        quads[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high, next_high);
        quads[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high, next_high);
    }
    let even = |a, b| _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
    let odd = |a, b| _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
    let mut out = quads;
    for i in 0..4 {
        let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
        out[i] = even(even(a, b), even(c, d));
        out[4 + i] = even(odd(a, b), odd(c, d));
        out[8 + i] = odd(even(a, b), even(c, d));
        out[12 + i] = odd(odd(a, b), odd(c, d));
    }
    out
}
