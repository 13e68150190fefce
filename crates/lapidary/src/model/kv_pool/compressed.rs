//! A text as its special tokens hold it: their keys and values, taken out of a row and put into others.
//!
//! The keys are kept without the rotation of the place that they were computed at, and are rotated to the place where they
//! are put: what follows sees them as near as it would have behind the text (RoPE, arXiv 2104.09864, tells of distances
//! alone).

use super::{KvPool, KvRow, PAGE_TOKENS};
use crate::Error;
use crate::model::{Decoder, frequencies};
use kernels::ops::{RopeTable, rope};
use kernels::{Device, Tensor};
use layout::TokenId;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers that stand for compressed positions among token ids: no vocabulary reaches so far.
const FIRST_STAND_IN: u32 = 1 << 31;

/// Keys and values of the special tokens of one text.
#[derive(Debug)]
pub struct Compressed {
    /// Keys without rotation, and values, of each layer, `[k, K, H]`, on the host.
    layers: Vec<[Tensor; 2]>,
    num_tokens: usize,
    num_text_tokens: usize,
    next: TokenId,
    first_stand_in: u32,
}

impl Compressed {
    /// Positions, k.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Tokens of the text.
    pub fn num_text_tokens(&self) -> usize {
        self.num_text_tokens
    }

    /// The most probable token behind them.
    pub fn next(&self) -> TokenId {
        self.next
    }

    /// Memory of keys and values, bytes.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().flatten().map(|tensor| tensor.elem_count() * size_of::<f32>()).sum()
    }

    /// What stands for its positions among the ids of a row, so that pages that hold them can be found again.
    pub(crate) fn stand_ins(&self) -> impl Iterator<Item = TokenId> {
        (0..self.num_tokens as u32)
            .map(|i| FIRST_STAND_IN | (self.first_stand_in.wrapping_add(i) & (FIRST_STAND_IN - 1)))
    }
}

/// Keys `[T, K, H]` of layer `index` turned by their T positions, or `back` from them.
fn turned(decoder: &Decoder, index: usize, keys: &Tensor, positions: &[u32], back: bool) -> Result<Tensor, Error> {
    let config = decoder.config();
    let Some(number) = config.layers[index].rope else { return Ok(keys.clone()) };
    let spec = &config.ropes[number];
    let sign = if back { -1.0 } else { 1.0 };
    let angles: Vec<f64> =
        frequencies(config.head_dim, spec.theta, &spec.scaling).into_iter().map(|angle| sign * angle).collect();
    Ok(rope(keys, &Arc::new(RopeTable::new(positions, &angles)))?)
}

impl KvPool {
    /// A copy of the positions of a row from `start` on, as many as there are RoPE `positions`; `next` is the most probable
    /// token behind them.
    ///
    /// # Errors
    /// When the row has not run them.
    pub(crate) fn take(
        &self,
        (row, start): (&KvRow, u32),
        decoder: &Decoder,
        positions: &[u32],
        (num_text_tokens, next): (usize, TokenId),
    ) -> Result<Compressed, Error> {
        static STAND_INS: AtomicU32 = AtomicU32::new(0);
        let num_tokens = positions.len();
        let local = start..start + num_tokens as u32;
        if local.end > row.num_tokens {
            return Err(Error::Internal(format!("kv_pool: positions {local:?} of a row of {}", row.num_tokens)));
        }
        let places = places(row, local);
        let config = decoder.config();
        let shape = (num_tokens, config.num_key_value_heads, config.head_dim);
        let layer = |index: usize| -> Result<[Tensor; 2], Error> {
            let (keys, values) = self.layers[index].select(&places)?.numbers()?;
            let keys = Tensor::from_vec(keys, shape, &Device::Cpu)?;
            let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
            Ok([turned(decoder, index, &keys, positions, true)?, values])
        };
        let layers = (0..self.layers.len()).map(layer).collect::<Result<_, _>>()?;
        let first_stand_in = STAND_INS.fetch_add(num_tokens as u32, Ordering::Relaxed);
        Ok(Compressed { layers, num_tokens, num_text_tokens, next, first_stand_in })
    }

    /// Compressed positions, but the first `skipped`, are the next ones of a row, which has pages for them.
    ///
    /// # Errors
    /// When it has none, or the model is not the one that they were made by.
    pub(crate) fn put(
        &mut self,
        row: &mut KvRow,
        (compressed, skipped): (&Compressed, usize),
        decoder: &Decoder,
    ) -> Result<(), Error> {
        let len = compressed.num_tokens - skipped;
        let (first, end) = (row.num_tokens, row.num_tokens + len as u32);
        if end as usize > row.pages.len() * PAGE_TOKENS || compressed.layers.len() != self.layers.len() {
            let found = (row.pages.len(), compressed.layers.len());
            return Err(Error::Internal(format!("kv_pool: positions {first} to {end}, pages and layers {found:?}")));
        }
        let (places, positions): (_, Vec<u32>) = (places(row, first..end), (first..end).collect());
        for (index, [keys, values]) in compressed.layers.iter().enumerate() {
            let keys = turned(decoder, index, &keys.narrow(0, skipped, len)?, &positions, false)?;
            let (keys, values) = (keys.contiguous()?, values.narrow(0, skipped, len)?.contiguous()?);
            let device = decoder.device();
            let layer = Arc::make_mut(&mut self.layers[index]);
            layer.write(&places, &keys.to_device(device)?, &values.to_device(device)?)?;
        }
        for (place, position) in places.into_iter().flatten().zip(positions) {
            self.positions[place] = position;
        }
        row.num_tokens = end;
        Ok(())
    }
}

/// Where positions of a row lie on the key axis.
fn places(row: &KvRow, local: Range<u32>) -> Vec<Range<usize>> {
    let cut = |piece: super::Piece| {
        let (start, end) = (local.start.max(piece.local.start), local.end.min(piece.local.end));
        let first = (piece.at + start).saturating_sub(piece.local.start) as usize;
        (start < end).then(|| first..first + (end - start) as usize)
    };
    row.pieces(local.end).into_iter().filter_map(cut).collect()
}
