//! All layers of a decoder for a few tokens in one launch (cuda/few_rows.cuh).

use super::{Arg, Gpu, Pointer, at};
use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, sys};

/// As in cuda/few_rows.cuh.
const THREADS: u32 = 512;
const WARPS: usize = THREADS as usize / 32;
/// Heads that are scored together.
const GROUP: usize = 4;
/// Keys for which a share of their own is worth it, and the most shares of a head's.
const KEYS_OF_SHARE: usize = 128;
const MOST_SHARES: usize = 16;
/// Shared memory that every card from sm_80 on gives a block.
const MOST_SHARED: usize = 96 << 10;

/// A layer's operands, laid out as its twin in cuda/few_rows.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct FewLayer {
    /// Before attention and before feed-forward.
    pub(crate) norms: [Pointer; 2],
    /// q, k, v, o, gate, up, down, in bf16.
    pub(crate) maps: [Pointer; 7],
    /// Keys and values.
    pub(crate) kv: [Pointer; 2],
    /// Cosines and sines.
    pub(crate) angles: [Pointer; 2],
    /// Offsets and intervals of the mask.
    pub(crate) mask: [Pointer; 2],
}

/// The kernel's argument, field by field as in cuda/few_rows.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FewRows {
    pub(crate) layers: Pointer,
    pub(crate) places: Pointer,
    pub(crate) x: Pointer,
    pub(crate) q: Pointer,
    pub(crate) shares: Pointer,
    pub(crate) hidden: Pointer,
    pub(crate) arrived: Pointer,
    pub(crate) num_layers: i32,
    pub(crate) rows: i32,
    pub(crate) width: i32,
    pub(crate) inner: i32,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) num_shares: i32,
    pub(crate) activation: i32,
    pub(crate) eps: f32,
    pub(crate) offset: f32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

/// Words that go to the GPU in one piece, at addresses of 8 bytes.
#[derive(Default)]
pub(crate) struct Pack(Vec<u32>);

impl Pack {
    /// Adds words; gives how many lie before them.
    pub(crate) fn add(&mut self, words: impl IntoIterator<Item = u32>) -> usize {
        self.0.resize(self.0.len().next_multiple_of(2), 0);
        let first = self.0.len();
        self.0.extend(words);
        first
    }
}

impl FewRows {
    /// Rows that the kernel is made for, and bytes of shared memory.
    fn kernel(&self) -> (&'static str, usize) {
        let (name, rows) = match self.rows {
            ..=1 => ("few_rows_1", 1),
            2 => ("few_rows_2", 2),
            3..=4 => ("few_rows_4", 4),
            _ => ("few_rows_8", 8),
        };
        let h = self.head_dim as usize;
        let of_heads = WARPS * GROUP * (h + 2) + GROUP * h;
        let widest = self.width.max(self.inner).max(self.heads * self.head_dim) as usize;
        (name, (rows * widest).max(of_heads) * size_of::<f32>())
    }

    /// Whether there are kernels for these sizes.
    pub(crate) fn fits(&self) -> bool {
        let (h, eights) = (self.head_dim, [self.width, self.inner, self.heads * self.head_dim]);
        (1..=8).contains(&self.rows)
            && eights.iter().all(|width| *width > 0 && width % 8 == 0)
            && h.count_ones() == 1
            && (8..=256).contains(&h)
            && self.kv_heads > 0
            && self.heads % self.kv_heads == 0
            && self.kernel().1 <= MOST_SHARED
    }

    /// Runs `layers`, whose angles and masks are still numbers of words within `pack`, on the state `x`, in place; of
    /// each token at most `num_keys` are seen.
    ///
    /// # Safety
    /// The sizes fit, the pointers lead to tensors of them, and intervals and places are of tokens that the keys have.
    pub(crate) unsafe fn run(
        mut self,
        gpu: &Gpu,
        (mut pack, mut layers): (Pack, Vec<FewLayer>),
        places: &[u32],
        num_keys: usize,
    ) -> Result<()> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let blocks = gpu.stream.context().attribute(attribute).w()? as usize;
        let (rows, heads, h) = (self.rows as usize, self.heads as usize, self.head_dim as usize);
        let for_each = (blocks / (rows * self.kv_heads as usize)).max(1);
        let num_shares = num_keys.div_ceil(KEYS_OF_SHARE).clamp(1, MOST_SHARES.min(for_each));
        let (of_q, of_shares) = (rows * heads * h, rows * heads * num_shares * (h + 2));
        let room = gpu.alloc::<f32>(of_q + rows * self.inner as usize + of_shares)?;
        self.q = gpu.pointer(&room);
        self.hidden = at(self.q, of_q);
        self.shares = at(self.hidden, rows * self.inner as usize);
        (self.num_shares, self.num_layers) = (num_shares as i32, layers.len() as i32);
        let (of_places, of_arrived) = (pack.add(places.iter().copied()), pack.add([0]));
        let of_layers = pack.add([]);
        let on_gpu: CudaSlice<u32> = gpu.alloc(of_layers + layers.len() * size_of::<FewLayer>() / size_of::<u32>())?;
        let base = gpu.pointer(&on_gpu);
        for layer in &mut layers {
            for place in layer.angles.iter_mut().chain(&mut layer.mask).filter(|place| **place != NONE) {
                *place = at(base, *place as usize);
            }
            layer.angles.iter_mut().filter(|place| **place == NONE).for_each(|place| *place = 0);
            let pointers = [&layer.norms[..], &layer.maps, &layer.kv, &layer.angles, &layer.mask].concat();
            pack.add(pointers.into_iter().flat_map(|pointer| [pointer as u32, (pointer >> 32) as u32]));
        }
        // SAFETY: what was set aside is as long as the pack.
        unsafe { gpu.send(&pack.0, base)? };
        (self.layers, self.places) = (at(base, of_layers), at(base, of_places));
        self.arrived = at(base, of_arrived);
        let (name, shared) = self.kernel();
        // SAFETY: as the caller says; what lies between was made of its size, and the counter is zero.
        unsafe { gpu.launch_together(name, ((blocks, 1, 1), THREADS, shared), &[Arg::FewRows(self)]) }
    }
}

/// In place of a number of words: nothing there.
pub(crate) const NONE: Pointer = Pointer::MAX;
