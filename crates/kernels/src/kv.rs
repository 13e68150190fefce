//! Keys and values of one layer, appended to in the order in which tokens are run.

use crate::cpu;
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Keys and values of one layer, `[S, K, H]` each, f32, keys with their rotation applied.
#[derive(Debug, Clone, Default)]
pub struct KvLayer {
    keys: Vec<f32>,
    values: Vec<f32>,
    width: usize,
}

impl KvLayer {
    /// An empty layer whose tokens have `width = num_key_value_heads * head_dim` numbers each.
    pub fn new(width: usize) -> Self {
        Self { keys: Vec::new(), values: Vec::new(), width }
    }

    /// Number of tokens held, S.
    pub fn num_tokens(&self) -> usize {
        self.keys.len() / self.width.max(1)
    }

    /// Memory in use, bytes.
    pub fn num_bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<f32>()
    }

    /// Appends `[T, K, H]` keys and values.
    ///
    /// # Errors
    /// When the two differ in shape or their width is not that of the layer.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        if k.dims() != v.dims() || k.elem_count() != k.dim(0)? * self.width {
            bail!("kv_cache: expected [T, {}], found keys {:?}, values {:?}", self.width, k.shape(), v.shape());
        }
        cpu::with_values(k, |k| self.keys.extend_from_slice(k))?;
        cpu::with_values(v, |v| self.values.extend_from_slice(v))
    }

    /// Forgets all tokens from `num_tokens` on.
    pub fn truncate(&mut self, num_tokens: usize) {
        self.keys.truncate(num_tokens * self.width);
        self.values.truncate(num_tokens * self.width);
    }

    /// A copy of the tokens `range`.
    ///
    /// # Panics
    /// When the range reaches beyond [`KvLayer::num_tokens`].
    pub fn slice(&self, range: Range<usize>) -> Self {
        self.select(&[range])
    }

    /// A copy of the tokens of all `ranges`, end to end.
    ///
    /// # Panics
    /// When a range reaches beyond [`KvLayer::num_tokens`].
    pub fn select(&self, ranges: &[Range<usize>]) -> Self {
        let of = |numbers: &[f32]| {
            let part = |range: &Range<usize>| &numbers[range.start * self.width..range.end * self.width];
            ranges.iter().flat_map(part).copied().collect()
        };
        Self { keys: of(&self.keys), values: of(&self.values), width: self.width }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn keys(&self) -> &[f32] {
        &self.keys
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }
}
