//! What every command needs: where models come from, and how much to say.

use crate::args::{EmbedModelArgs, ModelArgs, method_settings};
use crate::fetch::data_sets::TaskData;
use crate::fetch::{FetchOptions, Fetcher};
use anyhow::{Context as _, Result, bail};
use lapidary::model::source::{BUILT_IN_MODELS, ModelSource};
use lapidary::model::{BaseModel, GemConfig, ModelFiles};
use lapidary::text::chat_template::Date;
use lapidary::{Device, Error, Lapidary};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How a base model embeds when nothing else is asked for: the best of the methods that need no training.
const DEFAULT_METHOD: &str = "prompt-eol";

/// What the global flags say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context {
    /// Directory of fetched models; none: as the environment says.
    pub(crate) cache: Option<PathBuf>,
    /// Use only what is on this machine.
    pub(crate) offline: bool,
    /// No progress and no notes.
    pub(crate) quiet: bool,
    /// What models run on; none: the CPU.
    pub(crate) device: Option<Device>,
}

impl Context {
    /// The files of a base model, fetched if they are not on this machine.
    ///
    /// # Errors
    /// When the name leads nowhere or fetching fails.
    pub(crate) fn files(&self, model: &str) -> Result<ModelFiles> {
        self.fetch(model, false)
    }

    /// As [`Context::files`]; with `verify` a built-in model is hashed again.
    ///
    /// # Errors
    /// As [`Context::files`], or when the hash differs.
    pub(crate) fn fetch(&self, model: &str, verify: bool) -> Result<ModelFiles> {
        self.fetcher(verify)?.fetch(&ModelSource::resolve(model)?)
    }

    /// A file of a data set on the hub, fetched if it is not on this machine.
    ///
    /// # Errors
    /// When fetching fails.
    pub(crate) fn data_set_file(&self, id: &str, file: &str) -> Result<PathBuf> {
        self.fetcher(false)?.data_set_file(id, file)
    }

    /// The data of an evaluation task on the hub, fetched if they are not on this machine.
    ///
    /// # Errors
    /// When the hub has no such task, or fetching fails.
    pub(crate) fn task_data(&self, task: &str) -> Result<TaskData> {
        self.fetcher(false)?.task_data(task)
    }

    fn fetcher(&self, verify: bool) -> Result<Fetcher> {
        let fetcher = Fetcher::from_env(FetchOptions { offline: self.offline, verify, quiet: self.quiet })?;
        Ok(match &self.cache {
            Some(cache) => fetcher.with_cache_dir(cache.clone()),
            None => fetcher,
        })
    }

    /// A GEM directory with its base model, or a base model with the default method.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the GEM was trained on another base model.
    pub(crate) fn load_model(&self, args: &ModelArgs) -> Result<Lapidary> {
        self.load_to_embed(&EmbedModelArgs { model: args.clone(), ..EmbedModelArgs::default() })
    }

    /// As [`Context::load_model`], for a command that embeds by a method of the user's choice.
    ///
    /// # Errors
    /// As [`Context::load_model`]; or when a GEM is asked to embed by another method.
    pub(crate) fn load_to_embed(&self, args: &EmbedModelArgs) -> Result<Lapidary> {
        let mut model = self.load_stored(args)?;
        model.set_weight_format(args.model.weights().into())?;
        self.place(model)
    }

    /// A base model, on the device.
    ///
    /// # Errors
    /// When a file is missing, damaged or of an unsupported kind, or the device has no room.
    pub(crate) fn load_base(&self, files: &ModelFiles) -> Result<BaseModel> {
        let mut base = BaseModel::load(files)?;
        if let Some(device) = &self.device {
            base.decoder.to_device(device)?;
        }
        Ok(base)
    }

    /// The model, on the device.
    ///
    /// # Errors
    /// When the device has no room.
    pub(crate) fn place(&self, mut model: Lapidary) -> Result<Lapidary> {
        if let Some(device) = &self.device {
            model.to_device(device)?;
        }
        Ok(model)
    }

    fn load_stored(&self, args: &EmbedModelArgs) -> Result<Lapidary> {
        let settings = method_settings(&args.settings)?;
        let model = match &args.method {
            // Where a method is asked for, the shipped GEM, which has its own, cannot be meant.
            Some(_) if args.model.model.is_none() => BUILT_IN_MODELS[0].name.to_owned(),
            _ => args.model.name(),
        };
        if args.model.model.is_none() {
            // Which one is found depends on where the program is run; vectors of two models do not go together.
            self.note(&format!("model: {model}"));
        }
        let dir = Path::new(&model);
        if !GemConfig::is_gem(dir) {
            if args.model.base.is_some() {
                bail!("--base: expected --model to be a GEM directory, found {model}");
            }
            let method = args.method.as_deref().unwrap_or(DEFAULT_METHOD);
            let loaded = Lapidary::untrained(&self.files(&model)?, method, settings).with_context(|| model.clone())?;
            return Ok(dated(loaded, today()));
        }
        let config = GemConfig::load(dir)?;
        if let Some(method) = args.method.as_ref().filter(|method| **method != config.method) {
            bail!(
                "--method {method}: {model} brings its own, {}; name its base model ({}) instead",
                config.method,
                config.base_model
            );
        }
        if settings != Value::Object(serde_json::Map::new()) {
            bail!("--set: the settings of {model} were fixed when it was trained");
        }
        let base = args.model.base.as_ref().unwrap_or(&config.base_model);
        let files = self.files(base).with_context(|| format!("base model of {model}"))?;
        match Lapidary::load(dir, &files) {
            // These name the GEM or the file at fault already.
            Err(error @ (Error::Fingerprint { .. } | Error::File { .. })) => Err(error.into()),
            loaded => Ok(dated(loaded.with_context(|| model.clone())?, today())),
        }
    }

    /// Tells the user something that is not the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// The day in universal time, where the clock is set.
pub(crate) fn today() -> Option<Date> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Date::from_unix_secs(since.as_secs())
}

/// Tells the model which day it is: some chat templates say so in every prompt.
pub(crate) fn dated(mut model: Lapidary, today: Option<Date>) -> Lapidary {
    if let Some(today) = today {
        model.set_date(today);
    }
    model
}
