//! Blocks of outputs on the vector units of x86-64 (`vdpbf16ps`).

use super::BLOCK;
use std::arch::x86_64::{
    __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Rows whose sums are in registers at a time: 16 of 32, beside two of `b`.
const ROWS: usize = 8;

/// As [`super::amx::block`], without its fetching ahead.
///
/// # Safety
/// The CPU has AVX-512 with bf16; the rest as of [`super::amx::block`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn block(
    (a, a_stride): (*const u16, usize),
    b: *const u16,
    steps: usize,
    (c, c_stride): (*mut f32, usize),
    keep: bool,
) {
    for first in (0..BLOCK).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for pair in 0..steps * BLOCK / 2 {
            // SAFETY: `b` has `32 * steps` lines, two for each pair of summands; `a` has 32 rows of as many pairs.
            unsafe {
                let line = |half: usize| -> __m512bh {
                    std::mem::transmute(_mm512_loadu_si512(b.add((pair * 2 + half) * 32).cast()))
                };
                let columns = [line(0), line(1)];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = a.byte_add((first + row) * a_stride).cast::<i32>().add(pair).read();
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x));
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, x, columns);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (half, mut sum) in sums.into_iter().enumerate() {
                // SAFETY: `c` has 32 rows of 32 numbers.
                unsafe {
                    let c = c.add((first + row) * c_stride + half * 16);
                    if keep {
                        sum = _mm512_add_ps(sum, _mm512_loadu_ps(c));
                    }
                    _mm512_storeu_ps(c, sum);
                }
            }
        }
    }
}
