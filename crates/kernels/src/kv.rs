//! Keys and values of one layer, appended to in the order in which tokens are run.

use crate::buffer::Buffer;
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Keys and values of one layer, `[S, K, H]` each, f32, keys with their rotation applied.
#[derive(Debug, Clone, Default)]
pub struct KvLayer {
    keys: Buffer,
    values: Buffer,
    width: usize,
}

impl KvLayer {
    /// An empty layer whose tokens have `width = num_key_value_heads * head_dim` numbers each.
    pub fn new(width: usize) -> Self {
        Self { keys: Buffer::default(), values: Buffer::default(), width }
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
    /// When the two differ in shape, their width is not that of the layer, or they lie on another device than it.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        if k.dims() != v.dims() || k.elem_count() != k.dim(0)? * self.width {
            bail!("kv_cache: expected [T, {}], found keys {:?}, values {:?}", self.width, k.shape(), v.shape());
        }
        self.keys.extend(k)?;
        self.values.extend(v)
    }

    /// Writes `[T, K, H]` keys and values to the places of T tokens, each run of which takes the next of them.
    ///
    /// # Errors
    /// When the two differ in shape, their width is not that of the layer, the runs are not T places, or they lie on
    /// another device than it.
    pub fn write(&mut self, runs: &[Range<usize>], k: &Tensor, v: &Tensor) -> Result<()> {
        let t = k.dim(0)?;
        let places: usize = runs.iter().map(Range::len).sum();
        if k.dims() != v.dims() || k.elem_count() != t * self.width || places != t {
            let width = self.width;
            bail!("kv_cache: expected [{places}, {width}], found keys {:?}, values {:?}", k.shape(), v.shape());
        }
        let runs: Vec<Range<usize>> = runs.iter().map(|run| run.start * self.width..run.end * self.width).collect();
        self.keys.write(k, &runs)?;
        self.values.write(v, &runs)
    }

    /// Forgets all tokens from `num_tokens` on.
    pub fn truncate(&mut self, num_tokens: usize) {
        self.keys.truncate(num_tokens * self.width);
        self.values.truncate(num_tokens * self.width);
    }

    /// A copy of the tokens `range`.
    ///
    /// # Errors
    /// When its device has no memory for the copy.
    ///
    /// # Panics
    /// When the range reaches beyond [`KvLayer::num_tokens`].
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        self.select(&[range])
    }

    /// A copy of the tokens of all `ranges`, end to end.
    ///
    /// # Errors
    /// When its device has no memory for the copy.
    ///
    /// # Panics
    /// When a range reaches beyond [`KvLayer::num_tokens`].
    pub fn select(&self, ranges: &[Range<usize>]) -> Result<Self> {
        let numbers = |range: &Range<usize>| range.start * self.width..range.end * self.width;
        let ranges: Vec<Range<usize>> = ranges.iter().map(numbers).collect();
        Ok(Self { keys: self.keys.select(&ranges)?, values: self.values.select(&ranges)?, width: self.width })
    }

    /// All keys and all values, on the host: S tokens of each.
    ///
    /// # Errors
    /// When they cannot be had from their device.
    pub fn numbers(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.keys.to_vec()?, self.values.to_vec()?))
    }

    /// The addresses of keys and values on the GPU, with room for so many tokens: zeros where there were none, unless they
    /// are all to be written.
    #[cfg(feature = "cuda")]
    pub(crate) fn room(
        &mut self,
        gpu: &'static crate::cuda::Gpu,
        num_tokens: usize,
        is_filled: bool,
    ) -> Result<[crate::cuda::Pointer; 2]> {
        let end = num_tokens * self.width;
        Ok([self.keys.room(gpu, end, is_filled)?, self.values.room(gpu, end, is_filled)?])
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn keys(&self) -> &Buffer {
        &self.keys
    }

    pub(crate) fn values(&self) -> &Buffer {
        &self.values
    }
}
