//! Tiles of outputs in registers, on AVX-512.

use super::PANEL;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps,
    _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

/// Numbers of a register.
pub(super) const LANES: usize = 16;
/// Most rows of a tile: 28 of 32 registers hold its sums, beside two of columns and one of a row.
pub(super) const ROWS: usize = 14;
/// Rows that are asked for during a tile.
pub(super) const FETCHED: usize = 3;
/// Summands between two requests for what the next tiles need.
const STEPS: usize = 8;
/// Columns are asked for so many summands before they are read.
const AHEAD: usize = 12;

/// The first `count` of sixteen places; all of them if there are more.
pub(super) fn first(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// What a tile multiplies: rows of numbers side by side, `a_stride` numbers apart, and a panel, `[summands, 32]`.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    pub(super) b: *const f32,
    pub(super) summands: usize,
    /// Rows that are needed soon.
    pub(super) next: [*const f32; FETCHED],
}

/// Where the outputs of a tile go: rows `stride` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) columns: usize,
    /// Whether the products are added to what is there.
    pub(super) keep: bool,
}

/// `c = a b` or `c += a b`: `[rows, summands] x [summands, columns]`.
///
/// # Safety
/// The CPU has AVX-512. There are at most [`ROWS`] rows and at most [`PANEL`] columns; `b` is at the start of a cache line;
/// the outputs are there, with `keep` numbers.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile(rows: usize, operands: Operands, outputs: Outputs) {
    macro_rules! tiles {
        ($($count:literal)*) => {
            match (rows, outputs.columns > LANES) {
                // SAFETY: as the caller says.
                $(($count, true) => unsafe { tile_of::<$count, 2>(operands, outputs) },
                ($count, false) => unsafe { tile_of::<$count, 1>(operands, outputs) },)*
                _ => unreachable!("{rows} rows of at most {ROWS}"),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// As [`tile`], for `R` rows and `V` registers of columns.
#[target_feature(enable = "avx512f")]
unsafe fn tile_of<const R: usize, const V: usize>(operands: Operands, outputs: Outputs) {
    let Operands { a, a_stride, mut b, summands, mut next } = operands;
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let mut rows = Rows::new(a, a_stride);
    let mut next_c = outputs.c.wrapping_add(V * LANES);
    for body in 0..summands / STEPS {
        macro_rules! steps {
            ($($k:literal)*) => {
                // SAFETY: there are so many summands.
                $(unsafe { step(&mut sums, &mut rows, b, $k) };)*
            };
        }
        // [`STEPS`] of them, written out: a loop with a counter of its own takes longer.
        steps!(0 1 2 3 4 5 6 7);
        rows.advance(STEPS);
        b = b.wrapping_add(STEPS * PANEL);
        // The next tile's outputs, and rows of the tiles after the last panel.
        fetch::<_MM_HINT_ET0>(next_c);
        fetch::<_MM_HINT_ET0>(next_c.wrapping_add(LANES));
        next_c = next_c.wrapping_add(if body + 1 < R { outputs.stride } else { 0 });
        for row in &mut next {
            fetch::<_MM_HINT_T1>(*row);
            *row = row.wrapping_add(STEPS);
        }
    }
    for k in 0..summands % STEPS {
        // SAFETY: as above.
        unsafe { step(&mut sums, &mut rows, b, k) };
    }
    // SAFETY: as the caller says.
    unsafe { write(sums, outputs) };
}

/// One summand more of each output: number `k` of each row, and the columns of row `k` of `b`.
///
/// # Safety
/// As of [`tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn step<const R: usize, const V: usize>(sums: &mut [[__m512; V]; R], rows: &mut Rows, b: *const f32, k: usize) {
    rows.settle();
    let b = b.wrapping_add(k * PANEL);
    let mut columns = [_mm512_setzero_ps(); V];
    for (v, columns) in columns.iter_mut().enumerate() {
        fetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL + v * LANES));
        // SAFETY: a panel has 32 columns of each summand, in cache lines of their own.
        *columns = unsafe { _mm512_load_ps(b.add(v * LANES)) };
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: there are `R` rows of so many summands.
        let x = _mm512_set1_ps(unsafe { *rows.of(r).add(k) });
        for (sum, columns) in sums.iter_mut().zip(columns) {
            *sum = _mm512_fmadd_ps(x, columns, *sum);
        }
    }
}

/// Writes the sums, or adds them to what is there.
///
/// # Safety
/// As of [`tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn write<const R: usize, const V: usize>(sums: [[__m512; V]; R], outputs: Outputs) {
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, mut sum) in sums.into_iter().enumerate() {
            let places = first(outputs.columns.saturating_sub(v * LANES));
            // SAFETY: the outputs are there, in these places; with `keep` they hold numbers.
            unsafe {
                let c = outputs.c.add(r * outputs.stride + v * LANES);
                if outputs.keep {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(places, c), sum);
                }
                _mm512_mask_storeu_ps(c, places, sum);
            }
        }
    }
}

/// Asks for the cache line of an address, which need not be one of ours.
#[inline(always)]
fn fetch<const HINT: i32>(address: *const f32) {
    // SAFETY: a hint, which reads nothing and does not fail.
    unsafe { _mm_prefetch::<HINT>(address.cast()) };
}

/// Where rows begin: addresses of all of them follow from these five registers within the instructions that read them.
struct Rows {
    first: *const f32,
    eighth: *const f32,
    /// Bytes from a row to the next, the third and the fifth after it.
    stride: usize,
    stride_3: usize,
    stride_5: usize,
}

impl Rows {
    #[inline(always)]
    fn new(first: *const f32, stride: usize) -> Self {
        let (stride, eighth) = (stride * size_of::<f32>(), first.wrapping_add(7 * stride));
        Self { first, eighth, stride, stride_3: 3 * stride, stride_5: 5 * stride }
    }

    #[inline(always)]
    fn advance(&mut self, numbers: usize) {
        self.first = self.first.wrapping_add(numbers);
        self.eighth = self.eighth.wrapping_add(numbers);
    }

    /// Keeps the compiler from taking a register for each row, of which there are not enough, and from reading columns of
    /// later steps, whose registers the sums need.
    #[inline(always)]
    fn settle(&mut self) {
        // SAFETY: no instruction; the values stay what they are.
        unsafe {
            asm!(
                "/* {0} {1} {2} {3} {4} */",
                inout(reg) self.first,
                inout(reg) self.eighth,
                inout(reg) self.stride,
                inout(reg) self.stride_3,
                inout(reg) self.stride_5,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn of(&self, row: usize) -> *const f32 {
        let from = if row < 7 { self.first } else { self.eighth };
        from.wrapping_byte_add(match row % 7 {
            0 => 0,
            1 => self.stride,
            2 => 2 * self.stride,
            3 => self.stride_3,
            4 => 4 * self.stride,
            5 => self.stride_5,
            _ => 2 * self.stride_3,
        })
    }
}
