//! A GEM on disk: the adapter in PEFT's layout, the special rows, the standardisation, the tokenizer, `gem.json`.

use super::adapter::{Adapter, LoraConfig};
use super::decoder::Decoder;
use super::layer::LINEAR_MODULES;
use crate::Error;
use crate::eval::standardise::Standardisation;
use crate::output::atomic::AtomicDir;
use kernels::{StorageType, Tensor, Var};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `gem.json`: what a GEM is, beside its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemConfig {
    /// Version of this file's layout.
    pub version: u32,
    /// Name of the method in the registry.
    pub method: String,
    /// The method's settings, every default written out: k, scope, mask kind, pooling.
    pub settings: serde_json::Value,
    /// The base model as the recipe names it.
    pub base_model: String,
    /// Fingerprint of the base model that it was trained on.
    pub base_fingerprint: String,
    /// Width of the model, D.
    pub hidden_size: usize,
    /// The directory holds all weights, not an adapter.
    #[serde(default)]
    pub full: bool,
}

/// The layout version written and read.
const VERSION: u32 = 1;
const GEM_FILE: &str = "gem.json";
const ADAPTER_FILE: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
const SPECIAL_FILE: &str = "special_tokens.safetensors";
const STANDARDISATION_FILE: &str = "standardisation.safetensors";
/// All weights of a full fine-tune, Hugging Face names.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// The files that decide what a GEM computes; which of them are there depends on what was trained.
pub(crate) const PARTS: [&str; 6] =
    [GEM_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE, SPECIAL_FILE, STANDARDISATION_FILE, WEIGHTS_FILE];

/// `adapter_config.json` as PEFT writes and reads it.
#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    task_type: String,
    base_model_name_or_path: String,
    r: usize,
    lora_alpha: f32,
    lora_dropout: f32,
    bias: String,
    target_modules: Vec<String>,
}

/// What is saved.
pub struct GemDir<'a> {
    /// `gem.json`.
    pub config: GemConfig,
    /// The trained variables.
    pub adapter: &'a Adapter,
    /// Mean and deviation of each dimension.
    pub standardisation: Option<&'a Standardisation>,
    /// Every weight with its Hugging Face name, for a full fine-tune.
    pub weights: Option<&'a [(String, Var)]>,
    /// Further files of text: tokenizer, recipe, metrics.
    pub texts: Vec<(&'static str, String)>,
}

