//! A base model as its makers ship it: decoder, tokenizer, chat template, sampling settings, fingerprint.

use super::config::DecoderConfig;
use super::decoder::Decoder;
use super::generation_config::GenerationConfig;
use super::gguf::GgufFile;
use super::gguf_weights::{gguf_name, unpermute_rows};
use super::hf::{GgufMetadata, config_from_gguf, config_from_json};
use super::safetensors_dir::SafetensorsDir;
use super::weights::WeightSource;
use crate::Error;
use crate::text::{ChatTemplate, Tokenizer};
use kernels::Matrix;
use std::path::{Path, PathBuf};

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A directory in the Hugging Face layout.
    Directory(PathBuf),
}

/// A base model, ready to run.
pub struct BaseModel {
    /// The weights and what runs them.
    pub decoder: Decoder,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// How a conversation becomes text; not every model has one.
    pub chat_template: Option<ChatTemplate>,
    /// The makers' sampling settings.
    pub generation: GenerationConfig,
    /// BLAKE3 of the files that decide what the model computes, hexadecimal.
    pub fingerprint: String,
}

impl BaseModel {
    /// Loads a model.
    ///
    /// # Errors
    /// When a file is missing, damaged or of an unsupported kind.
    pub fn load(files: &ModelFiles) -> Result<Self, Error> {
        match files {
            ModelFiles::Gguf(path) => load_gguf(path),
            ModelFiles::Directory(dir) => load_directory(dir),
        }
    }

    /// Puts the weights of a full fine-tune in the place of the base model's own.
    pub(crate) fn replace_weights(&mut self, gem: &Path) -> Result<(), Error> {
        self.decoder = Decoder::load(self.decoder.config().clone(), &SafetensorsDir::open(gem)?)?;
        Ok(())
    }

    /// First token of a row, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.decoder.config().bos_token_id
    }
}

fn load_gguf(path: &Path) -> Result<BaseModel, Error> {
    let file = GgufFile::open(path)?;
    let mut config = config_from_gguf(&file)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    let chat_template = match GgufMetadata::str(&file, "tokenizer.chat_template") {
        Some(source) => {
            Some(ChatTemplate::new(source, token(config.bos_token_id), token(config.eos_token_ids.first().copied()))?)
        }
        None => None,
    };
    if !adds_bos(&file) {
        config.bos_token_id = None;
    }
    let generation = GenerationConfig { eos_token_ids: config.eos_token_ids.clone(), ..GenerationConfig::default() };
    let permuted = GgufMetadata::str(&file, "general.architecture").is_some_and(super::hf::gguf_rows_are_interleaved);
    let fingerprint = blake3::Hasher::new().update_rayon(file.bytes()).finalize().to_hex().to_string();
    let source = GgufWeights { file: &file, config: &config, permuted };
    let decoder = Decoder::load(config.clone(), &source)?;
    Ok(BaseModel { decoder, tokenizer, chat_template, generation, fingerprint })
}

/// Whether texts start with BOS: what the file says, else what llama.cpp does for its kind of tokenizer.
fn adds_bos(file: &GgufFile) -> bool {
    let said = GgufMetadata::bool(file, "tokenizer.ggml.add_bos_token");
    let sentencepiece = || GgufMetadata::str(file, "tokenizer.ggml.model") == Some("llama");
    let by_pattern = || GgufMetadata::str(file, "tokenizer.ggml.pre").is_some_and(super::hf::gguf_pattern_adds_bos);
    said.unwrap_or_else(|| sentencepiece() || by_pattern())
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::File { path: path.into(), reason: e.to_string() })
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

/// The parts of `tokenizer_config.json` that we read.
#[derive(serde::Deserialize, Default)]
struct TokenizerConfig {
    chat_template: Option<serde_json::Value>,
    bos_token: Option<serde_json::Value>,
    eos_token: Option<serde_json::Value>,
}

