//! Blocks of outputs on the vector units of x86-64 (`vdpbf16ps`, `vpdpbusd`).

use super::{BLOCK, Packed};
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32,
};

/// Rows whose sums are in registers at a time: 16 of 32, beside two of `b`.
const ROWS: usize = 8;

const _: () = assert!(ROWS == 8, "`sized` has each number of rows");

/// Calls `$of::<R, H>` for so many rows, [`ROWS`] at the most.
macro_rules! sized {
    ($rows:expr, $halves:literal, $of:ident $arguments:tt) => {
        match $rows {
            1 => $of::<1, $halves>$arguments,
            2 => $of::<2, $halves>$arguments,
            3 => $of::<3, $halves>$arguments,
            4 => $of::<4, $halves>$arguments,
            5 => $of::<5, $halves>$arguments,
            6 => $of::<6, $halves>$arguments,
            7 => $of::<7, $halves>$arguments,
            _ => $of::<ROWS, $halves>$arguments,
        }
    };
}

/// A panel of 32 columns, or of what there are and zeros.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    b: *const u16,
    /// Pairs of lines that hold numbers.
    pairs: usize,
    /// Of sixteen columns, that hold numbers.
    halves: usize,
    /// Of eight bits: the sums of the columns.
    sums: Option<*const i32>,
}

impl Packed {
    /// Panel `panel` at `b`, from summand `from` on, so many steps of it.
    #[inline(always)]
    pub(super) fn panel_at(&self, b: *const u16, panel: usize, (from, steps): (usize, usize)) -> Panel {
        let halves = if self.n - panel * BLOCK <= BLOCK / 2 { 1 } else { 2 };
        let (all, sums) = (steps * BLOCK / 2, self.columns.as_ref());
        // Numbers of eight bits were turned: what fills a row up is none of zeros.
        let pairs = if sums.is_some() { all } else { all.min((self.k - from).div_ceil(2)) };
        Panel { b, pairs, halves, sums: sums.map(|columns| columns.sums[panel * BLOCK..][..BLOCK].as_ptr()) }
    }
}

/// As [`crate::amx::block`] of the first `rows` rows, of which `a` has the first `present`: the others are zeros. Nothing is
/// kept of eight bits.
///
/// # Safety
/// The CPU has AVX-512 with units for the format; `a` has the rows that are present, `c` has `rows`; the rest as of
/// [`crate::amx::block`].
#[inline]
pub(super) unsafe fn block_of(
    panel: Panel,
    (a, a_stride): (*const u16, usize),
    (c, c_stride): (*mut f32, usize),
    (present, rows): (usize, usize),
    keep: bool,
) {
    for first in (0..present).step_by(ROWS) {
        // SAFETY: as the caller says; a matrix of eight bits has the sums of whole panels.
        unsafe {
            let (a, c) = ((a.byte_add(first * a_stride), a_stride), (c.add(first * c_stride), c_stride));
            match (panel.sums, panel.halves) {
                (None, 1) => sized!(present - first, 1, sums_of_rows(a, panel, c, keep)),
                (None, _) => sized!(present - first, 2, sums_of_rows(a, panel, c, keep)),
                (Some(of_columns), 1) => sized!(present - first, 1, sums_of_bytes(a, (panel, of_columns), c)),
                (Some(of_columns), _) => sized!(present - first, 2, sums_of_bytes(a, (panel, of_columns), c)),
            }
        }
    }
    if !keep {
        // SAFETY: as the caller says.
        (present..rows).for_each(|row| unsafe { c.add(row * c_stride).write_bytes(0, BLOCK) });
    }
}

/// The instruction takes one side without signs: 128 is added to the numbers of `a`, and 128 times the sums of the columns
/// taken away.
///
/// # Safety
/// As of [`block_of`], of `R` rows; there are 32 sums.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn sums_of_bytes<const R: usize, const H: usize>(
    (a, a_stride): (*const u16, usize),
    (panel, column_sums): (Panel, *const i32),
    (c, c_stride): (*mut f32, usize),
) {
    // SAFETY: there are 32 sums.
    let taken: [_; H] = std::array::from_fn(|half| unsafe {
        _mm512_slli_epi32::<7>(_mm512_loadu_si512(column_sums.add(half * 16).cast()))
    });
    let mut sums = [taken.map(|taken| _mm512_sub_epi32(_mm512_set1_epi32(0), taken)); R];
    for quad in 0..panel.pairs {
        // SAFETY: the panel has two lines for each four summands; `a` has rows of as many fours.
        unsafe {
            let columns = lines::<H>(panel.b, quad);
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = a.byte_add(row * a_stride).cast::<u32>().add(quad).read() ^ 0x8080_8080;
                let x = _mm512_set1_epi32(x as i32);
                for (sum, columns) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, columns);
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        // SAFETY: `c` has the rows of 32 numbers.
        unsafe {
            let c = c.add(row * c_stride);
            for (half, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_si512(c.add(half * 16).cast(), sum);
            }
            if H == 1 {
                _mm512_storeu_ps(c.add(16), _mm512_setzero_ps());
            }
        }
    }
}

/// # Safety
/// As of [`block_of`], of `R` rows and a panel of `H` halves.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn sums_of_rows<const R: usize, const H: usize>(
    (a, a_stride): (*const u16, usize),
    panel: Panel,
    (c, c_stride): (*mut f32, usize),
    keep: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); H]; R];
    for pair in 0..panel.pairs {
        // SAFETY: the panel has two lines for each pair of summands; `a` has rows of as many pairs.
        unsafe {
            let columns = lines::<H>(panel.b, pair).map(|line| std::mem::transmute::<__m512i, __m512bh>(line));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = a.byte_add(row * a_stride).cast::<i32>().add(pair).read();
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x));
                for (sum, columns) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, x, columns);
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        // SAFETY: `c` has the rows of 32 numbers.
        unsafe {
            let c = c.add(row * c_stride);
            for (half, mut sum) in sums.into_iter().enumerate() {
                let c = c.add(half * 16);
                if keep {
                    sum = _mm512_add_ps(sum, _mm512_loadu_ps(c));
                }
                _mm512_storeu_ps(c, sum);
            }
            if H == 1 && !keep {
                _mm512_storeu_ps(c.add(16), _mm512_setzero_ps());
            }
        }
    }
}

/// Of the two lines of a panel that hold summands `number` of its columns, the first `H`.
///
/// # Safety
/// The panel at `b` has them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn lines<const H: usize>(b: *const u16, number: usize) -> [__m512i; H] {
    // SAFETY: as the caller says.
    std::array::from_fn(|half| unsafe { _mm512_loadu_si512(b.add((number * 2 + half) * 32).cast()) })
}
