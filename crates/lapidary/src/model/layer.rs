//! One layer's weights: loaded, and by name.

use super::config::{DecoderConfig, LayerConfig};
use super::weights::WeightSource;
use crate::Error;
use kernels::ops::Weight;
use kernels::{Device, Tensor};
use std::sync::Arc;

/// The linear maps of a layer, as Hugging Face names them, in the order in which a layer keeps them.
pub const LINEAR_MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
pub(super) const Q: usize = 0;
pub(super) const K: usize = 1;
pub(super) const V: usize = 2;
pub(super) const O: usize = 3;
pub(super) const GATE: usize = 4;
pub(super) const UP: usize = 5;
pub(super) const DOWN: usize = 6;

#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Weight,
    pub(super) bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) config: LayerConfig,
    pub(super) linears: [Linear; 7],
    pub(super) input_norm: Tensor,
    pub(super) feed_forward_norm: Tensor,
    /// After attention and after feed-forward, before each residual sum.
    pub(super) post_norms: Option<[Tensor; 2]>,
    /// Over each head of q and of k.
    pub(super) qk_norms: Option<[Tensor; 2]>,
}

pub(super) fn vector(values: Vec<f32>) -> Result<Tensor, Error> {
    let len = values.len();
    Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
}

impl Layer {
    pub(super) fn load(config: &DecoderConfig, index: usize, source: &dyn WeightSource) -> Result<Self, Error> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let norm = |part: &str, len| vector(source.vector(&name(&format!("{part}.weight")), len)?);
        let (d, f, h) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * h, config.num_key_value_heads * h);
        let shapes = [(q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)];
        let biased = [
            config.qkv_bias,
            config.qkv_bias,
            config.qkv_bias,
            config.o_bias,
            config.mlp_bias,
            config.mlp_bias,
            config.mlp_bias,
        ];
        let linear = |i: usize| -> Result<Linear, Error> {
            let (rows, cols) = shapes[i];
            let module = name(LINEAR_MODULES[i]);
            let weight = Weight::Frozen(Arc::new(source.matrix(&format!("{module}.weight"), rows, cols)?));
            let bias = if biased[i] { Some(vector(source.vector(&format!("{module}.bias"), rows)?)?) } else { None };
            Ok(Linear { weight, bias })
        };
        let (feed_forward, post) = if config.post_norms {
            let post = [norm("post_attention_layernorm", d)?, norm("post_feedforward_layernorm", d)?];
            ("pre_feedforward_layernorm", Some(post))
        } else {
            ("post_attention_layernorm", None)
        };
        Ok(Self {
            config: config.layers[index],
            linears: [linear(0)?, linear(1)?, linear(2)?, linear(3)?, linear(4)?, linear(5)?, linear(6)?],
            input_norm: norm("input_layernorm", d)?,
            feed_forward_norm: norm(feed_forward, d)?,
            post_norms: post,
            qk_norms: if config.qk_norm {
                Some([norm("self_attn.q_norm", h)?, norm("self_attn.k_norm", h)?])
            } else {
                None
            },
        })
    }

    /// Whether it has no biases, and norms before its halves alone.
    pub(super) fn is_plain(&self) -> bool {
        let is_biased = self.linears.iter().any(|linear| linear.bias.is_some());
        !is_biased && self.qk_norms.is_none() && self.post_norms.is_none()
    }

    /// The weights of its linear maps.
    pub(super) fn maps(&self) -> [&Weight; 7] {
        self.linears.each_ref().map(|linear| &linear.weight)
    }

    /// Every tensor of the layer with its Hugging Face name within the layer.
    pub(super) fn tensors(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all: Vec<(String, &mut Tensor)> = Vec::new();
        for (linear, module) in self.linears.iter_mut().zip(LINEAR_MODULES) {
            if let Weight::Dense(weight) = &mut linear.weight {
                all.push((format!("{module}.weight"), weight));
            }
            if let Some(bias) = &mut linear.bias {
                all.push((format!("{module}.bias"), bias));
            }
        }
        all.push(("input_layernorm.weight".into(), &mut self.input_norm));
        let feed_forward =
            if self.post_norms.is_some() { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        all.push((format!("{feed_forward}.weight"), &mut self.feed_forward_norm));
        if let Some([attention, feed_forward]) = &mut self.post_norms {
            all.push(("post_attention_layernorm.weight".into(), attention));
            all.push(("post_feedforward_layernorm.weight".into(), feed_forward));
        }
        if let Some([q, k]) = &mut self.qk_norms {
            all.push(("self_attn.q_norm.weight".into(), q));
            all.push(("self_attn.k_norm.weight".into(), k));
        }
        all
    }
}
