//! One pass through the layers: what they share, and how each runs.

use super::adapter::AdapterView;
use super::config::{Activation, DecoderConfig};
use super::decoder::HiddenDropout;
use super::kv_cache::{Kv, KvCache};
use super::layer::{DOWN, GATE, K, Layer, Linear, O, Q, UP, V};
use crate::Error;
use kernels::Tensor;
use kernels::ops::few_rows;
use kernels::ops::fused::{Map, Norm, add_linear, can_fuse, feed_forward, norm_linears};
use kernels::ops::halves::{Halves, Heads, can_halve};
use kernels::ops::{self, AttentionSpec, LowRank, RopeTable, Rows};
use rand::Rng as _;
use std::ops::Range;
use std::sync::Arc;

/// One pass in progress: what every layer of it shares.
pub(super) struct Run<'a> {
    pub(super) config: &'a DecoderConfig,
    pub(super) tables: Vec<Arc<RopeTable>>,
    pub(super) windows: Vec<Option<usize>>,
    pub(super) specs: Vec<AttentionSpec>,
    pub(super) adapter: Option<&'a AdapterView>,
    pub(super) adapted: Arc<Rows>,
    /// Where the positions' keys and values go in a pool.
    pub(super) places: Vec<Range<usize>>,
    pub(super) dropout: Option<HiddenDropout<'a>>,
}