/// A token is given as a string or as an object with `content`.
fn token_text(value: Option<&serde_json::Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// One template, or a list of named ones of which `default` counts.
fn template_text(value: &serde_json::Value) -> Option<String> {
    let named =
        || value.as_array()?.iter().find(|t| t.get("name").is_some_and(|n| n == "default"))?.get("template")?.as_str();
    value.as_str().or_else(named).map(str::to_owned)
}

fn load_directory(dir: &Path) -> Result<BaseModel, Error> {
    let config_text = read(&dir.join("config.json"))?;
    let mut config = config_from_json(&config_text)?;
    let weights = SafetensorsDir::open(dir)?;
    let tokenizer_path = dir.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&tokenizer_path)?;
    let tokenizer_config: TokenizerConfig = match read_if_there(&dir.join("tokenizer_config.json"))? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|e| Error::File { path: dir.join("tokenizer_config.json"), reason: e.to_string() })?,
        None => TokenizerConfig::default(),
    };
    let (bos, eos) = (token_text(tokenizer_config.bos_token.as_ref()), token_text(tokenizer_config.eos_token.as_ref()));
    // A tokenizer that puts no BOS before a text has none to put, whatever the config lists.
    if tokenizer.leading_token()? != config.bos_token_id {
        config.bos_token_id = tokenizer.leading_token()?;
    }
    let source = match read_if_there(&dir.join("chat_template.jinja"))? {
        Some(text) => Some(text),
        None => tokenizer_config.chat_template.as_ref().and_then(template_text),
    };
    let chat_template = source.map(|source| ChatTemplate::new(&source, bos, eos)).transpose()?;
    let mut generation = match read_if_there(&dir.join("generation_config.json"))? {
        Some(text) => GenerationConfig::from_json(&text)?,
        None => GenerationConfig::default(),
    };
    if generation.eos_token_ids.is_empty() {
        generation.eos_token_ids.clone_from(&config.eos_token_ids);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(config_text.as_bytes()).update(read(&tokenizer_path)?.as_bytes());
    weights.shard_bytes().for_each(|bytes| {
        hasher.update_rayon(bytes);
    });
    let decoder = Decoder::load(config, &weights)?;
    let fingerprint = hasher.finalize().to_hex().to_string();
    Ok(BaseModel { decoder, tokenizer, chat_template, generation, fingerprint })
}

fn expect_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Tensor { name: name.into(), expected: format!("shape {expected:?}"), found: format!("{found:?}") })
}

impl WeightSource for SafetensorsDir {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let tensor = self.tensor(name)?;
        expect_shape(name, &tensor.shape, &[rows, cols])?;
        Ok(Matrix::new(tensor.storage, rows, cols, tensor.bytes)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name)?;
        expect_shape(name, &tensor.shape, &[len])?;
        Ok(Matrix::new(tensor.storage, 1, len, tensor.bytes)?.to_f32())
    }
}

struct GgufWeights<'a> {
    file: &'a GgufFile,
    config: &'a DecoderConfig,
    /// q and k rows are stored in interleaved-RoPE order.
    permuted: bool,
}

impl GgufWeights<'_> {
    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(kernels::StorageType, std::borrow::Cow<'_, [u8]>), Error> {
        let missing = || Error::Tensor { name: name.into(), expected: "a GGUF name".into(), found: "none".into() };
        let stored = gguf_name(name, self.config.post_norms).ok_or_else(missing)?;
        let tensor = self.file.tensor(&stored)?;
        expect_shape(name, &tensor.shape, shape)?;
        let heads = if name.contains("q_proj") {
            self.config.num_attention_heads
        } else if name.contains("k_proj") {
            self.config.num_key_value_heads
        } else {
            0
        };
        if self.permuted && heads > 0 {
            let row_bytes = tensor.bytes.len() / shape[0];
            return Ok((tensor.storage, unpermute_rows(tensor.bytes, row_bytes, heads).into()));
        }
        Ok((tensor.storage, tensor.bytes.into()))
    }
}

impl WeightSource for GgufWeights<'_> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let (storage, bytes) = self.bytes(name, &[rows, cols])?;
        Ok(Matrix::new(storage, rows, cols, &bytes)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let (storage, bytes) = self.bytes(name, &[len])?;
        Ok(Matrix::new(storage, 1, len, &bytes)?.to_f32())
    }
}

impl GgufMetadata for GgufFile {
    fn u64(&self, key: &str) -> Option<u64> {
        self.get_u64(key).ok()
    }

    fn f64(&self, key: &str) -> Option<f64> {
        self.get_f32(key).ok().map(f64::from).or_else(|| self.get_u64(key).ok().map(|x| x as f64))
    }

    fn bool(&self, key: &str) -> Option<bool> {
        self.get_bool(key).ok()
    }

    fn str(&self, key: &str) -> Option<&str> {
        self.get_str(key).ok()
    }

    fn array_len(&self, key: &str) -> Option<usize> {
        GgufFile::array_len(self, key)
    }

    fn has_tensor(&self, name: &str) -> bool {
        GgufFile::has_tensor(self, name)
    }

    fn f32_tensor(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.tensor(name).ok()?;
        let count = tensor.shape.iter().product();
        (tensor.storage == kernels::StorageType::F32)
            .then(|| Matrix::new(tensor.storage, 1, count, tensor.bytes).ok())?
            .map(|m| m.to_f32())
    }
}
