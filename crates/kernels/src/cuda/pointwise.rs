//! Operations on numbers one by one.

use super::{Arg, BLOCK_THREADS, Gpu, Pointer};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use half::bf16;

/// `x` as bf16.
///
/// # Safety
/// `x` leads to `count` numbers.
pub(super) unsafe fn to_bf16(gpu: &Gpu, x: Pointer, count: usize) -> Result<CudaSlice<bf16>> {
    let y = gpu.alloc::<bf16>(count)?;
    let args = [Arg::Pointer(x), Arg::Pointer(gpu.pointer(&y)), Arg::Size(count)];
    // SAFETY: as the caller says; `y` was made of that size.
    unsafe { gpu.launch_over("to_bf16", count, &args)? };
    Ok(y)
}

unsafe fn pairwise(gpu: &Gpu, name: &'static str, (x, y): (Pointer, Pointer), count: usize) -> Result<CudaSlice<f32>> {
    let out = gpu.alloc(count)?;
    let args = [Arg::Pointer(x), Arg::Pointer(y), Arg::Pointer(gpu.pointer(&out)), Arg::Size(count)];
    // SAFETY: as the caller says; the result was made of that size.
    unsafe { gpu.launch_over(name, count, &args)? };
    Ok(out)
}

/// `x + y`.
///
/// # Safety
/// Both lead to `count` numbers.
pub(crate) unsafe fn add(gpu: &Gpu, xy: (Pointer, Pointer), count: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: as the caller says.
    unsafe { pairwise(gpu, "add", xy, count) }
}

/// `x * y`.
///
/// # Safety
/// Both lead to `count` numbers.
pub(crate) unsafe fn multiply(gpu: &Gpu, xy: (Pointer, Pointer), count: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: as the caller says.
    unsafe { pairwise(gpu, "multiply", xy, count) }
}

/// Turns the heads of `x` `[T, heads, 2 half]` by the angles of a table, or back with a `sign` of -1.
///
/// # Safety
/// `x` leads to T times `heads` times `2 half` numbers, each table to T times `half`.
pub(crate) unsafe fn rope(
    gpu: &Gpu,
    x: Pointer,
    (cosines, sines): (Pointer, Pointer),
    (tokens, heads, half): (usize, usize, usize),
    sign: f32,
) -> Result<CudaSlice<f32>> {
    const THREADS: u32 = 128;
    let y = gpu.alloc(2 * tokens * heads * half)?;
    let args = [
        Arg::Pointer(x),
        Arg::Pointer(gpu.pointer(&y)),
        Arg::Pointer(cosines),
        Arg::Pointer(sines),
        Arg::Int(heads as i32),
        Arg::Int(half as i32),
        Arg::Float(sign),
    ];
    // SAFETY: as the caller says; `y` was made of the size of `x`.
    unsafe { gpu.launch("rope", ((tokens, 1, 1), THREADS, 0), &args)? };
    Ok(y)
}

/// `act(gate) * up`; the activation as cuda/elementwise.cuh numbers them.
///
/// # Safety
/// Both lead to `count` numbers.
pub(crate) unsafe fn gated(
    gpu: &Gpu,
    (gate, up): (Pointer, Pointer),
    count: usize,
    activation: i32,
) -> Result<CudaSlice<f32>> {
    let y = gpu.alloc(count)?;
    // SAFETY: as the caller says; `y` was made of that size.
    unsafe { launch_gated(gpu, "gated", (gate, up, gpu.pointer(&y)), count, activation)? };
    Ok(y)
}

/// As [`gated`], rounded to bf16.
///
/// # Safety
/// As of [`gated`].
pub(super) unsafe fn gated_bf16(
    gpu: &Gpu,
    (gate, up): (Pointer, Pointer),
    count: usize,
    activation: i32,
) -> Result<CudaSlice<bf16>> {
    let y = gpu.alloc(count)?;
    // SAFETY: as the caller says; `y` was made of that size.
    unsafe { launch_gated(gpu, "gated_bf16", (gate, up, gpu.pointer(&y)), count, activation)? };
    Ok(y)
}

unsafe fn launch_gated(
    gpu: &Gpu,
    name: &'static str,
    (gate, up, y): (Pointer, Pointer, Pointer),
    count: usize,
    activation: i32,
) -> Result<()> {
    let args = [Arg::Pointer(gate), Arg::Pointer(up), Arg::Pointer(y), Arg::Size(count), Arg::Int(activation)];
    // SAFETY: as the caller says.
    unsafe { gpu.launch_over(name, count, &args) }
}

/// Gradients of gate and up.
///
/// # Safety
/// All lead to `count` numbers.
pub(crate) unsafe fn gated_backward(
    gpu: &Gpu,
    (gate, up, dy): (Pointer, Pointer, Pointer),
    count: usize,
    activation: i32,
) -> Result<[CudaSlice<f32>; 2]> {
    let (d_gate, d_up) = (gpu.alloc(count)?, gpu.alloc(count)?);
    let args = [
        Arg::Pointer(gate),
        Arg::Pointer(up),
        Arg::Pointer(dy),
        Arg::Pointer(gpu.pointer(&d_gate)),
        Arg::Pointer(gpu.pointer(&d_up)),
        Arg::Size(count),
        Arg::Int(activation),
    ];
    // SAFETY: as the caller says; both gradients were made of that size.
    unsafe { gpu.launch_over("gated_backward", count, &args)? };
    Ok([d_gate, d_up])
}

/// One step of AdamW in place on `[parameters, gradient, first moments, second moments]`; the numbers are `beta1, beta2,
/// eps, decay, step_size, correction, scale` of the kernel.
///
/// # Safety
/// All lead to `count` numbers.
pub(crate) unsafe fn adamw(gpu: &Gpu, pointers: [Pointer; 4], count: usize, numbers: [f32; 7]) -> Result<()> {
    let mut args: Vec<Arg> = pointers.into_iter().map(Arg::Pointer).collect();
    args.push(Arg::Size(count));
    args.extend(numbers.into_iter().map(Arg::Float));
    // SAFETY: as the caller says.
    unsafe { gpu.launch_over("adamw", count, &args) }
}

/// The sum of the squares of each of some runs of numbers, `(pointer, count)`.
///
/// # Safety
/// Each pointer leads to its count of numbers.
pub(crate) unsafe fn sums_of_squares(gpu: &Gpu, runs: &[(Pointer, usize)]) -> Result<Vec<f64>> {
    /// Shares of one run: their sums come back, and are added on the host in one order.
    const SHARES: usize = 32;
    let sums = gpu.alloc::<f64>(runs.len() * SHARES)?;
    for (i, (pointer, count)) in runs.iter().enumerate() {
        let to = gpu.pointer(&sums) + (i * SHARES * size_of::<f64>()) as Pointer;
        let args = [Arg::Pointer(*pointer), Arg::Size(*count), Arg::Pointer(to)];
        // SAFETY: as the caller says; each run has a place for its shares.
        unsafe { gpu.launch("sum_squares", ((SHARES, 1, 1), BLOCK_THREADS, 0), &args)? };
    }
    let sums = gpu.download(&sums)?;
    Ok(sums.chunks(SHARES).take(runs.len()).map(|shares| shares.iter().sum()).collect())
}
