//! Slices of f32 on the CPU: access to tensors, dot products and matrix products.

#[cfg(target_arch = "x86_64")]
use crate::f32_product::{self, Product};
use crate::vector::{LANES, Vector};
use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};
use std::mem::MaybeUninit;

/// The f32 values of a contiguous operand, as handed to a custom op.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("{op}: expected a contiguous operand, found {:?}", layout.shape()),
    }
}

/// Runs `f` on the f32 values of `tensor` in row-major order.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice(cpu, layout, "read")?)),
        _ => bail!("expected a CPU tensor of shape {:?}, found one on another device", tensor.shape()),
    }
}

/// The values as a tensor on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

/// The gradient of an operand, when it leads to a variable.
pub(crate) fn wanted(operand: &Tensor, gradient: impl FnOnce() -> Vec<f32>) -> Result<Option<Tensor>> {
    if operand.track_op() { tensor(gradient(), operand.shape()).map(Some) } else { Ok(None) }
}

/// The values as the result of a custom op.
pub(crate) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

#[inline(always)]
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f32 {
    // `mul_add` without the instruction is a slow library call.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of products, in lanes so that it vectorises; the order of additions depends on the length alone.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let ((a_lanes, a_rest), (b_lanes, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [Vector::splat(0.0); 2];
    let (mut a_pairs, mut b_pairs) = (a_lanes.chunks_exact(2), b_lanes.chunks_exact(2));
    for (a, b) in a_pairs.by_ref().zip(b_pairs.by_ref()) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = sum.plus_product(Vector::load(a), Vector::load(b));
        }
    }
    if let ([a], [b]) = (a_pairs.remainder(), b_pairs.remainder()) {
        sums[0] = sums[0].plus_product(Vector::load(a), Vector::load(b));
    }
    let rest = a_rest.iter().zip(b_rest).fold(0.0, |rest, (x, y)| fma(*x, *y, rest));
    sums[0].plus(sums[1]).sum() + rest
}

/// `y += a * x`.
#[inline]
pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    debug_assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma(a, *x, *y);
    }
}

/// `e^x` within two units in the last place; infinite from 88.4 on, and never below the least normal number.
///
/// Loops over it vectorise, unlike loops over calls of the C library. By `2^n e^r` with `|r| <= ln 2 / 2` and the
/// polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(LEAST_EXPONENT, MOST_EXPONENT);
    let rounded = fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma(n, -LN_2_LOW, fma(n, -LN_2_HIGH, x));
    let p = EXP[1..].iter().fold(EXP[0], |sum, coefficient| fma(sum, r, *coefficient));
    let power_of_two = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    fma(p, r * r, r + 1.0) * power_of_two
}

/// [`exp`] of each number, the same bits.
#[inline(always)]
pub(crate) fn exp_of(x: Vector) -> Vector {
    let constant = Vector::splat;
    let x = x.clamp(LEAST_EXPONENT, MOST_EXPONENT);
    let rounded = constant(ROUND).plus_product(x, constant(std::f32::consts::LOG2_E));
    let n = rounded.minus(constant(ROUND));
    let r = x.plus_product(n, constant(-LN_2_HIGH)).plus_product(n, constant(-LN_2_LOW));
    let next = |sum: Vector, coefficient: &f32| constant(*coefficient).plus_product(sum, r);
    let p = EXP[1..].iter().fold(constant(EXP[0]), next);
    r.plus(constant(1.0)).plus_product(p, r.times(r)).times(rounded.shifted::<23>(127 << 23))
}

const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Added to a number below 2^22, it leaves the nearest whole number in the lowest bits.
const ROUND: f32 = 12_582_912.0;
const LEAST_EXPONENT: f32 = -87.336;
const MOST_EXPONENT: f32 = 89.0;
/// Coefficients, the highest power first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// A row-major view of a matrix inside a slice: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// Row-major `[rows, cols]`.
pub(crate) fn rows_of(values: &[f32], cols: usize) -> View<'_> {
    View { values, row_stride: cols, col_stride: 1 }
}

/// The transpose of row-major `[rows, cols]`.
pub(crate) fn transposed(values: &[f32], cols: usize) -> View<'_> {
    View { values, row_stride: 1, col_stride: cols }
}

/// Where outputs go: row i is `i * stride` numbers from the first.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) first: *mut f32,
    pub(crate) stride: usize,
}

// SAFETY: a place to write to, shared by tasks that write to different parts of it.
unsafe impl Sync for Output {}
// SAFETY: as above.
unsafe impl Send for Output {}

impl Output {
    /// # Safety
    /// The column is one of the output.
    pub(crate) unsafe fn column(self, column: usize) -> Self {
        // SAFETY: as the caller says.
        Self { first: unsafe { self.first.add(column) }, stride: self.stride }
    }

