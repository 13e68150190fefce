//! The trained part of a GEM: a low-rank update (LoRA, arXiv 2106.09685) of linear maps, and the rows of the special tokens.

use super::decoder::{Decoder, NamedVars};
use super::layer::LINEAR_MODULES;
use crate::Error;
use kernels::ops::halves::ParameterGradients;
use kernels::{Device, Tensor, Var};
use layout::Rng;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rank, scale and place of the low-rank update, spelled as in PEFT's `adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// The update is multiplied by `lora_alpha / r`.
    pub lora_alpha: f32,
    /// Last parts of the names of the adapted linear maps.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let last = |module: &&str| module.rsplit('.').next().unwrap_or(module).to_owned();
        Self { r: 16, lora_alpha: 32.0, target_modules: LINEAR_MODULES.iter().map(last).collect() }
    }
}

impl LoraConfig {
    fn targets(&self) -> Result<Vec<usize>, Error> {
        let find = |name: &String| LINEAR_MODULES.iter().position(|m| m.rsplit('.').next() == Some(name.as_str()));
        self.target_modules
            .iter()
            .map(|name| {
                find(name).ok_or_else(|| Error::Setting {
                    field: "lora.target_modules".into(),
                    expected: format!("parts of {LINEAR_MODULES:?}"),
                    found: name.clone(),
                })
            })
            .collect()
    }
}

/// The trained variables.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: Option<LoraConfig>,
    /// Per layer and linear module: A `[r, in]` and B `[out, r]`.
    modules: Vec<[Option<(Var, Var)>; 7]>,
    /// Rows of the special tokens, `[k, D]`.
    special: Option<Var>,
}

/// An [`Adapter`] as a forward pass reads it.
#[derive(Debug, Clone)]
pub struct AdapterView {
    scale: f32,
    modules: Vec<[Option<(Tensor, Tensor)>; 7]>,
    special: Option<Tensor>,
    gradients: Option<Arc<ParameterGradients>>,
}

impl AdapterView {
    /// As it is, with a place for gradients of the update that are found within parts of a layer in one piece; those that
    /// go through the graph itself are found there.
    #[must_use]
    pub fn with_gradients(&self, gradients: Arc<ParameterGradients>) -> Self {
        Self { gradients: Some(gradients), ..self.clone() }
    }

    pub(crate) fn gradients(&self) -> Option<&Arc<ParameterGradients>> {
        self.gradients.as_ref()
    }

    /// A copy on this device.
    ///
    /// # Errors
    /// When the device has no room.
    pub(crate) fn on(&self, device: &Device) -> Result<Self, Error> {
        let pair = |pair: &Option<(Tensor, Tensor)>| -> Result<Option<(Tensor, Tensor)>, Error> {
            let Some((a, b)) = pair else { return Ok(None) };
            Ok(Some((a.to_device(device)?, b.to_device(device)?)))
        };
        let mut modules = self.modules.clone();
        for slot in modules.iter_mut().flatten() {
            *slot = pair(slot)?;
        }
        let special = self.special.as_ref().map(|rows| rows.to_device(device)).transpose()?;
        Ok(Self { scale: self.scale, modules, special, gradients: None })
    }

    pub(crate) fn update(&self, layer: usize, module: usize) -> Option<(&Tensor, &Tensor, f32)> {
        let (a, b) = self.modules.get(layer)?[module].as_ref()?;
        Some((a, b, self.scale))
    }

    pub(crate) fn special(&self) -> Option<&Tensor> {
        self.special.as_ref()
    }
}

impl Adapter {
    /// A fresh adapter: A uniform in `±1/sqrt(in)` (PEFT's Kaiming start), B zero, so that it begins as no change.
    /// `special` holds the k starting rows of the special tokens.
    ///
    /// # Errors
    /// When the config names an unknown module or a rank that is 0 or above the model's width.
    pub fn new(
        decoder: &Decoder,
        config: Option<LoraConfig>,
        special: &[Vec<f32>],
        rng: &mut Rng,
    ) -> Result<Self, Error> {
        let mut modules: Vec<[Option<(Var, Var)>; 7]> = Vec::new();
        if let Some(config) = &config {
            // A rank above the width is no low rank, and would ask for memory without end.
            let width = decoder.config().hidden_size;
            if config.r == 0 || config.r > width || !config.lora_alpha.is_finite() {
                return Err(Error::Setting {
                    field: "lora.r, lora.lora_alpha".into(),
                    expected: format!("a rank of 1 to {width} (hidden_size) and a finite alpha"),
                    found: format!("{}, {}", config.r, config.lora_alpha),
                });
            }
            let targets = config.targets()?;
            for _ in 0..decoder.config().layers.len() {
                let mut layer = [const { None }; 7];
                for module in &targets {
                    let (out, input) = decoder.linear_dims(*module)?;
                    let bound = 1.0 / (input as f32).sqrt();
                    let a = (0..config.r * input).map(|_| rng.random_range(-bound..bound)).collect();
                    let a = Var::from_vec::<_, f32>(a, (config.r, input), decoder.device())?;
                    let b = Var::from_vec(vec![0f32; out * config.r], (out, config.r), decoder.device())?;
                    layer[*module] = Some((a, b));
                }
                modules.push(layer);
            }
        }
        let special = if special.is_empty() {
            None
        } else {
            let shape = (special.len(), decoder.config().hidden_size);
            Some(Var::from_vec(special.concat(), shape, decoder.device())?)
        };
        Ok(Self { config, modules, special })
    }

    /// Rank, scale and place of the update, if there is one.
    pub fn config(&self) -> Option<&LoraConfig> {
        self.config.as_ref()
    }

    /// The variables with names as in PEFT's `adapter_model.safetensors`.
    pub fn lora_vars(&self) -> NamedVars {
        let mut vars = Vec::new();
        for (i, layer) in self.modules.iter().enumerate() {
            for (module, pair) in LINEAR_MODULES.iter().zip(layer) {
                if let Some((a, b)) = pair {
                    let name = |part| format!("base_model.model.model.layers.{i}.{module}.lora_{part}.weight");
                    vars.push((name("A"), a.clone()));
                    vars.push((name("B"), b.clone()));
                }
            }
        }
        vars
    }

    /// Rows of the special tokens, `[k, D]`.
    pub fn special_var(&self) -> Option<&Var> {
        self.special.as_ref()
    }

    /// For a forward pass; with `trained` its variables get gradients.
    pub fn view(&self, trained: bool) -> AdapterView {
        let read = |var: &Var| if trained { var.as_tensor().clone() } else { var.as_detached_tensor() };
        let layer = |layer: &[Option<(Var, Var)>; 7]| {
            layer.each_ref().map(|pair| pair.as_ref().map(|(a, b)| (read(a), read(b))))
        };
        AdapterView {
            scale: self.config.as_ref().map_or(0.0, |c| c.lora_alpha / c.r as f32),
            modules: self.modules.iter().map(layer).collect(),
            special: self.special.as_ref().map(read),
            gradients: None,
        }
    }
}
