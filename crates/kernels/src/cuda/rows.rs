//! Operations on rows: norms, and sums and copies of chosen rows.

use super::{Arg, Gpu, Gradients2, Pointer};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;

/// Threads of a block that takes one row.
const ROW_THREADS: u32 = 128;
/// Rows of a block where a warp takes one.
const WARPS: usize = 4;

/// Root-mean-square norm of `x` `[rows, width]`; `(eps, offset)` as [`crate::ops::rms_norm`] has them.
///
/// # Safety
/// `x` leads to `rows * width` numbers, `w` to `width`.
pub(crate) unsafe fn rms_norm(
    gpu: &Gpu,
    (x, w): (Pointer, Pointer),
    (rows, width): (usize, usize),
    (eps, offset): (f32, f32),
) -> Result<CudaSlice<f32>> {
    // SAFETY: as the caller says.
    unsafe { norm(gpu, "rms_norm", (x, w), (rows, width), (eps, offset)) }
}

/// As [`rms_norm`], rounded to bf16.
///
/// # Safety
/// As of [`rms_norm`].
pub(super) unsafe fn rms_norm_bf16(
    gpu: &Gpu,
    (x, w): (Pointer, Pointer),
    (rows, width): (usize, usize),
    (eps, offset): (f32, f32),
) -> Result<CudaSlice<bf16>> {
    // SAFETY: as the caller says.
    unsafe { norm(gpu, "rms_norm_bf16", (x, w), (rows, width), (eps, offset)) }
}

unsafe fn norm<T: DeviceRepr>(
    gpu: &Gpu,
    name: &'static str,
    (x, w): (Pointer, Pointer),
    (rows, width): (usize, usize),
    (eps, offset): (f32, f32),
) -> Result<CudaSlice<T>> {
    let y = gpu.alloc::<T>(rows * width)?;
    let mut args = vec![Arg::Pointer(x), Arg::Pointer(w), Arg::Pointer(gpu.pointer(&y))];
    args.extend([Arg::Int(rows as i32), Arg::Int(width as i32), Arg::Float(eps), Arg::Float(offset)]);
    // SAFETY: as the caller says; `y` was made of the size of `x`.
    unsafe { gpu.launch(name, ((rows.div_ceil(WARPS), 1, 1), ROW_THREADS, 0), &args)? };
    Ok(y)
}

/// Gradients of a norm by `x` and by `w`, those that are wanted; that by `x` is added to `onto`, where that is not 0.
///
/// # Safety
/// `x`, `dy` and `onto` lead to `rows * width` numbers, `w` to `width`.
pub(crate) unsafe fn rms_norm_backward(
    gpu: &Gpu,
    (x, w, dy, onto): (Pointer, Pointer, Pointer, Pointer),
    (rows, width): (usize, usize),
    (eps, offset): (f32, f32),
    (wants_dx, wants_dw): (bool, bool),
) -> Result<Gradients2> {
    let size = [Arg::Int(rows as i32), Arg::Int(width as i32), Arg::Float(eps)];
    let dx = if wants_dx {
        let dx = gpu.alloc(rows * width)?;
        let mut args = vec![Arg::Pointer(x), Arg::Pointer(w), Arg::Pointer(dy), Arg::Pointer(gpu.pointer(&dx))];
        args.extend(size);
        args.extend([Arg::Float(offset), Arg::Pointer(onto)]);
        // SAFETY: as the caller says; `dx` was made of the size of `x`.
        unsafe { gpu.launch("rms_norm_dx", ((rows.div_ceil(WARPS), 1, 1), ROW_THREADS, 0), &args)? };
        Some(dx)
    } else {
        None
    };
    let dw = if wants_dw {
        const ROWS_OF_BLOCK: usize = 64;
        let blocks = rows.div_ceil(ROWS_OF_BLOCK);
        let (sums, dw) = (gpu.alloc::<f32>(blocks * width)?, gpu.alloc(width)?);
        let mut args = vec![Arg::Pointer(x), Arg::Pointer(dy), Arg::Pointer(gpu.pointer(&sums))];
        args.extend(size);
        args.push(Arg::Int(ROWS_OF_BLOCK as i32));
        let shared = WARPS * width * size_of::<f32>();
        // SAFETY: as the caller says; there is a row of sums for each block.
        unsafe { gpu.launch("rms_norm_dw", ((blocks, 1, 1), ROW_THREADS, shared), &args)? };
        let args = [
            Arg::Pointer(gpu.pointer(&sums)),
            Arg::Pointer(gpu.pointer(&dw)),
            Arg::Int(blocks as i32),
            Arg::Int(width as i32),
        ];
        // SAFETY: the sums and `dw` were made of these sizes.
        unsafe { gpu.launch("sum_rows", ((width.div_ceil(ROW_THREADS as usize), 1, 1), ROW_THREADS, 0), &args)? };
        Some(dw)
    } else {
        None
    };
    Ok((dx, dw))
}

