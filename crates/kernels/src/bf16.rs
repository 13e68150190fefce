//! Products of f32 rows with bf16 weights, summed in f32, on whatever units the machine has.
//!
//! The weights are packed once: panels of 32 columns, two consecutive summands of a column side by side, which is
//! what both AMX tiles (`tdpbf16ps`) and AVX-512 (`vdpbf16ps`) read. The rows are rounded to bf16 on their way in.
//! On tiles and vectors every output is summed over its own row in an order that depends on nothing but the matrix, so
//! that a row's result is the same bits alone and in any company; where products are added to numbers that are there
//! already, and on the portable path, to the rounding of f32.

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::cpu::Output;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod int8;
mod job;
mod portable;
#[cfg(test)]
mod tests;
mod transposed;

pub(crate) use blocks::{Blocks, ByLine, Outputs, Rounded};
use job::Job;
pub(crate) use transposed::transposed_product;

/// Columns of a panel, and rows and columns of a block of outputs.
pub(crate) const BLOCK: usize = 32;
/// Rows below which work is shared out by panels.
const LEAST_ROWS: usize = 128;
/// The most rows of a task that meets panels in turn: the rows stay in a core's second-level cache.
pub(crate) const FEW_ROWS: usize = 256;
/// The most rows of a task that meets groups of panels.
const MANY_ROWS: usize = 2048;
/// Bytes of a panel, and of 32 rows, up to which the rows stay in the nearest cache while a group passes by.
const NEAR_BYTES: usize = 48 << 10;
/// The most rows that are rounded at a time.
const ROUNDED_ROWS: usize = 512;

/// 32 bf16 numbers in a cache line of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u16; 32]);

fn zero_lines(count: usize) -> Vec<Line> {
    vec![Line([0; 32]); count]
}

/// What the numbers of a packed matrix, and of the rows that meet it, are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Products summed in f32.
    Bf16,
    /// Whole numbers, rows and columns with a scale each ([`int8`]); products summed in 32 bits, without rounding.
    Int8,
}

impl Format {
    /// Summands that are multiplied in one step: a line of a row.
    fn step(self) -> usize {
        match self {
            Self::Bf16 => BLOCK,
            Self::Int8 => int8::STEP,
        }
    }
}

/// The units that do the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    /// Tiles of 16 x 32: sixteen times the rate of f32.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Vectors: twice the rate of f32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The f32 product, on numbers rounded to bf16.
    Portable,
}

impl Units {
    /// The best of this machine.
    pub(crate) fn best(format: Format) -> Self {
        static BEST: [OnceLock<Units>; 2] = [const { OnceLock::new() }; 2];
        *BEST[format as usize].get_or_init(|| Self::available(format)[0])
    }

    /// All of this machine, best first.
    pub(crate) fn available(format: Format) -> Vec<Self> {
        let mut units = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected;
            if amx::is_available(format) {
                units.push(Self::Amx);
            }
            let has_vectors = is_x86_feature_detected!("avx512f")
                && match format {
                    Format::Bf16 => is_x86_feature_detected!("avx512bf16"),
                    Format::Int8 => is_x86_feature_detected!("avx512vnni"),
                };
            if has_vectors {
                units.push(Self::Avx512);
            }
        }
        units.push(Self::Portable);
        units
    }
}

/// A matrix `[k, n]` of rounded numbers, packed for products `[t, k] x [k, n]`.
pub(crate) struct Packed {
    lines: Vec<Line>,
    k: usize,
    n: usize,
    /// Of numbers of eight bits.
    columns: Option<int8::Columns>,
}

/// The upper half of the f32 bits, rounded to nearest even.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A comparison of integers, unlike one of floats, does not keep loops from becoming vector instructions.
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { 0x7fc0_0000 } else { rounded } >> 16) as u16
}

#[cfg(target_feature = "avx512bf16")]
#[inline(always)]
fn round_line(x: &[f32; BLOCK]) -> Line {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_loadu_ps};
    let (low, high) = x.split_at(BLOCK / 2);
    // SAFETY: the program is compiled for the instructions; each half is 16 numbers, and the result the bits of 32. What
    // is too small for a normal number becomes zero, as it does in the products.
    unsafe {
        let numbers = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high.as_ptr()), _mm512_loadu_ps(low.as_ptr()));
        std::mem::transmute::<_, Line>(numbers)
    }
}