    /// The output from a row on.
    ///
    /// # Safety
    /// The row is one of the output.
    pub(crate) unsafe fn row(self, row: usize) -> Self {
        // SAFETY: as the caller says.
        Self { first: unsafe { self.first.add(row * self.stride) }, stride: self.stride }
    }
}

fn fits(view: &View<'_>, rows: usize, cols: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * view.row_stride + (cols - 1) * view.col_stride < view.values.len()
}

/// `c[i, j] = keep * c[i, j] + sum_k a[i, k] b[k, j]` for `[m, k] x [k, n]`; row i of `c` starts at
/// `i * c_stride`. Each output is summed by one thread, so the thread count does not change results; with AVX-512
/// and more than 16 rows its order of summation depends on `k`, and on whether there are tiles and it is large enough for them:
/// a row has the same bits in any company of that size.
pub(crate) fn gemm(
    c: &mut [f32],
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    keep: bool,
) {
    // SAFETY: `c` was a slice of numbers, and a product writes numbers only.
    unsafe { product(as_uninit(c), c_stride, (m, n, k), a, b, keep) };
}

/// A row-major matrix as it is given to [`matmul`].
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// As it is.
    AsIs(&'a [f32]),
    /// As its transpose.
    Transposed(&'a [f32]),
}

/// `a b`, outside any graph, on all threads.
///
/// # Shapes
/// `[m, k] x [k, n] -> [m, n]`, none of which is 0.
///
/// # Panics
/// When a matrix has another size.
pub fn matmul((m, n, k): (usize, usize, usize), a: Given<'_>, b: Given<'_>) -> Vec<f32> {
    let check = |given: Given<'_>, rows: usize, cols: usize| {
        let (Given::AsIs(values) | Given::Transposed(values)) = given;
        assert_eq!(values.len(), rows * cols, "matmul: a matrix of [{rows}, {cols}]");
    };
    check(a, m, k);
    check(b, k, n);
    let of = |given, rows, cols| match given {
        Given::AsIs(values) => rows_of(values, cols),
        Given::Transposed(values) => transposed(values, rows),
    };
    // SAFETY: a product writes all its outputs.
    unsafe { filled(m * n, |c| gemm_into(c, n, (m, n, k), of(a, m, k), of(b, k, n))) }
}

/// `len` numbers that `fill` writes, into memory that is not cleared first.
///
/// # Safety
/// `fill` writes every number of its slice.
pub(crate) unsafe fn filled<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: all of them are written, as the caller says.
    unsafe { values.set_len(len) };
    values
}

