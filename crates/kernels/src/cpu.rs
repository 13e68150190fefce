//! Slices of f32 on the CPU: access to tensors, dot products and matrix products.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

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

const LANES: usize = 16;

#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    // `mul_add` without the instruction is a slow library call.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of products, in lanes so that it vectorises; the order of additions depends on the length alone.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [[0f32; LANES]; 2];
    let (a2, b2) = (a.chunks_exact(2 * LANES), b.chunks_exact(2 * LANES));
    let (a_rest, b_rest) = (a2.remainder(), b2.remainder());
    for (x, y) in a2.zip(b2) {
        for i in 0..LANES {
            lanes[0][i] = fma(x[i], y[i], lanes[0][i]);
            lanes[1][i] = fma(x[LANES + i], y[LANES + i], lanes[1][i]);
        }
    }
    let mut rest = 0f32;
    for (x, y) in a_rest.iter().zip(b_rest) {
        rest = fma(*x, *y, rest);
    }
    let mut width = LANES / 2;
    let [mut sums, others] = lanes;
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + rest
}

/// `y += a * x`.
#[inline]
pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    debug_assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma(a, *x, *y);
    }
}

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

fn fits(view: &View<'_>, rows: usize, cols: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * view.row_stride + (cols - 1) * view.col_stride < view.values.len()
}

/// `c[i, j] = keep * c[i, j] + sum_k a[i, k] b[k, j]` for `[m, k] x [k, n]`; row i of `c` starts at
/// `i * c_stride`. Each output is summed by one thread, so the thread count does not change results.
pub(crate) fn gemm(
    c: &mut [f32],
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
    let parallelism = if m * n * k < 1 << 16 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the assertions above keep every address inside its slice, and `c` is borrowed mutably,
    // so that it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
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