impl Run<'_> {
    fn update(&self, index: usize, module: usize) -> Option<LowRank> {
        let (a, b, scale) = self.adapter.and_then(|adapter| adapter.update(index, module))?;
        Some(LowRank { a: a.clone(), b: b.clone(), scale, rows: Arc::clone(&self.adapted) })
    }

    fn linear(&self, layer: &Layer, index: usize, module: usize, x: &Tensor) -> Result<Tensor, Error> {
        let Linear { weight, bias } = &layer.linears[module];
        Ok(ops::linear(x, weight, bias.as_ref(), self.update(index, module).as_ref())?)
    }

    /// Runs `part` on these maps of a layer, where parts in one piece can stand for operations on `x`.
    fn fused<const N: usize, R>(
        &self,
        (layer, index): (&Layer, usize),
        modules: [usize; N],
        x: &Tensor,
        part: impl FnOnce([Map<'_>; N]) -> kernels::Result<R>,
    ) -> Result<Option<R>, Error> {
        let updates = modules.map(|module| self.update(index, module));
        let map = |i: usize| Map { weight: &layer.linears[modules[i]].weight, update: updates[i].as_ref() };
        let maps = std::array::from_fn(map);
        let is_biased = modules.iter().any(|module| layer.linears[*module].bias.is_some());
        if is_biased || self.dropout.is_some() || !can_fuse(x, &maps) {
            return Ok(None);
        }
        Ok(Some(part(maps)?))
    }

    fn fused_norm<'n>(&self, weight: &'n Tensor) -> Norm<'n> {
        Norm { weight, eps: self.config.rms_norm_eps, offset: self.config.norm_offset }
    }

    pub(super) fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, Error> {
        Ok(ops::rms_norm(x, weight, self.config.rms_norm_eps, self.config.norm_offset)?)
    }

    fn drop(&mut self, x: Tensor) -> Result<Tensor, Error> {
        let Some(dropout) = &mut self.dropout else { return Ok(x) };
        let keep = 1.0 / (1.0 - dropout.ratio);
        let factors = (0..x.elem_count()).map(|_| if dropout.rng.random::<f32>() < dropout.ratio { 0.0 } else { keep });
        Ok(ops::dropout(&x, Arc::new(factors.collect()))?)
    }

    /// Heads of q or k, whose numbers nobody reads as they were, normed where the family does so, rotated where the layer
    /// has positions.
    fn heads(&self, layer: &Layer, x: Tensor, norm: Option<&Tensor>) -> Result<Tensor, Error> {
        let h = self.config.head_dim;
        let x = x.reshape((x.dim(0)?, (), h))?; // [T, heads, H]
        let x = match norm {
            Some(norm) => self.norm(&x, norm)?,
            None => x,
        };
        match layer.config.rope {
            Some(rope) => Ok(ops::rope_in_place(x, &self.tables[rope])?),
            None => Ok(x),
        }
    }

    /// What the heads found, `[T, N * H]`; `x` before the layer's norm.
    fn attention(&self, layer: &Layer, index: usize, x: &Tensor, kv: &mut Kv<'_>) -> Result<Tensor, Error> {
        let (t, kv_heads) = (x.dim(0)?, self.config.num_key_value_heads);
        let norm = self.fused_norm(&layer.input_norm);
        let fused = self.fused((layer, index), [Q, K, V], x, |maps| norm_linears(x, norm, maps))?;
        let [q, k, v] = match fused {
            Some(all) => all,
            None => {
                let x = self.norm(x, &layer.input_norm)?;
                let linear = |module| self.linear(layer, index, module, &x);
                [linear(Q)?, linear(K)?, linear(V)?]
            }
        };
        let norms = layer.qk_norms.as_ref();
        let q = self.heads(layer, q, norms.map(|n| &n[0]))?;
        let k = self.heads(layer, k, norms.map(|n| &n[1]))?;
        let v = v.reshape((t, kv_heads, self.config.head_dim))?;
        let spec = self.spec(layer);
        let y = match kv {
            Kv::None => ops::attention(&q, &k, &v, None, spec)?,
            Kv::Past(cache) => ops::attention(&q, &k, &v, Some(&cache.layers[index]), spec)?,
            Kv::Append(cache) => {
                let layer = Arc::make_mut(&mut cache.layers[index]);
                layer.append(&k, &v)?;
                ops::attention_cached(&q, layer, kv_heads, spec)?
            }
            Kv::Pool(pass) => {
                let layer = Arc::make_mut(&mut pass.pool.layers[index]);
                layer.write(&self.places, &k, &v)?;
                ops::attention_cached(&q, layer, kv_heads, spec)?
            }
        };
        Ok(y.reshape((t, ()))?)
    }

    /// Keys and values of a layer into the cache; `x` before the layer's norm.
    pub(super) fn append_keys(
        &self,
        layer: &Layer,
        index: usize,
        x: &Tensor,
        cache: &mut KvCache,
    ) -> Result<(), Error> {
        let normed = self.norm(x, &layer.input_norm)?;
        let [k, v] = [K, V].map(|module| self.linear(layer, index, module, &normed));
        let k = self.heads(layer, k?, layer.qk_norms.as_ref().map(|norms| &norms[1]))?;
        let v = v?.reshape((x.dim(0)?, self.config.num_key_value_heads, self.config.head_dim))?;
        Ok(Arc::make_mut(&mut cache.layers[index]).append(&k, &v)?)
    }

    fn feed_forward(&self, layer: &Layer, index: usize, x: &Tensor) -> Result<Tensor, Error> {
        let gate = self.linear(layer, index, GATE, x)?;
        let up = self.linear(layer, index, UP, x)?;
        self.linear(layer, index, DOWN, &ops::gated(&gate, &up, self.activation())?)
    }

    fn activation(&self) -> ops::Activation {
        match self.config.hidden_act {
            Activation::Silu => ops::Activation::Silu,
            Activation::GeluTanh => ops::Activation::GeluTanh,
        }
    }

    /// Layers within a graph, the first of number `from`, as one operation, where that can be for all of them.
    pub(super) fn halves(
        &self,
        (layers, from): (&[Layer], usize),
        x: &Tensor,
        kv: &Kv<'_>,
    ) -> Result<Option<Tensor>, Error> {
        let Some(gradients) = self.adapter.and_then(AdapterView::gradients) else { return Ok(None) };
        if self.dropout.is_some() || !matches!(kv, Kv::None | Kv::Past(_)) {
            return Ok(None);
        }
        let updates: Vec<[Option<LowRank>; 7]> =
            (from..from + layers.len()).map(|index| std::array::from_fn(|module| self.update(index, module))).collect();
        let maps = |number: usize| {
            let weights = &layers[number].linears;
            let map = |i: usize| Map { weight: &weights[i].weight, update: updates[number][i].as_ref() };
            ([Q, K, V, O].map(map), [GATE, UP, DOWN].map(map))
        };
        let can = |(number, layer): (usize, &Layer)| {
            let (attention, feed_forward) = maps(number);
            let [first, second] = [&layer.input_norm, &layer.feed_forward_norm].map(|norm| self.fused_norm(norm));
            layer.is_plain() && can_halve(x, first, &attention) && can_halve(x, second, &feed_forward)
        };
        if !layers.iter().enumerate().all(can) {
            return Ok(None);
        }
        let mut halves = Halves::new(x, gradients)?;
        for (number, layer) in layers.iter().enumerate() {
            let past = match kv {
                Kv::Past(cache) => Some(&cache.layers[from + number]),
                _ => None,
            };
            let rope = layer.config.rope.map(|rope| &self.tables[rope]);
            let heads = Heads { head_dim: self.config.head_dim, rope, past, spec: self.spec(layer) };
            let (attention, feed_forward) = maps(number);
            halves.attention(self.fused_norm(&layer.input_norm), &attention, heads)?;
            halves.feed_forward(self.fused_norm(&layer.feed_forward_norm), &feed_forward, self.activation())?;
        }
        Ok(Some(halves.end()?))
    }

    /// All layers at once for a few positions that nothing adapts, where the device has that: the state behind them.
    pub(super) fn few_rows(&self, layers: &[Layer], x: &Tensor, kv: &mut Kv<'_>) -> Result<Option<Tensor>, Error> {
        let spec = few_rows::Spec {
            heads: (self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim),
            eps: self.config.rms_norm_eps,
            offset: self.config.norm_offset,
            scale: self.config.query_scale,
            softcap: self.config.attn_logit_softcapping,
            activation: self.activation(),
        };
        let is_adapted = self.adapter.is_some() && !self.adapted.is_empty();
        if is_adapted
            || self.dropout.is_some()
            || !layers.iter().all(Layer::is_plain)
            || !few_rows::can_run(x, &spec, layers.iter().map(Layer::maps))
        {
            return Ok(None);
        }
        let (kept, places) = match kv {
            Kv::None | Kv::Past(_) => return Ok(None),
            Kv::Append(cache) => {
                let first = cache.layers.first().map_or(0, |layer| layer.num_tokens());
                (&mut cache.layers, std::iter::once(first..first + x.dim(0)?).collect())
            }
            Kv::Pool(pass) => (&mut pass.pool.layers, self.places.clone()),
        };
        let layers = layers.iter().zip(kept).map(|(layer, kv)| few_rows::Layer {
            norms: [&layer.input_norm, &layer.feed_forward_norm],
            maps: layer.maps(),
            rope: layer.config.rope.map(|rope| &*self.tables[rope]),
            mask: &self.spec(layer).mask,
            kv: Arc::make_mut(kv),
        });
        Ok(Some(few_rows::run(x, &spec, layers.collect(), &places)?))
    }

    /// Visibility of a layer: that of its window.
    fn spec(&self, layer: &Layer) -> &AttentionSpec {
        let window = self.windows.iter().position(|w| *w == layer.config.sliding_window);
        &self.specs[window.expect("the windows of all layers are listed")]
    }

    /// The state behind a layer; it may take the place of `x`.
    pub(super) fn layer(&mut self, layer: &Layer, index: usize, x: &Tensor, kv: &mut Kv<'_>) -> Result<Tensor, Error> {
        if let Some(y) = self.halves((std::slice::from_ref(layer), index), x, kv)? {
            return Ok(y);
        }
        let heads = self.attention(layer, index, x, kv)?;
        let x = match &layer.post_norms {
            Some([post, _]) => {
                let y = self.linear(layer, index, O, &heads)?;
                ops::add(x, &self.drop(self.norm(&y, post)?)?)?
            }
            None => match self.fused((layer, index), [O], &heads, |[map]| add_linear(x.clone(), &heads, map))? {
                Some(sum) => sum,
                None => {
                    let y = self.linear(layer, index, O, &heads)?;
                    ops::add(x, &self.drop(y)?)?
                }
            },
        };
        let norm = self.fused_norm(&layer.feed_forward_norm);
        if layer.post_norms.is_none()
            && let Some(y) = self.fused((layer, index), [GATE, UP, DOWN], &x, |maps| {
                feed_forward(x.clone(), norm, maps, self.activation())
            })?
        {
            return Ok(y);
        }
        let mut y = self.feed_forward(layer, index, &self.norm(&x, &layer.feed_forward_norm)?)?;
        if let Some([_, post]) = &layer.post_norms {
            y = self.norm(&y, post)?;
        }
        Ok(ops::add(&x, &self.drop(y)?)?)
    }
}