/// Numbers as a place for numbers.
///
/// # Safety
/// What is written there is numbers only: the slice is one of numbers again afterwards.
pub(crate) unsafe fn as_uninit(c: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`; for what is written there the caller answers.
    unsafe { std::slice::from_raw_parts_mut(c.as_mut_ptr().cast::<MaybeUninit<f32>>(), c.len()) }
}

/// As [`gemm`] with `keep` off, into memory that need not hold numbers yet: clearing it first would cost as much as
/// a small product. `k` is at least 1, or nothing would be written.
pub(crate) fn gemm_into(
    c: &mut [MaybeUninit<f32>],
    c_stride: usize,
    mnk: (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
) {
    assert!(mnk.2 > 0, "gemm: nothing to sum");
    // SAFETY: without `keep` nothing of `c` is read.
    unsafe { product(c, c_stride, mnk, a, b, false) };
}

/// # Safety
/// With `keep`, the outputs in `c` hold numbers already: they are read.
pub(crate) unsafe fn product(
    c: &mut [MaybeUninit<f32>],
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    keep: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= c_stride && (m - 1) * c_stride + n <= c.len(), "gemm: output too small");
    assert!(fits(&a, m, k) && fits(&b, k, n), "gemm: operand too small");
    #[cfg(target_arch = "x86_64")]
    if k > 0 && f32_product::pays(m, &b) {
        let c = Output { first: c.as_mut_ptr().cast::<f32>(), stride: c_stride };
        // SAFETY: the machine has the instructions, the assertions above keep every address inside its slice, and `c` is
        // borrowed mutably; with `keep` it holds numbers, as the caller says.
        unsafe { Product { mnk: (m, n, k), a, b, c, keep }.run() };
        return;
    }
    let parallelism = if m * n * k < 1 << 16 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the assertions above keep every address inside its slice, and `c` is borrowed mutably,
    // so that it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr().cast::<f32>(),
            1,
            c_stride as isize,
            keep,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Given, View, exp, exp_of, gemm, matmul};
    use crate::vector::{LANES, Vector};
    use rand::{Rng as _, SeedableRng as _};

    /// Strides of `[rows, cols]`: numbers of a row side by side, of a column, of neither; with gaps and without.
    fn strides(rows: usize, cols: usize) -> [(usize, usize); 4] {
        [(cols, 1), (cols + 3, 1), (1, rows + 2), (2 * cols + 1, 2)]
    }

    #[test]
    fn matrices_are_given_as_they_are_or_as_their_transposes() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (m, n, k) in [(1, 1, 1), (3, 5, 2), (40, 17, 33)] {
            let mut numbers = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (a, b) = (numbers(m * k), numbers(k * n));
            let turned = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..cols).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| x[i * cols + j]).collect()
            };
            let (a_turned, b_turned) = (turned(&a, m, k), turned(&b, k, n));
            let sum =
                |i: usize, j: usize| -> f64 { (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum() };
            for left in [Given::AsIs(&a), Given::Transposed(&a_turned)] {
                for right in [Given::AsIs(&b), Given::Transposed(&b_turned)] {
                    for (at, found) in matmul((m, n, k), left, right).into_iter().enumerate() {
                        let sum = sum(at / n, at % n);
                        assert!((f64::from(found) - sum).abs() < 1e-5, "{m} {n} {k}: {found}, expected {sum}");
                    }
                }
            }
        }
    }

    /// Against sums in f64, over sizes with and without remainders, all kinds of views, added or not.
    #[test]
    fn products_are_sums() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let shapes = [
            (1, 1, 1),
            (2, 40, 3),
            (3, 17, 5),
            (13, 16, 64),
            (14, 32, 576),
            (15, 33, 577),
            (29, 70, 400),
            (45, 700, 20),
            (600, 45, 1200),
            (16, 8, 2500),
            (20, 9, 1024),
        ];
        for (mnk, which) in shapes.into_iter().flat_map(|mnk| (0..16).map(move |which| (mnk, which))) {
            let ((m, n, k), keep) = (mnk, which % 3 == 0);
            let (row_stride, col_stride) = strides(m, k)[which % 4];
            let (b_row_stride, b_col_stride) = strides(k, n)[which / 4];
            let mut numbers = |count| (0..count).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<f32>>();
            let a = numbers((m - 1) * row_stride + (k - 1) * col_stride + 1);
            let b = numbers((k - 1) * b_row_stride + (n - 1) * b_col_stride + 1);
            let before = numbers(m * (n + 1));
            let mut c = before.clone();
            let (a_view, b_view) = (
                View { values: &a, row_stride, col_stride },
                View { values: &b, row_stride: b_row_stride, col_stride: b_col_stride },
            );
            gemm(&mut c, n + 1, mnk, a_view, b_view, keep);
            for (i, (c, before)) in c.chunks(n + 1).zip(before.chunks(n + 1)).enumerate() {
                assert_eq!(c[n], before[n], "a number beside the output");
                for j in 0..n {
                    let product = |s| {
                        let x = f64::from(a[i * row_stride + s * col_stride]);
                        x * f64::from(b[s * b_row_stride + j * b_col_stride])
                    };
                    let want = f64::from(if keep { before[j] } else { 0.0 }) + (0..k).map(product).sum::<f64>();
                    // k roundings, each half a unit in the last place of a partial sum, which grow as the root of k.
                    let tolerance = 1e-7 * (k as f64 + 2.0);
                    assert!((f64::from(c[j]) - want).abs() < tolerance, "{mnk:?} {which} ({i}, {j}): {} {want}", c[j]);
                }
            }
        }
    }

    #[test]
    fn exp_of_many_has_the_bits_of_exp() {
        for i in -6000i32..6000 {
            let x: [f32; LANES] = std::array::from_fn(|lane| match (i, lane) {
                (0, 0) => f32::NAN,
                (0, 1) => f32::INFINITY,
                (0, 2) => f32::NEG_INFINITY,
                _ => i as f32 * 0.017 + lane as f32 * 1e-3,
            });
            let mut found = [0f32; LANES];
            exp_of(Vector::load(&x)).store(&mut found);
            for (found, x) in found.iter().zip(x) {
                assert!(found.to_bits() == exp(x).to_bits() || x.is_nan() && found.is_nan(), "{x}");
            }
        }
    }

    #[test]
    fn exp_is_that_of_f64_rounded() {
        for i in -87_300..=88_300 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            // two units in the last place
            assert!((f64::from(exp(x)) / want - 1.0).abs() <= 2.4e-7, "{x}: {} {want}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.2e-38 && exp(-1e9) < 1.2e-38);
        assert!(exp(88.8) == f32::INFINITY && exp(f32::INFINITY) == f32::INFINITY && exp(f32::NAN).is_nan());
    }
}
