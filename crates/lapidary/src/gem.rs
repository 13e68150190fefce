//! A model ready to use: a base model with a method, and with what was trained for it.

use crate::Error;
use crate::embed::{EmbedOptions, Embedder, Embeddings};
use crate::eval::standardise::Standardisation;
use crate::model::gem_dir::{PARTS, load_parts};
use crate::model::{Adapter, AdapterView, BaseModel, GemConfig, ModelFiles, WeightFormat};
use crate::text::chat_template::Date;
use crate::train::{build_method, special_rows};
use kernels::Device;
use layout::{Method, TokenId};
use rand::SeedableRng as _;
use std::borrow::Cow;
use std::path::Path;

/// BLAKE3 of some bytes, one part after the other, hexadecimal.
#[must_use]
pub fn fingerprint_of(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}

/// One set of weights that chats and embeds.
///
/// ```no_run
/// use lapidary::{Lapidary, ModelFiles};
///
/// # fn main() -> Result<(), lapidary::Error> {
/// let base = ModelFiles::Gguf("SmolLM2-135M-Instruct.Q4_1.gguf".into());
/// let gem = Lapidary::load("models/smollm2-135m-gem".as_ref(), &base)?;
/// let vectors = gem.embed(&["A man plays a guitar.", "Someone makes music."])?;
/// let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
/// println!("{cosine:.3}");
/// # Ok(())
/// # }
/// ```
pub struct Lapidary {
    base: BaseModel,
    method: Box<dyn Method + Send + Sync>,
    adapter: Option<AdapterView>,
    standardisation: Option<Standardisation>,
    fingerprint: String,
}

impl Lapidary {
    /// Loads a trained GEM from its directory and its base model.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the GEM was trained on another base model.
    pub fn load(gem: &Path, base: &ModelFiles) -> Result<Self, Error> {
        let config = GemConfig::load(gem)?;
        let mut base = BaseModel::load(base)?;
        config.check_base(gem, &base.fingerprint)?;
        if config.full {
            base.replace_weights(gem)?;
        }
        let method = build_method(&base, &config.method, config.settings.clone())?;
        let (adapter, standardisation) = load_parts(gem, &base.decoder)?;
        let mut hasher = blake3::Hasher::new();
        for file in PARTS {
            hasher.update(&std::fs::read(gem.join(file)).unwrap_or_default());
        }
        let fingerprint = hasher.update(base.fingerprint.as_bytes()).finalize().to_hex().to_string();
        Ok(Self { base, method, adapter: Some(adapter.view(false)), standardisation, fingerprint })
    }

    /// A base model with a method that needs no training, or an untrained one with its starting rows.
    ///
    /// # Errors
    /// When the model cannot be loaded or the method is unknown.
    pub fn untrained(base: &ModelFiles, method: &str, settings: serde_json::Value) -> Result<Self, Error> {
        Self::from_base(BaseModel::load(base)?, method, settings)
    }

    /// As [`Lapidary::untrained`], with a loaded base model.
    ///
    /// # Errors
    /// When the method is unknown.
    pub fn from_base(base: BaseModel, method: &str, settings: serde_json::Value) -> Result<Self, Error> {
        let method = build_method(&base, method, settings)?;
        let special = special_rows(&base, method.as_ref())?;
        let adapter = Adapter::new(&base.decoder, None, &special, &mut layout::Rng::seed_from_u64(0))?;
        let mut settings = method.settings();
        // Whatever order the fields are declared in.
        settings.sort_all_objects();
        let described = format!("{} {} {settings}", base.fingerprint, method.name());
        let fingerprint = blake3::hash(described.as_bytes()).to_hex().to_string();
        Ok(Self { base, method, adapter: Some(adapter.view(false)), standardisation: None, fingerprint })
    }

    /// The base model: tokenizer, template, decoder.
    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    /// The day that chat templates put into their prompts where they ask for one.
    pub fn set_date(&mut self, date: Date) {
        self.base.chat_template = self.base.chat_template.take().map(|template| template.with_date(date));
    }

    /// Stores the weights in another format, for speed or for memory; vectors and logits differ by its rounding.
    ///
    /// # Errors
    /// When memory for the copies cannot be had.
    pub fn set_weight_format(&mut self, format: WeightFormat) -> Result<(), Error> {
        self.base.decoder.set_weight_format(format)?;
        let rounding: &[u8] = match format {
            WeightFormat::Stored | WeightFormat::F32 => return Ok(()),
            WeightFormat::Bf16 => b"bf16",
            WeightFormat::Int8 => b"int8",
        };
        self.fingerprint = fingerprint_of(&[self.fingerprint.as_bytes(), rounding]);
        Ok(())
    }

    /// Runs on another device from now on; vectors and logits differ by its rounding.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_device(&mut self, device: &Device) -> Result<(), Error> {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.on(device)).transpose()?;
        self.base.decoder.to_device(device)?;
        self.adapter = adapter;
        Ok(())
    }

    /// Gives the base model back, to use it with another method.
    pub fn into_base(self) -> BaseModel {
        self.base
    }

    /// The method that lays texts out.
    pub fn method(&self) -> &(dyn Method + Send + Sync) {
        self.method.as_ref()
    }

    /// Adapter and special rows.
    pub fn adapter(&self) -> Option<&AdapterView> {
        self.adapter.as_ref()
    }

    /// Mean and deviation of each dimension, where known.
    pub fn standardisation(&self) -> Option<&Standardisation> {
        self.standardisation.as_ref()
    }

    /// Changes with every bit that changes a vector; stays the same when files are moved or renamed.
    pub fn fingerprint(&self) -> Cow<'_, str> {
        if self.base.decoder.device().is_cpu() {
            return Cow::Borrowed(&self.fingerprint);
        }
        Cow::Owned(fingerprint_of(&[self.fingerprint.as_bytes(), b"gpu"]))
    }

    /// What embeds texts with this model.
    pub fn embedder(&self) -> Embedder<'_> {
        Embedder {
            decoder: &self.base.decoder,
            tokenizer: &self.base.tokenizer,
            method: self.method.as_ref(),
            adapter: self.adapter.as_ref(),
            standardisation: self.standardisation.as_ref(),
        }
    }

    /// Fits the standardisation on unlabelled texts, replacing the stored one.
    ///
    /// # Errors
    /// When a text cannot be embedded, or with fewer than two texts.
    pub fn standardise_on(&mut self, ids: &[Vec<TokenId>], progress: &mut dyn FnMut(usize)) -> Result<(), Error> {
        self.standardisation = Some(self.embedder().fit_standardisation(ids, progress)?);
        Ok(())
    }

    /// Unit vectors `[D]`, one per text, in order.
    ///
    /// # Errors
    /// When a text has no tokens.
    pub fn embed(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.embed_with(texts, &EmbedOptions::default(), &mut |_| {})?.vectors)
    }

    /// As [`Lapidary::embed`], with options, counts and progress.
    ///
    /// # Errors
    /// When a text has no tokens.
    pub fn embed_with(
        &self,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        self.embedder().embed(texts, options, progress)
    }

    /// As [`Lapidary::embed_with`], each text after an instruction that says what its vector is for, in the way of the
    /// method.
    ///
    /// # Errors
    /// When a text has no tokens.
    pub fn embed_instructed(
        &self,
        instruction: &str,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        self.embedder().embed_instructed(instruction, texts, options, progress)
    }
}