/// `y[target]` = the weighted sum of the rows of `x` that a list names; `lists` are pairs of row and weight. Without
/// targets the i-th list makes row i.
///
/// # Safety
/// `x` leads to all rows of `width` numbers that the lists name, `y` to all those of the targets, none of which comes twice.
pub(crate) unsafe fn weighted_rows(
    gpu: &Gpu,
    (x, y): (Pointer, Pointer),
    lists: &[Vec<(u32, f32)>],
    targets: Option<&[u32]>,
    width: usize,
) -> Result<()> {
    let mut offsets = vec![0u32];
    offsets.extend(lists.iter().scan(0u32, |end, list| {
        *end += list.len() as u32;
        Some(*end)
    }));
    let (sources, weights): (Vec<u32>, Vec<f32>) = lists.iter().flatten().copied().unzip();
    let (offsets, sources, weights) = (gpu.upload(&offsets)?, gpu.upload(&sources)?, gpu.upload(&weights)?);
    let targets = targets.map(|targets| gpu.upload(targets)).transpose()?;
    let args = [
        Arg::Pointer(x),
        Arg::Pointer(y),
        Arg::Pointer(gpu.pointer(&offsets)),
        Arg::Pointer(gpu.pointer(&sources)),
        Arg::Pointer(gpu.pointer(&weights)),
        Arg::Pointer(targets.as_ref().map_or(0, |targets| gpu.pointer(targets))),
        Arg::Int(width as i32),
    ];
    // SAFETY: as the caller says; the lists were uploaded whole.
    unsafe { gpu.launch("weighted_rows", ((lists.len(), 1, 1), ROW_THREADS, 0), &args) }
}

/// Rows `rows` of `x`, f32 or bf16, one after the other.
///
/// # Safety
/// `x` leads to rows of `width` numbers up to the last of `rows`, which leads to `count` numbers.
pub(crate) unsafe fn gather_rows(
    gpu: &Gpu,
    (x, is_bf16): (Pointer, bool),
    (rows, count): (Pointer, usize),
    width: usize,
) -> Result<CudaSlice<f32>> {
    let y = gpu.alloc(count * width)?;
    let args = [Arg::Pointer(x), Arg::Pointer(gpu.pointer(&y)), Arg::Pointer(rows), Arg::Int(width as i32)];
    let name = if is_bf16 { "gather_rows_bf16" } else { "gather_rows" };
    // SAFETY: as the caller says; `y` was made of that size.
    unsafe { gpu.launch(name, ((count, 1, 1), ROW_THREADS, 0), &args)? };
    Ok(y)
}

/// Rows `rows` of `x`, one after the other, as they are.
///
/// # Safety
/// `x` has rows of `width` numbers up to the last of `rows`, which leads to `count` numbers.
pub(super) unsafe fn gather_rows_as_they_are(
    gpu: &Gpu,
    x: &CudaSlice<bf16>,
    (rows, count): (Pointer, usize),
    width: usize,
) -> Result<CudaSlice<bf16>> {
    let y = gpu.alloc(count * width)?;
    let pointers = [gpu.pointer(x), gpu.pointer(&y), rows].map(Arg::Pointer);
    let args = [pointers.as_slice(), &[Arg::Int(width as i32)]].concat();
    // SAFETY: as the caller says; `y` was made of that size.
    unsafe { gpu.launch("gather_rows_as_they_are", ((count, 1, 1), ROW_THREADS, 0), &args)? };
    Ok(y)
}

/// `y[rows[i]] += x[i]`.
///
/// # Safety
/// `x` leads to `count` rows of `width` numbers, `y` to all that are named, none of which comes twice.
pub(crate) unsafe fn add_to_rows(
    gpu: &Gpu,
    (x, y): (Pointer, Pointer),
    (rows, count): (Pointer, usize),
    width: usize,
) -> Result<()> {
    let args = [Arg::Pointer(x), Arg::Pointer(y), Arg::Pointer(rows), Arg::Int(width as i32)];
    // SAFETY: as the caller says.
    unsafe { gpu.launch("add_to_rows", ((count, 1, 1), ROW_THREADS, 0), &args) }
}

/// `y[target] = x[source]` for each pair (target, source).
///
/// # Safety
/// `x` leads to all sources, `y` to all targets, none of which comes twice.
pub(crate) unsafe fn place_rows(
    gpu: &Gpu,
    (x, y): (Pointer, Pointer),
    pairs: &[(u32, u32)],
    width: usize,
) -> Result<()> {
    let (targets, sources): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
    let (targets, sources) = (gpu.upload(&targets)?, gpu.upload(&sources)?);
    let args = [
        Arg::Pointer(x),
        Arg::Pointer(y),
        Arg::Pointer(gpu.pointer(&sources)),
        Arg::Pointer(gpu.pointer(&targets)),
        Arg::Int(width as i32),
    ];
    // SAFETY: as the caller says.
    unsafe { gpu.launch("place_rows", ((pairs.len(), 1, 1), ROW_THREADS, 0), &args) }
}

/// Zeros in these rows of `y`.
///
/// # Safety
/// `y` leads to all rows that are named.
pub(crate) unsafe fn clear_rows(gpu: &Gpu, y: Pointer, rows: &[u32], width: usize) -> Result<()> {
    let uploaded = gpu.upload(rows)?;
    let args = [Arg::Pointer(y), Arg::Pointer(gpu.pointer(&uploaded)), Arg::Int(width as i32)];
    // SAFETY: as the caller says.
    unsafe { gpu.launch("clear_rows", ((rows.len(), 1, 1), ROW_THREADS, 0), &args) }
}

/// `x[i] * factors[i]` for each row.
///
/// # Safety
/// `x` leads to `rows * width` numbers, the factors to `rows`.
pub(crate) unsafe fn scale_rows(
    gpu: &Gpu,
    (x, factors): (Pointer, Pointer),
    (rows, width): (usize, usize),
) -> Result<CudaSlice<f32>> {
    let y = gpu.alloc(rows * width)?;
    let args = [Arg::Pointer(x), Arg::Pointer(gpu.pointer(&y)), Arg::Pointer(factors), Arg::Int(width as i32)];
    // SAFETY: as the caller says; `y` was made of the size of `x`.
    unsafe { gpu.launch("scale_rows", ((rows, 1, 1), ROW_THREADS, 0), &args)? };
    Ok(y)
}