#[cfg(not(target_feature = "avx512bf16"))]
#[inline(always)]
fn round_line(x: &[f32; BLOCK]) -> Line {
    // Lengths known to the compiler and no closure: the loop becomes vector instructions.
    let mut line = [0; BLOCK];
    for (to, from) in line.iter_mut().zip(x) {
        *to = round(*from);
    }
    Line(line)
}

fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

impl Packed {
    /// Packs `[k, n]` numbers as bf16; the number of row i and column j stands at `at(i, j)` of `values`.
    pub(crate) fn new(values: &[f32], (k, n): (usize, usize), at: impl Fn(usize, usize) -> usize + Sync) -> Self {
        let lines_of_panel = k.div_ceil(BLOCK) * BLOCK;
        let mut lines = zero_lines(n.div_ceil(BLOCK) * lines_of_panel);
        lines.par_chunks_mut(lines_of_panel).enumerate().for_each(|(panel, lines)| {
            for j in 0..BLOCK.min(n - panel * BLOCK) {
                for i in 0..k {
                    lines[i / 2 * 2 + j / 16].0[j % 16 * 2 + i % 2] = round(values[at(i, panel * BLOCK + j)]);
                }
            }
        });
        Self { lines, k, n, columns: None }
    }

    /// What its numbers are.
    pub(crate) fn format(&self) -> Format {
        if self.columns.is_some() { Format::Int8 } else { Format::Bf16 }
    }

    fn lines_of_panel(&self) -> usize {
        self.k.div_ceil(self.format().step()) * BLOCK
    }

    /// n.
    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    /// Column `j`, `[k]`.
    pub(crate) fn column(&self, j: usize, out: &mut [f32]) {
        if let Some(columns) = &self.columns {
            return self.column_of_bytes(columns, j, out);
        }
        let panel = &self.lines[j / BLOCK * self.lines_of_panel()..];
        for (i, out) in out.iter_mut().enumerate() {
            *out = widen(panel[i / 2 * 2 + j % BLOCK / 16].0[j % 16 * 2 + i % 2]);
        }
    }

    /// `y = x B` over the columns `columns` and the summands `summands` of the matrix, all of them where it is of eight
    /// bits: row i of `x` has `summands.len()` numbers, row i of `y` starts at `i * y_stride`. With `keep`, the products
    /// are added to `y`.
    ///
    /// # Safety
    /// With `keep`, the outputs in `y` hold numbers already: they are read.
    pub(crate) unsafe fn product(
        &self,
        units: Units,
        x: &[f32],
        (summands, columns): (Range<usize>, Range<usize>),
        y: &mut [MaybeUninit<f32>],
        y_stride: usize,
        keep: bool,
    ) {
        let k = summands.len();
        if k == 0 || x.is_empty() {
            return;
        }
        assert!(x.len().is_multiple_of(k) && summands.end <= self.k, "product: sizes disagree");
        let (t, n, threads) = (x.len() / k, columns.len(), rayon::current_num_threads());
        if n == 0 {
            return;
        }
        assert!(n <= y_stride && (t - 1) * y_stride + n <= y.len(), "product: sizes disagree");
        let run = |x: &[f32], y: &mut [MaybeUninit<f32>], threads: usize| {
            let x = Rounded::of(self.format(), x, k);
            let term = Term { from: summands.start, ..Term::new(&x, self) };
            // SAFETY: as the caller says.
            unsafe { shared_sum(units, &[term], columns.clone(), (y, y_stride, keep), threads) };
        };
        // Rows enough for all threads: a task rounds its own, which stay in the caches near its core.
        if t >= ROUNDED_ROWS * threads {
            let rows = evened(t, t.div_ceil(ROUNDED_ROWS).next_multiple_of(threads));
            x.par_chunks(rows * k).zip(y.par_chunks_mut(rows * y_stride)).for_each(|(x, y)| run(x, y, 1));
        } else {
            run(x, y, threads);
        }
    }
}

