//! Attention under visibility, and its gradients (cuda/attention.cuh, attention_tensor.cuh, attention_graph.cuh).

use super::{Arg, Gpu, Pointer};
use crate::ops::{AttentionMask, AttentionSpec, WIDEST_ROUNDED};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use std::sync::{Mutex, PoisonError};

/// Rows or keys that a block takes, as in cuda/attention.cuh.
const TILE: usize = 32;
const THREADS: u32 = 128;
/// Rows of a block where a warp takes one.
const WARPS: usize = THREADS as usize / 32;

/// The kernel's first argument, field by field as in cuda/attention.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attention {
    pub(crate) q: Pointer,
    pub(crate) past_keys: Pointer,
    pub(crate) past_values: Pointer,
    pub(crate) new_keys: Pointer,
    pub(crate) new_values: Pointer,
    pub(crate) offsets: Pointer,
    pub(crate) intervals: Pointer,
    pub(crate) num_past: i32,
    pub(crate) num_new: i32,
    pub(crate) num_queries: i32,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

/// Numbers of past and of new keys, and a copy on the GPU of what [`queries_of_tiles`] gives for them.
type QueriesOf = ((i32, i32), CudaSlice<u32>);

/// Copies of a mask on the GPU.
#[derive(Default)]
pub(crate) struct DeviceMask {
    offsets: super::Uploaded<u32>,
    intervals: super::Uploaded<u32>,
    queries: Mutex<Vec<QueriesOf>>,
}

impl DeviceMask {
    fn queries(&self, gpu: &Gpu, mask: &AttentionMask, counts: (i32, i32)) -> Result<Pointer> {
        let mut kept = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slice)) = kept.iter().find(|(of, _)| *of == counts) {
            return Ok(gpu.pointer(slice));
        }
        let slice = gpu.upload(&queries_of_tiles(mask, counts.0 as usize, counts.1 as usize))?;
        let pointer = gpu.pointer(&slice);
        kept.push((counts, slice));
        Ok(pointer)
    }
}

/// For each tile of new keys, the queries from..to among which are all that see one of them.
fn queries_of_tiles(mask: &AttentionMask, num_past: usize, num_new: usize) -> Vec<u32> {
    let mut queries = vec![(u32::MAX, 0u32); num_new.div_ceil(TILE)];
    for query in 0..mask.num_queries() {
        for (from, to) in mask.intervals(query) {
            let (from, to) = ((*from as usize).max(num_past), (*to as usize).min(num_past + num_new));
            if from < to {
                for tile in &mut queries[(from - num_past) / TILE..=(to - 1 - num_past) / TILE] {
                    *tile = (tile.0.min(query as u32), tile.1.max(query as u32 + 1));
                }
            }
        }
    }
    queries.into_iter().flat_map(|(from, to)| [from.min(to), to]).collect()
}

/// What the backward pass keeps of the forward pass.
pub(crate) struct AttentionSums {
    /// Of each row the logarithm of its softmax sum.
    of_rows: CudaSlice<f32>,
    /// Whether products were of bf16 numbers, as they are on the way back then.
    rounded: bool,
}

macro_rules! names {
    ($name:literal) => {
        [concat!($name, "_1"), concat!($name, "_2"), concat!($name, "_3"), concat!($name, "_4"), concat!($name, "_8")]
    };
}

impl Attention {
    /// Of a spec; pointers and sizes of the operands are set afterwards.
    pub(crate) fn new(gpu: &Gpu, spec: &AttentionSpec) -> Result<Self> {
        let mask = &spec.mask;
        let copies = mask.on_gpu();
        let intervals = || {
            // The kernels step through the keys in ascending order.
            let of_query = |query| {
                let mut sorted = mask.intervals(query).to_vec();
                sorted.sort_unstable();
                sorted.into_iter().flat_map(|(from, to)| [from, to])
            };
            (0..mask.num_queries()).flat_map(of_query).collect()
        };
        Ok(Self {
            q: 0,
            past_keys: 0,
            past_values: 0,
            new_keys: 0,
            new_values: 0,
            offsets: copies.offsets.get(gpu, || mask.offsets().to_vec())?,
            intervals: copies.intervals.get(gpu, intervals)?,
            num_past: 0,
            num_new: 0,
            num_queries: mask.num_queries() as i32,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
        })
    }

    fn num_rows(&self) -> usize {
        self.num_queries as usize * self.heads as usize
    }

    /// Blocks over `count` rows or keys of each key head.
    fn blocks(&self, count: usize) -> (usize, usize) {
        (count.div_ceil(TILE), self.kv_heads as usize)
    }

    /// Blocks over `count` rows or keys of each key head, of which a warp takes 16.
    fn warp_blocks(&self, count: usize) -> (usize, usize, usize) {
        (count.div_ceil(16 * WARPS), self.kv_heads as usize, 1)
    }

