//! Input embeddings: rows of the vocabulary, with rows of the trained special tokens in their places.

use super::Weight;
use crate::cpu::{axpy, output, slice, tensor, wanted, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Rows `ids` of the token embedding.
///
/// # Shapes
/// `[V, D]`, T ids -> `[T, D]`.
///
/// # Errors
/// When an id is outside V: the message names id and V.
pub fn embed_tokens(weight: &Weight, ids: &[u32]) -> Result<Tensor> {
    let (v, d) = weight.dims()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        bail!("token id {id} is outside the vocabulary of {v}");
    }
    match weight {
        Weight::Frozen(matrix) => {
            let mut x = vec![0f32; ids.len() * d];
            for (id, row) in ids.iter().zip(x.chunks_mut(d)) {
                matrix.dequantise_row(*id as usize, row);
            }
            tensor(x, (ids.len(), d))
        }
        Weight::Dense(table) => table.index_select(&Tensor::new(ids, table.device())?, 0),
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

    fn bwd(
        &self,
        tokens: &Tensor,
        special: &Tensor,
        _x: &Tensor,
        dx: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = special.dims()[1];
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
