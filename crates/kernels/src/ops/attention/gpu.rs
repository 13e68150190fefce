//! Attention on the GPU: operands into what the kernels take, and results into tensors.

use super::{Attention, AttentionSpec};
use crate::cuda;
use crate::kv::KvLayer;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};

/// As [`super::attention_cached`], on a GPU.
pub(super) fn attention_cached(
    gpu: &cuda::Gpu,
    q: &Tensor,
    cache: &KvLayer,
    kv_heads: usize,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    let read = cuda::Read::of(q)?;
    let on_gpu = cuda::Attention {
        q: read.pointer,
        new_keys: cache.keys().pointer()?,
        new_values: cache.values().pointer()?,
        num_new: cache.num_tokens() as i32,
        heads: q.dims()[1] as i32,
        kv_heads: kv_heads as i32,
        head_dim: q.dims()[2] as i32,
        ..cuda::Attention::new(gpu, spec)?
    };
    let kind = if spec.bf16 { cuda::Kind::Rounded } else { cuda::Kind::Plain };
    // SAFETY: `check` has compared the shapes, and the mask with the keys.
    let (y, _) = unsafe { cuda::attention(gpu, on_gpu, kind)? };
    Ok(gpu.tensor(y, q.shape()))
}

impl Attention {
    /// The operation on the GPU: addresses and shapes of queries and of new keys and values.
    fn on(
        &self,
        gpu: &cuda::Gpu,
        [q, new_keys, new_values]: [cuda::Pointer; 3],
        (queries, keys): (&[usize], &[usize]),
    ) -> Result<cuda::Attention> {
        let (past_keys, past_values) = match &self.past {
            Some(past) => (past.keys().pointer()?, past.values().pointer()?),
            None => (0, 0),
        };
        Ok(cuda::Attention {
            q,
            past_keys,
            past_values,
            new_keys,
            new_values,
            num_past: self.past.as_ref().map_or(0, |past| past.num_tokens()) as i32,
            num_new: keys[0] as i32,
            heads: queries[1] as i32,
            kv_heads: keys[1] as i32,
            head_dim: queries[2] as i32,
            ..cuda::Attention::new(gpu, &self.spec)?
        })
    }

    pub(super) fn backward_on(
        &self,
        gpu: &cuda::Gpu,
        [q, k, v]: [&Tensor; 3],
        (y, dy): (&Tensor, &Tensor),
        wants: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let kept = self.sums.as_ref().and_then(|sums| sums.lock().ok()?.take());
        let Some(sums) = kept else { bail!("attention: backward needs one forward pass before it") };
        let (q_at, k_at, v_at) = (cuda::Read::of(q)?, cuda::Read::of(k)?, cuda::Read::of(v)?);
        let (y, dy) = (cuda::Read::of(y)?, cuda::Read::of(dy)?);
        let on_gpu = self.on(gpu, [q_at.pointer, k_at.pointer, v_at.pointer], (q.dims(), k.dims()))?;
        let wants_keys = wants[1] || wants[2];
        let (mask, gradients) = (self.spec.mask.as_ref(), (y.pointer, dy.pointer));
        // SAFETY: `check` has compared the shapes, and the mask with the keys; a gradient has the shape of what it is of.
        let found = unsafe { cuda::attention_backward(gpu, (on_gpu, mask), gradients, &sums, wants_keys)? };
        let [dk, dv] = match found.keys_values {
            Some([dk, dv]) => [Some(gpu.tensor(dk, k.shape())), Some(gpu.tensor(dv, v.shape()))],
            None => [None, None],
        };
        let dq = Some(gpu.tensor(found.q, q.shape())).filter(|_| wants[0]);
        Ok([dq, dk.filter(|_| wants[1]), dv.filter(|_| wants[2])])
    }

    /// What `cuda_fwd` gives for queries, keys and values.
    pub(super) fn forward_on(&self, operands: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        let [(s1, l1), (s2, l2), (s3, l3)] = operands;
        let (gpu, q) = cuda::operand(s1, l1, "attention")?;
        let (k, v) = (cuda::operand(s2, l2, "attention")?.1, cuda::operand(s3, l3, "attention")?.1);
        let on_gpu = self.on(gpu, [q, k, v], (l1.dims(), l2.dims()))?;
        let kind = match &self.sums {
            Some(_) => cuda::Kind::ForBackward { rounds: self.rounds },
            None if self.spec.bf16 => cuda::Kind::Rounded,
            None => cuda::Kind::Plain,
        };
        // SAFETY: `check` has compared the shapes, and the mask with the keys.
        let (y, found) = unsafe { cuda::attention(gpu, on_gpu, kind)? };
        if let Some(sums) = &self.sums
            && let Ok(mut sums) = sums.lock()
        {
            *sums = found;
        }
        Ok(gpu.output(y, l1.shape()))
    }
}
