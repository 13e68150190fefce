//! Input embeddings: rows of the vocabulary, with rows of the trained special tokens in their places.

use super::Weight;
use crate::cpu::{axpy, output, slice, tensor, wanted, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use std::collections::BTreeMap;

/// Rows `ids` of the token embedding, on `device`.
///
/// # Shapes
/// `[V, D]`, T ids -> `[T, D]`.
///
/// # Errors
/// When an id is outside V: the message names id and V.
pub fn embed_tokens(weight: &Weight, ids: &[u32], device: &Device) -> Result<Tensor> {
    let (v, d) = weight.dims()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        bail!("token id {id} is outside the vocabulary of {v}");
    }
    #[cfg(feature = "cuda")]
    if let (Weight::Frozen(matrix), Device::Cuda(device)) = (weight, device) {
        let gpu = cuda::Gpu::of(device)?;
        let (table, rows) = (matrix.on(gpu)?, gpu.upload(ids)?);
        let from = (table.pointer(gpu), table.is_bf16());
        // SAFETY: the ids are rows of the table.
        let x = unsafe { cuda::gather_rows(gpu, from, (gpu.pointer(&rows), ids.len()), d)? };
        return Ok(gpu.tensor(x, (ids.len(), d)));
    }
    match weight {
        Weight::Frozen(matrix) => {
            let mut x = vec![0f32; ids.len() * d];
            for (id, row) in ids.iter().zip(x.chunks_mut(d)) {
                matrix.dequantise_row(*id as usize, row);
            }
            tensor(x, (ids.len(), d))?.to_device(device)
        }
        Weight::Dense(table) => table.index_select(&Tensor::new(ids, device)?, 0),
    }
}

struct EmbedInputs(Vec<(u32, u32)>);

/// `tokens`, with row t replaced by `special[j]` for every pair (t, j).
///
/// # Shapes
/// `tokens: [T, D]`, `special: [k, D]` -> `[T, D]`.
///
/// # Errors
/// When a pair is outside T or k.
pub fn embed_inputs(tokens: &Tensor, special: &Tensor, places: Vec<(u32, u32)>) -> Result<Tensor> {
    let ((t, d), (k, width)) = (tokens.dims2()?, special.dims2()?);
    if d != width || places.iter().any(|(at, j)| *at as usize >= t || *j as usize >= k) {
        bail!("embed_inputs: {k} special tokens of width {width} into {:?}", tokens.shape());
    }
    tokens.contiguous()?.apply_op2(&special.contiguous()?, EmbedInputs(places))
}

#[cfg(feature = "cuda")]
impl EmbedInputs {
    /// The special token of each row that has one: of several pairs for a row, the last.
    fn by_row(&self) -> BTreeMap<u32, u32> {
        self.0.iter().copied().collect()
    }

    fn backward_on(
        &self,
        gpu: &cuda::Gpu,
        tokens: &Tensor,
        special: &Tensor,
        dx: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d, by_row, dx) = (special.dims()[1], self.by_row(), cuda::Read::of(dx)?);
        let d_tokens = if tokens.track_op() {
            let (d_tokens, rows) = (gpu.alloc(tokens.elem_count())?, by_row.keys().copied().collect::<Vec<_>>());
            // SAFETY: the gradient was made of the size of the tokens, which have all these rows.
            unsafe {
                gpu.copy(dx.pointer, gpu.pointer(&d_tokens), tokens.elem_count())?;
                cuda::clear_rows(gpu, gpu.pointer(&d_tokens), &rows, d)?;
            }
            Some(gpu.tensor(d_tokens, tokens.shape()))
        } else {
            None
        };
        let mut rows_of = vec![Vec::new(); special.dims()[0]];
        by_row.iter().for_each(|(row, j)| rows_of[*j as usize].push((*row, 1.0)));
        let d_special = gpu.alloc(special.elem_count())?;
        // SAFETY: the lists name rows of the gradient; there is one for each special token.
        unsafe { cuda::weighted_rows(gpu, (dx.pointer, gpu.pointer(&d_special)), &rows_of, None, d)? };
        Ok((d_tokens, Some(gpu.tensor(d_special, special.shape())).filter(|_| special.track_op())))
    }
}

impl CustomOp2 for EmbedInputs {
    fn name(&self) -> &'static str {
        "embed_inputs"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (special, d) = (slice(s2, l2, "embed_inputs")?, l2.dims()[1]);
        let mut x = slice(s1, l1, "embed_inputs")?.to_vec();
        for (t, j) in &self.0 {
            let (t, j) = (*t as usize * d, *j as usize * d);
            x[t..t + d].copy_from_slice(&special[j..j + d]);
        }
        Ok(output(x, l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let ((gpu, tokens), (_, special)) =
            (cuda::operand(s1, l1, "embed_inputs")?, cuda::operand(s2, l2, "embed_inputs")?);
        let (count, places): (_, Vec<(u32, u32)>) = (l1.shape().elem_count(), self.by_row().into_iter().collect());
        let x = gpu.alloc(count)?;
        // SAFETY: `embed_inputs` has compared the pairs with T and k; `x` was made of the size of the tokens.
        unsafe {
            gpu.copy(tokens, gpu.pointer(&x), count)?;
            cuda::place_rows(gpu, (special, gpu.pointer(&x)), &places, l2.dims()[1])?;
        }
        Ok(gpu.output(x, l1.shape()))
    }

    fn bwd(
        &self,
        tokens: &Tensor,
        special: &Tensor,
        _x: &Tensor,
        dx: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = special.dims()[1];
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dx)? {
            return self.backward_on(gpu, tokens, special, dx);
        }
        let mut d_tokens = with_values(dx, <[f32]>::to_vec)?;
        let mut d_special = vec![0f32; special.elem_count()];
        // Of several pairs for a row, the last one counts.
        for (t, j) in self.0.iter().rev() {
            let row = &mut d_tokens[*t as usize * d..][..d];
            axpy(1.0, row, &mut d_special[*j as usize * d..][..d]);
            row.fill(0.0);
        }
        Ok((wanted(tokens, || d_tokens)?, wanted(special, || d_special)?))
    }
}
