//! The decoder: one forward pass for every family, driven by [`DecoderConfig`].

use super::adapter::AdapterView;
use super::config::DecoderConfig;
use super::kv_cache::{Kv, KvCache};
use super::kv_pool::KvPool;
use super::layer::{Layer, Q, vector};
use super::layer_run::Run;
use super::rope::frequencies;
use super::segment::Segment;
use super::weights::{WeightFormat, WeightSource};
use crate::Error;
use kernels::ops::{self, AttentionSpec, Head, RopeTable, Weight};
use kernels::{Device, Matrix, Tensor, Var};
use layout::{Input, Rng};
use std::sync::Arc;

/// Dropout of the outputs of attention and feed-forward.
pub struct HiddenDropout<'a> {
    /// Share of numbers set to zero.
    pub ratio: f32,
    /// Source of the noise.
    pub rng: &'a mut Rng,
}

/// Is told (i, hidden states): 0 after the embedding, i after layer i.
pub type Observe<'a> = &'a mut (dyn FnMut(usize, &Tensor) + Send);

/// What a forward pass runs with, beside the tokens.
#[derive(Default)]
pub struct ForwardOptions<'a> {
    /// Low-rank updates and special rows; without it no special token may occur.
    pub adapter: Option<&'a AdapterView>,
    /// What the soft inputs of the segment take, in their order, `[S, D]`; gradients flow into it.
    pub soft: Option<&'a Tensor>,
    /// Noise on hidden states.
    pub dropout: Option<HiddenDropout<'a>>,
    /// Attention in bf16 too, where the weights are: on a CPU over many keys and outside a graph. Not there where a pass with a
    /// graph has to agree, nor where rows behind one past are compared, of which it takes some and not others.
    pub bf16_attention: bool,
    /// Watches the hidden states.
    pub observe: Option<Observe<'a>>,
}

/// A decoder-only transformer with its weights.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Head,
    frequencies: Vec<Vec<f64>>,
    device: Device,
}

/// Named trainable variables.
pub type NamedVars = Vec<(String, Var)>;