    /// Blocks over the rows of each key head.
    fn row_blocks(&self) -> (usize, usize) {
        self.blocks(self.num_rows() / self.kv_heads as usize)
    }

    /// Which of some kernels takes this width of heads, and the width that it takes.
    fn kernel_of_width(&self, names: [&'static str; 5]) -> Result<(&'static str, usize)> {
        const WIDTHS: [usize; 5] = [32, 64, 96, 128, 256];
        let found = names.into_iter().zip(WIDTHS).find(|(_, width)| self.head_dim as usize <= *width);
        found.ok_or_else(|| {
            candle_core::Error::Msg(format!("attention: heads of {} numbers, at most 256", self.head_dim))
        })
    }

    /// Which of some kernels takes this width of heads, and bytes of shared memory for `plain` tiles of rows as they are,
    /// `apart` with rows set apart, and `weights` of scores.
    fn kernel(
        &self,
        names: [&'static str; 5],
        (plain, apart, weights): (usize, usize, usize),
    ) -> Result<(&'static str, usize)> {
        let (name, width) = self.kernel_of_width(names)?;
        Ok((name, (plain * width + apart * (width + 4) + weights * TILE) * TILE * size_of::<f32>()))
    }
}

/// Few rows over many keys, the keys shared out among blocks.
///
/// # Safety
/// The pointers of `a` lead to tensors of its sizes.
unsafe fn attention_in_shares(gpu: &Gpu, a: Attention, num_shares: usize) -> Result<CudaSlice<f32>> {
    let (rows, num_keys) = (a.num_rows(), (a.num_past + a.num_new) as usize);
    let out = gpu.alloc(rows * a.head_dim as usize)?;
    let shares = gpu.alloc::<f32>(num_shares * rows * a.head_dim as usize)?;
    let stats = gpu.alloc::<f32>(2 * num_shares * rows)?;
    let (name, shared) = a.kernel(names!("attention_share"), (1, 2, 1))?;
    let (x, y) = a.row_blocks();
    let args = [
        Arg::Attention(a),
        Arg::Int(num_keys.div_ceil(num_shares) as i32),
        Arg::Pointer(gpu.pointer(&shares)),
        Arg::Pointer(gpu.pointer(&stats)),
    ];
    // SAFETY: as the caller says; each share has a place for its sums.
    unsafe { gpu.launch(name, ((x, y, num_shares), THREADS, shared), &args)? };
    let args = [
        Arg::Attention(a),
        Arg::Pointer(gpu.pointer(&shares)),
        Arg::Pointer(gpu.pointer(&stats)),
        Arg::Int(num_shares as i32),
        Arg::Pointer(gpu.pointer(&out)),
    ];
    // SAFETY: as the caller says; the output was made of its size.
    unsafe { gpu.launch("attention_join", ((rows.div_ceil(WARPS), 1, 1), THREADS, 0), &args)? };
    Ok(out)
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In f32.
    Plain,
    /// With the sums that a backward pass needs; where it `rounds`, products of bf16 numbers on tensor cores, for heads that
    /// are not too wide.
    ForBackward { rounds: bool },
    /// Products of bf16 numbers, on tensor cores.
    Rounded,
}

/// Products of bf16 numbers with f32 sums (cuda/attention_tensor.cuh).
///
/// # Safety
/// The pointers of `a` lead to tensors of its sizes.
unsafe fn attention_rounded(gpu: &Gpu, a: Attention) -> Result<CudaSlice<f32>> {
    /// Rows that a block takes.
    const ROWS: usize = 64;
    let out = gpu.alloc(a.num_rows() * a.head_dim as usize)?;
    let (name, width) = a.kernel_of_width(names!("attention_bf16"))?;
    // Keys and values of a tile, and for the widest heads the queries too, as bf16.
    let shared = if width > 128 { 384 } else { 256 } * (width + 8);
    let kv_heads = a.kv_heads as usize;
    let blocks = ((a.num_rows() / kv_heads).div_ceil(ROWS), kv_heads, 1);
    // SAFETY: as the caller says; the output was made of its size.
    unsafe { gpu.launch(name, (blocks, THREADS, shared), &[Arg::Attention(a), Arg::Pointer(gpu.pointer(&out))])? };
    Ok(out)
}

/// `[T, N, H]`, and the sums that a backward pass needs where there will be one.
///
/// # Safety
/// The pointers of `a` lead to tensors of its sizes.
pub(crate) unsafe fn attention(gpu: &Gpu, a: Attention, kind: Kind) -> Result<(CudaSlice<f32>, Option<AttentionSums>)> {
    /// Blocks that keep every unit of a large card busy.
    const ENOUGH_BLOCKS: usize = 128;
    /// Fewer keys than this are not worth a share of their own.
    const LEAST_SHARE: usize = 2 * TILE;
    let (x, y) = a.row_blocks();
    let num_shares = (ENOUGH_BLOCKS / (x * y).max(1)).min((a.num_past + a.num_new) as usize / LEAST_SHARE);
    let for_backward = matches!(kind, Kind::ForBackward { .. });
    if num_shares > 1 && !for_backward {
        // SAFETY: as the caller says.
        return Ok((unsafe { attention_in_shares(gpu, a, num_shares)? }, None));
    }
    if kind == Kind::Rounded {
        // SAFETY: as the caller says.
        return Ok((unsafe { attention_rounded(gpu, a)? }, None));
    }
    let out = gpu.alloc(a.num_rows() * a.head_dim as usize)?;
    let sums = for_backward.then(|| gpu.alloc::<f32>(a.num_rows())).transpose()?;
    let args = [
        Arg::Attention(a),
        Arg::Pointer(gpu.pointer(&out)),
        Arg::Pointer(sums.as_ref().map_or(0, |sums| gpu.pointer(sums))),
    ];
    let rounded = kind == Kind::ForBackward { rounds: true } && a.head_dim as usize <= WIDEST_ROUNDED;
    let (name, shape) = if rounded {
        (a.kernel_of_width(names!("attention_graph"))?.0, (a.warp_blocks(a.num_rows() / y), THREADS, 0))
    } else {
        let (name, shared) = a.kernel(names!("attention"), (1, 2, 1))?;
        (name, ((x, y, 1), THREADS, shared))
    };
    // SAFETY: as the caller says; the outputs were made of these sizes.
    unsafe { gpu.launch(name, shape, &args)? };
    Ok((out, sums.map(|of_rows| AttentionSums { of_rows, rounded })))
}

/// Gradients of queries, new keys and new values; the latter two where `wants_keys`.
pub(crate) struct AttentionGradients {
    pub(crate) q: CudaSlice<f32>,
    pub(crate) keys_values: Option<[CudaSlice<f32>; 2]>,
}

/// The gradients, from the output `y`, its gradient `dy`, and the sums of the forward pass.
///
/// # Safety
/// The pointers of `a` lead to tensors of its sizes, `y` and `dy` to `[T, N, H]`.
pub(crate) unsafe fn attention_backward(
    gpu: &Gpu,
    (a, mask): (Attention, &AttentionMask),
    (y, dy): (Pointer, Pointer),
    sums: &AttentionSums,
    wants_keys: bool,
) -> Result<AttentionGradients> {
    let (means, q) = (gpu.alloc::<f32>(a.num_rows())?, gpu.alloc(a.num_rows() * a.head_dim as usize)?);
    let dq = Arg::Pointer(gpu.pointer(&q));
    let common = [dy, gpu.pointer(&sums.of_rows), gpu.pointer(&means)].map(Arg::Pointer);
    let row_blocks = a.row_blocks();
    // SAFETY: as the caller says; there is a mean for each row, and the gradient was made of its size.
    unsafe {
        if sums.rounded {
            let name = a.kernel_of_width(names!("attention_graph_dq"))?.0;
            let args = [&[Arg::Attention(a), Arg::Pointer(y)], common.as_slice(), &[dq]].concat();
            gpu.launch(name, (a.warp_blocks(a.num_rows() / row_blocks.1), THREADS, 0), &args)?;
        } else {
            let args = [Arg::Attention(a), Arg::Pointer(y), Arg::Pointer(dy), Arg::Pointer(gpu.pointer(&means))];
            gpu.launch("attention_means", ((a.num_rows().div_ceil(WARPS), 1, 1), THREADS, 0), &args)?;
            let (name, shared) = a.kernel(names!("attention_dq"), (2, 2, 1))?;
            let args = [&[Arg::Attention(a)], common.as_slice(), &[dq]].concat();
            gpu.launch(name, ((row_blocks.0, row_blocks.1, 1), THREADS, shared), &args)?;
        }
    }
    if !wants_keys {
        return Ok(AttentionGradients { q, keys_values: None });
    }
    let count = a.num_new as usize * a.kv_heads as usize * a.head_dim as usize;
    let keys_values = [gpu.alloc(count)?, gpu.alloc(count)?];
    let (name, shape) = if sums.rounded {
        (a.kernel_of_width(names!("attention_graph_dkv"))?.0, (a.warp_blocks(a.num_new as usize), THREADS, 0))
    } else {
        let ((name, shared), (x, y)) = (a.kernel(names!("attention_dkv"), (2, 2, 2))?, a.blocks(a.num_new as usize));
        (name, ((x, y, 1), THREADS, shared))
    };
    let mut args = [&[Arg::Attention(a)], common.as_slice()].concat();
    args.push(Arg::Pointer(mask.on_gpu().queries(gpu, mask, (a.num_past, a.num_new))?));
    args.extend(keys_values.iter().map(|gradient| Arg::Pointer(gpu.pointer(gradient))));
    // SAFETY: as the caller says; the gradients were made of their sizes, and each tile of keys has its queries.
    unsafe { gpu.launch(name, shape, &args)? };
    Ok(AttentionGradients { q, keys_values: Some(keys_values) })
}
