//! Operations on numbers one by one.

use super::{Arg, BLOCK_THREADS, Gpu, Pointer};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
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

/// Cosines and then sines of `position * frequency`, `[T, F]` each.
pub(crate) fn angles(gpu: &Gpu, positions: &[u32], frequencies: &[f64]) -> Result<CudaSlice<f32>> {
    let count = positions.len() * frequencies.len();
    let (y, positions, of_head) = (gpu.alloc(2 * count)?, gpu.upload(positions)?, gpu.upload(frequencies)?);
    let args = [
        Arg::Pointer(gpu.pointer(&positions)),
        Arg::Pointer(gpu.pointer(&of_head)),
        Arg::Pointer(gpu.pointer(&y)),
        Arg::Size(count),
        Arg::Int(frequencies.len() as i32),
    ];
    // SAFETY: the angles were made of their size.
    unsafe { gpu.launch_over("angles", count, &args)? };
    Ok(y)
}

/// Turns the heads of `x` `[T, heads, 2 half]` by the angles of a table into `y`, or back with a `sign` of -1.
///
/// # Safety
/// `x` and `y`, which may be the same, lead to T times `heads` times `2 half` numbers, each table to T times `half`.
pub(crate) unsafe fn rope(
    gpu: &Gpu,
    (x, y): (Pointer, Pointer),
    (cosines, sines): (Pointer, Pointer),
    (tokens, heads, half): (usize, usize, usize),
    sign: f32,
) -> Result<()> {
    const THREADS: u32 = 128;
    let args = [
        Arg::Pointer(x),
        Arg::Pointer(y),
        Arg::Pointer(cosines),
        Arg::Pointer(sines),
        Arg::Int(heads as i32),
        Arg::Int(half as i32),
        Arg::Float(sign),
    ];
    // SAFETY: as the caller says.
    unsafe { gpu.launch("rope", ((tokens, 1, 1), THREADS, 0), &args) }
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

/// One variable's step of AdamW, field by field as in cuda/elementwise.cuh.
#[derive(Debug, Clone, Default)]
#[repr(C)]
pub(crate) struct AdamWRun {
    pub(crate) parameters: Pointer,
    pub(crate) gradient: Pointer,
    pub(crate) first: Pointer,
    pub(crate) second: Pointer,
    pub(crate) count: usize,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    pub(crate) decay: f32,
    pub(crate) step_size: f32,
    pub(crate) correction: f32,
    pub(crate) scale: f32,
    pub(crate) _padding: f32,
}

// SAFETY: a plain struct of numbers, laid out as its twin in cuda/elementwise.cuh.
unsafe impl DeviceRepr for AdamWRun {}

/// Steps of AdamW in place.
///
/// # Safety
/// The pointers of a run lead to its count of numbers.
pub(crate) unsafe fn adamw(gpu: &Gpu, runs: &[AdamWRun]) -> Result<()> {
    const MOST_BLOCKS: usize = 1024;
    let most = runs.iter().map(|run| run.count).max().unwrap_or(0);
    let blocks = most.div_ceil(4 * BLOCK_THREADS as usize).min(MOST_BLOCKS);
    let on_gpu = gpu.upload(runs)?;
    let args = [Arg::Pointer(gpu.pointer(&on_gpu))];
    // SAFETY: as the caller says.
    unsafe { gpu.launch("adamw", ((blocks, runs.len(), 1), BLOCK_THREADS, 0), &args) }
}

/// The sum of the squares of each of some runs of numbers, `(pointer, count)`.
///
/// # Safety
/// Each pointer leads to its count of numbers.
pub(crate) unsafe fn sums_of_squares(gpu: &Gpu, runs: &[(Pointer, usize)]) -> Result<Vec<f64>> {
    /// Shares of one run: their sums come back, and are added on the host in one order.
    const SHARES: usize = 32;
    let sums = gpu.alloc::<f64>(runs.len() * SHARES)?;
    let on_gpu =
        gpu.upload(&runs.iter().flat_map(|(pointer, count)| [*pointer, *count as u64]).collect::<Vec<u64>>())?;
    let args = [Arg::Pointer(gpu.pointer(&on_gpu)), Arg::Pointer(gpu.pointer(&sums))];
    // SAFETY: as the caller says; each run has a place for its shares.
    unsafe { gpu.launch("sum_squares", ((SHARES, runs.len(), 1), BLOCK_THREADS, 0), &args)? };
    let sums = gpu.download(&sums)?;
    Ok(sums.chunks(SHARES).take(runs.len()).map(|shares| shares.iter().sum()).collect())
}