/// f32 numbers with their shape, by name.
pub(crate) type NamedNumbers = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// Numbers ready for a safetensors file.
struct Numbers {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn f32_numbers(values: &[f32], shape: Vec<usize>) -> Numbers {
    Numbers { dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
}

/// Rounded to bf16, nearest even: the upper half of the f32 bits.
fn bf16_numbers(values: &[f32], shape: Vec<usize>) -> Numbers {
    let round = |x: &f32| {
        let bits = x.to_bits();
        (((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes()
    };
    Numbers { dtype: Dtype::BF16, shape, bytes: values.iter().flat_map(round).collect() }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}

pub(crate) fn write_safetensors(path: &Path, tensors: &NamedNumbers) -> Result<(), Error> {
    let numbers =
        tensors.iter().map(|(name, (values, shape))| (name.clone(), f32_numbers(values, shape.clone()))).collect();
    write_numbers(path, &numbers)
}

fn write_numbers(path: &Path, tensors: &BTreeMap<String, Numbers>) -> Result<(), Error> {
    let damaged = |e: safetensors::SafeTensorError| Error::File { path: path.into(), reason: e.to_string() };
    let views = tensors
        .iter()
        .map(|(name, n)| Ok((name, TensorView::new(n.dtype, n.shape.clone(), &n.bytes).map_err(damaged)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let bytes = serialize(views, None).map_err(damaged)?;
    std::fs::write(path, bytes).map_err(|e| Error::File { path: path.into(), reason: e.to_string() })
}

/// Reads a small safetensors file whole, as f32.
pub(crate) fn read_safetensors(path: &Path) -> Result<NamedNumbers, Error> {
    let file = |reason: String| Error::File { path: path.into(), reason };
    let bytes = std::fs::read(path).map_err(|e| file(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| file(e.to_string()))?;
    let mut read = BTreeMap::new();
    for (name, view) in tensors.iter() {
        let storage = match view.dtype() {
            Dtype::F32 => StorageType::F32,
            Dtype::BF16 => StorageType::BF16,
            Dtype::F16 => StorageType::F16,
            other => return Err(file(format!("tensor {name}: expected F32, F16 or BF16, found {other:?}"))),
        };
        let count = view.shape().iter().product();
        let numbers = kernels::Matrix::new(storage, 1, count, view.data())
            .map_err(|e| file(format!("tensor {name}: {e}")))?
            .to_f32();
        if let Some(bad) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(file(format!("tensor {name}: number {bad} is not finite")));
        }
        read.insert(name.to_owned(), (numbers, view.shape().to_vec()));
    }
    Ok(read)
}

impl GemDir<'_> {
    /// Writes the directory so that it is there whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written; what was at `path` before is untouched then.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let dir = AtomicDir::replace(path)?;
        self.write_files(dir.path())?;
        Ok(dir.commit()?)
    }

    pub(crate) fn write_files(&self, dir: &Path) -> Result<(), Error> {
        let text = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|e| Error::File { path, reason: e.to_string() })
        };
        text(GEM_FILE, &pretty(&self.config)?)?;
        let mut numbers = BTreeMap::new();
        for (name, var) in self.adapter.lora_vars() {
            numbers.insert(name, bf16_numbers(&values(&var)?, var.dims().to_vec()));
        }
        if let Some(lora) = self.adapter.config() {
            write_numbers(&dir.join(ADAPTER_FILE), &numbers)?;
            let peft = PeftConfig {
                peft_type: "LORA".into(),
                task_type: "CAUSAL_LM".into(),
                base_model_name_or_path: self.config.base_model.clone(),
                r: lora.r,
                lora_alpha: lora.lora_alpha,
                lora_dropout: 0.0,
                bias: "none".into(),
                target_modules: lora.target_modules.clone(),
            };
            text(ADAPTER_CONFIG_FILE, &pretty(&peft)?)?;
        }
        if let Some(special) = self.adapter.special_var() {
            let rows =
                BTreeMap::from([("embeddings".to_owned(), f32_numbers(&values(special)?, special.dims().to_vec()))]);
            write_numbers(&dir.join(SPECIAL_FILE), &rows)?;
        }
        if let Some(s) = self.standardisation {
            let of = |v: &[f32]| f32_numbers(v, vec![v.len()]);
            let pair = BTreeMap::from([("mean".to_owned(), of(s.mean())), ("std".to_owned(), of(s.std()))]);
            write_numbers(&dir.join(STANDARDISATION_FILE), &pair)?;
        }
        if let Some(weights) = self.weights {
            let all =
                weights.iter().map(|(name, var)| Ok((name.clone(), f32_numbers(&values(var)?, var.dims().to_vec()))));
            write_numbers(&dir.join(WEIGHTS_FILE), &all.collect::<Result<_, Error>>()?)?;
        }
        self.texts.iter().try_for_each(|(name, content)| text(name, content))
    }
}

fn pretty(value: &impl Serialize) -> Result<String, Error> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(text + "\n")
}

impl GemConfig {
    /// The layout version that this program writes.
    pub const VERSION: u32 = VERSION;

    /// Reads `gem.json` of a directory.
    ///
    /// # Errors
    /// When it is missing, malformed or of another version.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(GEM_FILE);
        let file = |reason: String| Error::File { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| file(e.to_string()))?;
        let config: Self = serde_json::from_str(&text).map_err(|e| file(e.to_string()))?;
        if config.version != VERSION {
            return Err(file(format!("expected version {VERSION}, found {}", config.version)));
        }
        Ok(config)
    }

    /// Whether a directory holds a GEM.
    pub fn is_gem(dir: &Path) -> bool {
        dir.join(GEM_FILE).is_file()
    }

    /// Refuses a base model other than the one trained on.
    ///
    /// # Errors
    /// [`Error::Fingerprint`] with both fingerprints.
    pub fn check_base(&self, dir: &Path, fingerprint: &str) -> Result<(), Error> {
        if self.base_fingerprint == fingerprint {
            return Ok(());
        }
        Err(Error::Fingerprint { path: dir.into(), expected: self.base_fingerprint.clone(), found: fingerprint.into() })
    }
}

/// The adapter of a GEM directory, and its standardisation.
///
/// # Errors
/// When a file is missing, a tensor has another shape than the base model demands, or a number is not finite.
pub(crate) fn load_parts(dir: &Path, decoder: &Decoder) -> Result<(Adapter, Option<Standardisation>), Error> {
    let file = |name: &str, reason: String| Error::File { path: dir.join(name), reason };
    let d = decoder.config().hidden_size;
    let (lora, special) = (load_lora_config(dir, d)?, load_special_rows(dir, d)?);
    let mut rng = <layout::Rng as rand::SeedableRng>::seed_from_u64(0);
    let adapter = Adapter::new(decoder, lora, &special, &mut rng)?;
    if adapter.config().is_some() {
        let mut tensors = read_safetensors(&dir.join(ADAPTER_FILE))?;
        for (name, var) in adapter.lora_vars() {
            match tensors.remove(&name) {
                Some((values, shape)) if shape == var.dims() => {
                    var.set(&Tensor::from_vec(values, shape, var.device())?)?
                }
                other => {
                    let found = other.map_or("none".into(), |o| format!("{:?}", o.1));
                    return Err(file(ADAPTER_FILE, format!("tensor {name}: expected {:?}, found {found}", var.dims())));
                }
            }
        }
        if let Some(name) = tensors.keys().next() {
            return Err(file(ADAPTER_FILE, format!("tensor {name} belongs to none of {LINEAR_MODULES:?}")));
        }
    }
    let path: PathBuf = dir.join(STANDARDISATION_FILE);
    let standardisation = if path.exists() {
        let mut tensors = read_safetensors(&path)?;
        let mut take = |name: &str| match tensors.remove(name) {
            Some((values, _)) if values.len() == d => Ok(values),
            other => Err(file(STANDARDISATION_FILE, format!("{name}: expected [{d}], found {:?}", other.map(|o| o.1)))),
        };
        Some(Standardisation::new(take("mean")?, take("std")?)?)
    } else {
        None
    };
    Ok((adapter, standardisation))
}

/// The adapter's config, if there is an adapter.
fn load_lora_config(dir: &Path, d: usize) -> Result<Option<LoraConfig>, Error> {
    let path = dir.join(ADAPTER_CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let file = |reason: String| Error::File { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| file(e.to_string()))?;
    let PeftConfig { r, lora_alpha, target_modules, .. } =
        serde_json::from_str(&text).map_err(|e| file(e.to_string()))?;
    if r > d {
        return Err(file(format!("r: expected at most {d}, found {r}")));
    }
    Ok(Some(LoraConfig { r, lora_alpha, target_modules }))
}

/// The rows of the special tokens, `[k, D]`; none where there is no file of them.
fn load_special_rows(dir: &Path, d: usize) -> Result<Vec<Vec<f32>>, Error> {
    let path = dir.join(SPECIAL_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    match read_safetensors(&path)?.remove("embeddings") {
        Some((values, shape)) if shape.len() == 2 && shape[1] == d => {
            Ok(values.chunks(d).map(<[f32]>::to_vec).collect())
        }
        other => {
            let reason = format!("embeddings: expected [k, {d}], found {:?}", other.map(|o| o.1));
            Err(Error::File { path, reason })
        }
    }
}