/// Bytes of what a block of rows meets to become a block of outputs.
fn bytes_met(terms: &[Term<'_>]) -> usize {
    terms.iter().map(|term| term.lines.len() * BLOCK * size_of::<Line>()).sum()
}

/// Rows of a task: so many at the most, and of several threads two tasks each where there are rows enough, so that one that is
/// kept from its work leaves the rest to the others.
fn task_rows(t: usize, most: usize, threads: usize) -> usize {
    let wanted = if threads == 1 { 1 } else { (2 * threads).min(t.div_ceil(LEAST_ROWS)) };
    evened(t, wanted.max(t.div_ceil(most)))
}

/// Rows of each of so many tasks, but for the last: whole blocks.
fn evened(t: usize, tasks: usize) -> usize {
    t.div_ceil(tasks).next_multiple_of(BLOCK)
}

/// Rows by a matrix, or a part of the rows by a part of it.
pub(crate) struct Term<'a> {
    x: &'a Rounded,
    /// The lines of each row that take part.
    lines: Range<usize>,
    matrix: &'a Packed,
    /// The summand that the first number of those lines is multiplied with.
    from: usize,
}

impl<'a> Term<'a> {
    /// All rows by all of the matrix.
    pub(crate) fn new(x: &'a Rounded, matrix: &'a Packed) -> Self {
        Self { x, lines: 0..x.steps, matrix, from: 0 }
    }
}

/// The sum over the terms of `x B`, over the columns `columns` of the matrices; row i of `y` starts at `i * y_stride`. With
/// `keep`, it is added to `y`. All terms have the same rows.
///
/// # Safety
/// With `keep`, the outputs in `y` hold numbers already: they are read.
pub(crate) unsafe fn sum_of_products(
    units: Units,
    terms: &[Term<'_>],
    columns: Range<usize>,
    (y, y_stride): (&mut [MaybeUninit<f32>], usize),
    keep: bool,
) {
    // SAFETY: as the caller says.
    unsafe { shared_sum(units, terms, columns, (y, y_stride, keep), rayon::current_num_threads()) }
}

/// As [`sum_of_products`], shared out among so many threads.
///
/// # Safety
/// As of [`sum_of_products`].
unsafe fn shared_sum(
    units: Units,
    terms: &[Term<'_>],
    columns: Range<usize>,
    (y, y_stride, keep): (&mut [MaybeUninit<f32>], usize, bool),
    threads: usize,
) {
    let (t, n) = (terms.first().map_or(0, |term| term.x.rows), columns.len());
    if t == 0 || n == 0 {
        return;
    }
    assert!(n <= y_stride && (t - 1) * y_stride + n <= y.len(), "product: sizes disagree");
    assert!(columns.start.is_multiple_of(BLOCK), "product: between blocks");
    for Term { x, lines, matrix, from } in terms {
        assert!(x.rows == t && columns.end <= matrix.n.next_multiple_of(BLOCK), "product: beyond the matrix");
        assert!(from.is_multiple_of(BLOCK) && !lines.is_empty() && lines.end <= x.steps, "product: between blocks");
        assert!(from + lines.len() * BLOCK <= matrix.lines_of_panel(), "product: beyond the matrix");
        let is_whole = terms.len() == 1 && lines.len() * BLOCK == matrix.lines_of_panel();
        assert!(matrix.columns.is_none() || is_whole, "product: a row of eight bits has one scale");
    }
    let panels = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
    // Few rows: their panels are shared out among the threads; many: the rows are.
    let most = match units {
        Units::Portable => LEAST_ROWS,
        _ if bytes_met(terms) <= NEAR_BYTES => MANY_ROWS,
        _ => FEW_ROWS,
    };
    let task_rows = task_rows(t, most, threads);
    let tasks = t.div_ceil(task_rows);
    let shares = threads.div_ceil(tasks).min(panels.len());
    let per_share = panels.len().div_ceil(shares);
    let output = Output { first: y.as_mut_ptr().cast::<f32>(), stride: y_stride };
    (0..tasks * shares).into_par_iter().for_each(|task| {
        let rows = task / shares * task_rows..((task / shares + 1) * task_rows).min(t);
        let from = panels.start + task % shares * per_share;
        let panels = from..(from + per_share).min(panels.end);
        // SAFETY: the assertions above keep row `rows.start` inside of `y`.
        let output = unsafe { output.row(rows.start) };
        // SAFETY: tasks have rows or columns of their own, so that no two write the same outputs; each stays within its rows
        // and the columns, which the assertions above keep inside of `y` and of the terms; the caller answers for what is read
        // in `y`.
        unsafe { Job { terms, rows, columns: columns.clone(), panels, output, keep }.run(units) };
    });
}

impl Line {
    fn numbers(&self, format: Format) -> impl Iterator<Item = f32> {
        (0..format.step()).map(move |i| match format {
            Format::Bf16 => widen(self.0[i]),
            Format::Int8 => f32::from(self.bytes()[i] as i8),
        })
    }
}
