//! Tiles of outputs in registers, on AVX-512.

use super::PANEL;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_load_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps,
};

/// Numbers of a register.
pub(super) const LANES: usize = 16;
/// Most rows of a tile: 28 of 32 registers hold its sums, beside two of columns and one of a row.
pub(super) const ROWS: usize = 14;
/// Rows, or stretches of them, that are asked for during a tile.
pub(super) const FETCHED: usize = 3;
/// Summands between two requests for what the next tiles need.
pub(super) const STEPS: usize = 8;
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
    /// What is needed soon: lines of numbers so many numbers apart, as long as the tile lasts.
    pub(super) next: [*const f32; FETCHED],
    pub(super) next_stride: usize,
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
                $(
                    // SAFETY: as the caller says.
                    ($count, true) => unsafe { tile_of::<$count, 2>(operands, outputs) },
                    // SAFETY: as above.
                    ($count, false) => unsafe { tile_of::<$count, 1>(operands, outputs) },
                )*
                _ => unreachable!("{rows} rows of at most {ROWS}"),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// As [`tile`], for `R` rows and `V` registers of columns.
#[target_feature(enable = "avx512f")]
#[inline(never)]
unsafe fn tile_of<const R: usize, const V: usize>(operands: Operands, outputs: Outputs) {
    let Operands { a, a_stride, mut b, summands, next, next_stride } = operands;
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let mut rows = Rows::new(a, a_stride);
    let mut ahead = Ahead { c: outputs.c.wrapping_add(V * LANES), stride: outputs.stride, rows: R, next, next_stride };
    for _ in 0..summands / STEPS {
        macro_rules! steps {
            ($($k:literal)*) => {
                // SAFETY: there are so many summands.
                $(unsafe { step::<R, V, $k, false>(&mut sums, rows, b) };)*
            };
        }
        // [`STEPS`] of them, written out: a loop with a counter of its own takes longer.
        steps!(0 1 2 3 4 5 6 7);
        rows.advance(STEPS);
        b = b.wrapping_add(STEPS * PANEL);
        ahead.fetch();
    }
    for _ in 0..summands % STEPS {
        // SAFETY: as above.
        unsafe { step::<R, V, 0, true>(&mut sums, rows, b) };
        rows.advance(1);
        b = b.wrapping_add(PANEL);
    }
    // SAFETY: as the caller says.
    unsafe { write(sums, outputs) };
}

/// One summand more of each output: number `K` of each row, and the columns of row `K` of `b`.
///
/// `REST` tells the two places apart that call it with the same numbers: a function that is called in one place alone is
/// made part of it, so that the sums stay in registers.
///
/// # Safety
/// As of [`tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn step<const R: usize, const V: usize, const K: usize, const REST: bool>(
    sums: &mut [[__m512; V]; R],
    rows: Rows,
    b: *const f32,
) {
    let b = b.wrapping_add(K * PANEL);
    let mut columns = [_mm512_setzero_ps(); V];
    for (v, columns) in columns.iter_mut().enumerate() {
        fetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL + v * LANES));
        // SAFETY: a panel has 32 columns of each summand, in cache lines of their own.
        *columns = unsafe { _mm512_load_ps(b.add(v * LANES)) };
    }
    macro_rules! rows {
        ($($r:literal)*) => {
            $(if $r < R {
                // SAFETY: there are `R` rows of so many summands.
                let x = unsafe { rows.number::<$r, K>() };
                for (sum, columns) in sums[$r].iter_mut().zip(columns) {
                    add_product(sum, x, columns);
                }
            })*
        };
    }
    // Written out, so that each row's address is known where its instruction is.
    rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
}

/// `sum += x * columns`, where it is written: the compiler would gather what many products read before it does them, and
/// have no registers for it.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_product(sum: &mut __m512, x: __m512, columns: __m512) {
    // SAFETY: the instruction changes the sum alone.
    unsafe {
        asm!(
            "vfmadd231ps {sum}, {x}, {columns}",
            sum = inout(zmm_reg) *sum,
            x = in(zmm_reg) x,
            columns = in(zmm_reg) columns,
            options(nomem, nostack, preserves_flags),
        );
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

/// What the next tiles need: the outputs of the next, and rows.
struct Ahead {
    c: *const f32,
    stride: usize,
    /// Rows of outputs that are still to be asked for.
    rows: usize,
    next: [*const f32; FETCHED],
    next_stride: usize,
}

impl Ahead {
    #[inline(always)]
    fn fetch(&mut self) {
        fetch::<_MM_HINT_ET0>(self.c);
        fetch::<_MM_HINT_ET0>(self.c.wrapping_add(LANES));
        self.c = self.c.wrapping_add(if self.rows > 1 { self.stride } else { 0 });
        self.rows = self.rows.saturating_sub(1);
        for next in &mut self.next {
            fetch::<_MM_HINT_T1>(*next);
            *next = next.wrapping_add(self.next_stride);
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
#[derive(Clone, Copy)]
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

    /// Number `K` of a row in all places; the compiler would take a register for each row's address.
    ///
    /// # Safety
    /// The CPU has AVX-512; the row has the number.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn number<const ROW: usize, const K: usize>(self) -> __m512 {
        let from = if ROW < 7 { self.first } else { self.eighth };
        macro_rules! broadcast {
            ($address:literal, $stride:expr) => {{
                let x: __m512;
                // SAFETY: four bytes are read, of a number that is there. That no memory changes is not said, so that
                // columns of later steps are not read before, whose registers the sums need.
                unsafe {
                    asm!(
                        concat!("vbroadcastss {x}, dword ptr [{from} + ", $address, " + {at}]"),
                        x = out(zmm_reg) x,
                        from = in(reg) from,
                        stride = in(reg) $stride,
                        at = const K * size_of::<f32>(),
                        options(nostack, preserves_flags),
                    );
                }
                x
            }};
        }
        match ROW % 7 {
            0 => broadcast!("{stride}", 0usize),
            1 => broadcast!("{stride}", self.stride),
            2 => broadcast!("2 * {stride}", self.stride),
            3 => broadcast!("{stride}", self.stride_3),
            4 => broadcast!("4 * {stride}", self.stride),
            5 => broadcast!("{stride}", self.stride_5),
            _ => broadcast!("2 * {stride}", self.stride_3),
        }
    }
}
