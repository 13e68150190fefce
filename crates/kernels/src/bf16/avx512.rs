//! Blocks of outputs on the vector units of x86-64 (`vdpbf16ps`, `vpdpbusd`).

use super::{BLOCK, Packed};
use std::arch::x86_64::{
    __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32,
};

/// Rows whose sums are in registers at a time: 16 of 32, beside two of `b`.
const ROWS: usize = 8;

/// As [`crate::amx::block`], without its fetching ahead, of a panel of `packed` at `b`; nothing is kept of eight bits.
///
/// # Safety
/// The CPU has AVX-512 with units for the format; the rest as of [`crate::amx::block`].
#[inline]
pub(super) unsafe fn block_of(
    packed: &Packed,
    panel: usize,
    (a, b, steps): ((*const u16, usize), *const u16, usize),
    c: (*mut f32, usize),
    keep: bool,
) {
    // SAFETY: as the caller says; a matrix of eight bits has the sums of whole panels.
    unsafe {
        match &packed.columns {
            None => block(a, b, steps, c, keep),
            Some(columns) => block_of_bytes(a, (b, columns.sums[panel * BLOCK..][..BLOCK].as_ptr()), steps, c),
        }
    }
}

/// The instruction takes one side without signs: 128 is added to the numbers of `a`, and 128 times the sums of the columns
/// taken away.
///
/// # Safety
/// As of [`block_of`]; there are 32 sums.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn block_of_bytes(
    (a, a_stride): (*const u16, usize),
    (b, column_sums): (*const u16, *const i32),
    steps: usize,
    (c, c_stride): (*mut f32, usize),
) {
    for first in (0..BLOCK).step_by(ROWS) {
        // SAFETY: there are 32 sums.
        let taken =
            [0, 1].map(|half| unsafe { _mm512_slli_epi32::<7>(_mm512_loadu_si512(column_sums.add(half * 16).cast())) });
        let mut sums = [taken.map(|taken| _mm512_sub_epi32(_mm512_set1_epi32(0), taken)); ROWS];
        for quad in 0..steps * BLOCK / 2 {
            // SAFETY: `b` has `32 * steps` lines, two for each four summands; `a` has 32 rows of as many fours.
            unsafe {
                let columns = [0, 1].map(|half| _mm512_loadu_si512(b.add((quad * 2 + half) * 32).cast()));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = a.byte_add((first + row) * a_stride).cast::<u32>().add(quad).read() ^ 0x8080_8080;
                    let x = _mm512_set1_epi32(x as i32);
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbusd_epi32(*sum, x, columns);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (half, sum) in sums.into_iter().enumerate() {
                // SAFETY: `c` has 32 rows of 32 numbers.
                unsafe { _mm512_storeu_si512(c.add((first + row) * c_stride + half * 16).cast(), sum) };
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512 with bf16; the rest as of [`crate::amx::block`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block(
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