impl Decoder {
    /// Loads the weights that `config` names; each stays in its storage format.
    ///
    /// # Errors
    /// When the config is invalid, or a tensor is missing or of another shape.
    pub fn load(config: DecoderConfig, source: &dyn WeightSource) -> Result<Self, Error> {
        config.validate()?;
        let (v, d) = (config.vocab_size, config.hidden_size);
        let embedding = Weight::Frozen(Arc::new(source.matrix("model.embed_tokens.weight", v, d)?));
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            Weight::Frozen(Arc::new(source.matrix("lm_head.weight", v, d)?))
        };
        let layers = (0..config.layers.len()).map(|i| Layer::load(&config, i, source)).collect::<Result<_, _>>()?;
        let norm = vector(source.vector("model.norm.weight", d)?)?;
        let frequencies =
            config.ropes.iter().map(|rope| frequencies(config.head_dim, rope.theta, &rope.scaling)).collect();
        let head = Head { weight: head, softcap: config.final_logit_softcapping };
        Ok(Self { config, embedding, layers, norm, head, frequencies, device: Device::Cpu })
    }

    /// What it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs on another device from now on. Frozen matrices are copied there when they are first used.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_device(&mut self, device: &Device) -> Result<(), Error> {
        let moved = |tensor: &mut Tensor| -> Result<(), Error> {
            *tensor = tensor.to_device(device)?;
            Ok(())
        };
        for weight in [&mut self.embedding, &mut self.head.weight] {
            if let Weight::Dense(tensor) = weight {
                moved(tensor)?;
            }
        }
        moved(&mut self.norm)?;
        self.layers.iter_mut().flat_map(Layer::tensors).try_for_each(|(_, tensor)| moved(tensor))?;
        self.device = device.clone();
        Ok(())
    }

    /// The shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// A pool of so many pages for rows of this model.
    pub fn new_pool(&self, num_pages: usize) -> KvPool {
        KvPool::new(num_pages, self.layers.len(), self.config.num_key_value_heads * self.config.head_dim)
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.layers.len(), self.config.num_key_value_heads * self.config.head_dim)
    }

    /// Hidden states after the last norm.
    ///
    /// # Shapes
    /// A segment of T positions -> `[T, D]`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, a special token outside the adapter's, or the row longer than
    /// the model allows.
    pub fn forward(&self, segment: &Segment, kv: Kv<'_>, options: ForwardOptions<'_>) -> Result<Tensor, Error> {
        kernels::on_pool(|| self.run(segment, kv, options, false))
    }

    /// Adds the keys and values of a segment to a cache, and makes no hidden states.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn append(&self, segment: &Segment, cache: &mut KvCache, options: ForwardOptions<'_>) -> Result<(), Error> {
        kernels::on_pool(|| self.run(segment, Kv::Append(cache), options, true)).map(drop)
    }

    /// With `keys_alone` the last layer may end with its keys, and what comes back is not to be used.
    fn run(
        &self,
        segment: &Segment,
        mut kv: Kv<'_>,
        options: ForwardOptions<'_>,
        keys_alone: bool,
    ) -> Result<Tensor, Error> {
        let ForwardOptions { adapter, soft, dropout, bf16_attention, mut observe } = options;
        if let Some(position) = segment.positions.iter().find(|p| **p as usize >= self.config.max_position_embeddings) {
            return Err(Error::TooLong { found: *position as usize + 1, limit: self.config.max_position_embeddings });
        }
        let mut windows: Vec<Option<usize>> = self.layers.iter().map(|l| l.config.sliding_window).collect();
        windows.sort_unstable();
        windows.dedup();
        let mut places = Vec::new();
        let masks = match &mut kv {
            Kv::None => self.new_cache().masks(segment, &windows)?,
            Kv::Append(cache) => cache.append_masks(segment, &windows)?,
            Kv::Past(cache) => cache.masks(segment, &windows)?,
            Kv::Pool(pass) => {
                let (masks, taken) = pass.begin(segment, &windows)?;
                places = taken;
                masks
            }
        };
        let (scale, softcap) = (self.config.query_scale, self.config.attn_logit_softcapping);
        let bf16 = bf16_attention && self.layers.iter().all(|layer| layer.linears[Q].weight.is_packed());
        let spec = |mask| AttentionSpec { mask, scale, softcap, bf16 };
        let table = |f: &Vec<f64>| Arc::new(RopeTable::new(&segment.positions, f));
        let mut run = Run {
            config: &self.config,
            tables: self.frequencies.iter().map(table).collect(),
            windows,
            specs: masks.into_iter().map(spec).collect(),
            adapter,
            adapted: Arc::clone(&segment.adapted),
            places,
            dropout,
        };
        let mut x = self.embed(segment, adapter, soft)?;
        let is_watched = observe.is_some();
        // Who watches may keep what the next layer's state takes the place of.
        let mut tell = |number, x: &Tensor| -> Result<(), Error> {
            if let Some(observe) = &mut observe {
                observe(number, &x.copy()?);
            }
            Ok(())
        };
        tell(0, &x)?;
        if !is_watched && let Some(x) = run.few_rows(&self.layers, &x, &mut kv)? {
            return if keys_alone { Ok(x) } else { run.norm(&x, &self.norm) };
        }
        if !is_watched && let Some(x) = run.halves((&self.layers, 0), &x, &kv)? {
            return run.norm(&x, &self.norm);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if let Kv::Append(cache) = &mut kv
                && keys_alone
                && index + 1 == self.layers.len()
            {
                run.append_keys(layer, index, &x, cache)?;
                return Ok(x);
            }
            x = run.layer(layer, index, &x, &mut kv)?;
            tell(index + 1, &x)?;
        }
        run.norm(&x, &self.norm)
    }

    /// Input embeddings `[T, D]`.
    fn embed(&self, segment: &Segment, adapter: Option<&AdapterView>, soft: Option<&Tensor>) -> Result<Tensor, Error> {
        let (mut places, mut soft_places) = (Vec::new(), Vec::new());
        let ids: Vec<u32> = (segment.inputs.iter().enumerate())
            .map(|(t, input)| match input {
                Input::Token(id) => *id,
                Input::Special(j) => {
                    places.push((t as u32, *j));
                    0
                }
                Input::Soft { .. } => {
                    soft_places.push((t as u32, soft_places.len() as u32));
                    0
                }
            })
            .collect();
        let mut x = ops::embed_tokens(&self.embedding, &ids, &self.device)?;
        if !places.is_empty() {
            let special = adapter.and_then(AdapterView::special);
            let special = special.ok_or_else(|| Error::Internal("a special token without an adapter".into()))?;
            x = ops::embed_inputs(&x, special, places)?;
        }
        if !soft_places.is_empty() {
            let soft = soft.ok_or_else(|| Error::Internal("a soft input without a state".into()))?;
            x = ops::embed_inputs(&x, soft, soft_places)?;
        }
        if self.config.embedding_scale == 1.0 { Ok(x) } else { Ok((x * f64::from(self.config.embedding_scale))?) }
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// `[M, D]` -> `[M, V]`.
    ///
    /// # Errors
    /// When the width is not the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        Ok(ops::logits(hidden, &self.head)?)
    }

    /// Negative log-likelihood of each label, without logits held whole.
    ///
    /// # Shapes
    /// `[M, D]`, M labels -> `[M]`, nats.
    ///
    /// # Errors
    /// When a label is outside the vocabulary.
    pub fn cross_entropy(&self, hidden: &Tensor, labels: &[u32]) -> Result<Tensor, Error> {
        Ok(ops::cross_entropy(hidden, &self.head, labels)?)
    }

    /// The token-embedding row of `id`, `[D]`.
    ///
    /// # Errors
    /// When the id is outside the vocabulary.
    pub fn token_embedding(&self, id: u32) -> Result<Vec<f32>, Error> {
        Ok(ops::embed_tokens(&self.embedding, &[id], &self.device)?.flatten_all()?.to_vec1()?)
    }

    /// The mean of all token-embedding rows, `[D]`.
    pub fn mean_token_embedding(&self) -> Result<Vec<f32>, Error> {
        let (v, d) = self.embedding.dims()?;
        let mut sum = vec![0f64; d];
        for first in (0..v as u32).step_by(4096) {
            let ids: Vec<u32> = (first..(first + 4096).min(v as u32)).collect();
            for row in ops::embed_tokens(&self.embedding, &ids, &self.device)?.to_vec2::<f32>()? {
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(x));
            }
        }
        Ok(sum.into_iter().map(|s| (s / v as f64) as f32).collect())
    }

    /// Turns every weight into a trained f32 variable; returns them with their Hugging Face names.
    ///
    /// # Errors
    /// When memory for the f32 copies cannot be had.
    pub fn make_trainable(&mut self) -> Result<NamedVars, Error> {
        let mut vars: NamedVars = Vec::new();
        let dense = |weight: &mut Weight| -> Result<(), Error> {
            if let Weight::Frozen(matrix) = weight {
                *weight = Weight::Dense(Tensor::from_vec(matrix.to_f32(), weight.dims()?, &self.device)?);
            }
            Ok(())
        };
        dense(&mut self.embedding)?;
        dense(&mut self.head.weight)?;
        self.layers.iter_mut().flat_map(|l| &mut l.linears).try_for_each(|l| dense(&mut l.weight))?;
        let mut train = |name: String, tensor: &mut Tensor| -> Result<(), Error> {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            vars.push((name, var));
            Ok(())
        };
        if let Weight::Dense(embedding) = &mut self.embedding {
            train("model.embed_tokens.weight".into(), embedding)?;
        }
        if self.config.tie_word_embeddings {
            self.head.weight = self.embedding.clone();
        } else if let Weight::Dense(head) = &mut self.head.weight {
            train("lm_head.weight".into(), head)?;
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (name, tensor) in layer.tensors() {
                train(format!("model.layers.{i}.{name}"), tensor)?;
            }
        }
        train("model.norm.weight".into(), &mut self.norm)?;
        Ok(vars)
    }

    /// Stores every frozen matrix that products read in another format; token embeddings, of which single rows are
    /// read, stay as they are.
    ///
    /// # Errors
    /// When memory for the copies cannot be had.
    pub fn set_weight_format(&mut self, format: WeightFormat) -> Result<(), Error> {
        restore(&mut self.head.weight, format)?;
        self.set_layers_format(format)
    }

    fn set_layers_format(&mut self, format: WeightFormat) -> Result<(), Error> {
        self.layers.iter_mut().flat_map(|l| &mut l.linears).try_for_each(|l| restore(&mut l.weight, format))
    }

    /// A copy for [`Self::append`] alone, which stores the frozen matrices of its layers in another format: it has no head.
    ///
    /// # Errors
    /// When memory for the copies cannot be had.
    pub fn to_append_with(&self, format: WeightFormat) -> Result<Self, Error> {
        let mut copy = self.clone();
        // The head's own place would keep weights that nobody reads.
        copy.head.weight = copy.embedding.clone();
        copy.set_layers_format(format)?;
        Ok(copy)
    }

    /// How many numbers [`Self::set_weight_format`] stores: those of the linear maps and of the head.
    pub fn num_frozen_numbers(&self) -> usize {
        let count = |weight: &Weight| match weight {
            Weight::Frozen(matrix) => matrix.rows() * matrix.cols(),
            Weight::Dense(_) => 0,
        };
        let maps = self.layers.iter().flat_map(|layer| &layer.linears).map(|linear| count(&linear.weight));
        count(&self.head.weight) + maps.sum::<usize>()
    }

    /// The same weights outside any graph: what runs with it keeps no activations.
    pub fn detached(&self) -> Self {
        let mut copy = self.clone();
        let detach = |weight: &mut Weight| {
            if let Weight::Dense(tensor) = weight {
                *tensor = tensor.detach();
            }
        };
        detach(&mut copy.embedding);
        detach(&mut copy.head.weight);
        copy.norm = copy.norm.detach();
        for layer in &mut copy.layers {
            for (_, tensor) in layer.tensors() {
                *tensor = tensor.detach();
            }
        }
        copy
    }

    /// Feature counts (out, in) of a linear module of any layer.
    pub fn linear_dims(&self, module: usize) -> Result<(usize, usize), Error> {
        Ok(self.layers[0].linears[module].weight.dims()?)
    }
}

/// Stores a frozen matrix in another format.
fn restore(weight: &mut Weight, format: WeightFormat) -> Result<(), Error> {
    if let Weight::Frozen(matrix) = weight {
        *weight = Weight::Frozen(match format {
            WeightFormat::Stored => return Ok(()),
            WeightFormat::Bf16 => Arc::new(matrix.to_bf16()),
            WeightFormat::Int8 => Arc::new(matrix.to_int8()?),
            WeightFormat::F32 => Arc::new(Matrix::from_f32(matrix.to_f32(), matrix.rows(), matrix.cols())?),
        });
    }
    Ok(())
}
