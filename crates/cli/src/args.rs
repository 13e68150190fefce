//! Arguments that several commands share.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use lapidary::model::source::BUILT_IN_MODELS;
use lapidary::model::{GemConfig, WeightFormat};
use lapidary::{Device, cuda_device};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The GEM that comes with the program, looked for below the current directory and below those above the program.
const SHIPPED_GEM: &str = "models/smollm2-135m-gem";

/// Which model to use.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ModelArgs {
    /// A GEM directory, or a base model: a GGUF file, a model directory, a hub id, or a built-in name (smollm2-135m,
    /// gemma3-270m). Without it: the GEM that comes with this program, else smollm2-135m
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    pub(crate) model: Option<String>,
    /// The base model of a GEM, where it lies elsewhere than its gem.json says
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    pub(crate) base: Option<String>,
    /// Number format of the weights: bf16 is several times as fast on CPUs with units for it (AVX-512-BF16, AMX), int8 faster
    /// still (AVX-512-VNNI, AMX; not on a GPU); both take more memory than quantised weights, and round [default: stored; of
    /// serve bf16, on a CPU that has units for it, where the weights then take no more than a quarter of the memory]
    #[arg(long, value_name = "FORMAT", help_heading = "Model")]
    pub(crate) weights: Option<Weights>,
}

/// [`WeightFormat`] on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    #[default]
    Stored,
    Bf16,
    Int8,
    F32,
}

impl Weights {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::F32 => "f32",
        }
    }
}

impl From<Weights> for WeightFormat {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Stored => Self::Stored,
            Weights::Bf16 => Self::Bf16,
            Weights::Int8 => Self::Int8,
            Weights::F32 => Self::F32,
        }
    }
}

/// What models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| number.parse().map(Self::Cuda);
        match (text, text.strip_prefix("cuda:").map(number)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(device))) => Ok(device),
            _ => Err("expected cpu, cuda or cuda:N with N from 0".to_owned()),
        }
    }
}

impl DeviceName {
    /// The device; nothing for the CPU.
    ///
    /// # Errors
    /// When there is no such GPU, or the program was built without GPUs.
    pub(crate) fn open(self) -> Result<Option<Device>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(number) => Ok(Some(cuda_device(number).map_err(lapidary::Error::from)?)),
        }
    }
}

impl ModelArgs {
    /// The format asked for, or as stored.
    pub(crate) fn weights(&self) -> Weights {
        self.weights.unwrap_or_default()
    }

    /// The model asked for, else the shipped GEM if it is found, else the first built-in model.
    pub(crate) fn name(&self) -> String {
        let shipped = || Some(shipped(SHIPPED_GEM, GemConfig::is_gem)?.display().to_string());
        self.model.clone().or_else(shipped).unwrap_or_else(|| BUILT_IN_MODELS[0].name.to_owned())
    }
}

/// The directory `relative` of the repository, below the current directory or above the program, if it `is_right`.
pub(crate) fn shipped(relative: &str, is_right: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let dirs = std::iter::once(Path::new("")).chain(program.ancestors().skip(1));
    dirs.map(|dir| dir.join(relative)).find(|dir| is_right(dir))
}

/// Which model and method turn texts into vectors.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EmbedModelArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// How a base model embeds, without training; a GEM brings its own method [default: prompt-eol]
    #[arg(long, value_name = "METHOD", help_heading = "Model")]
    pub(crate) method: Option<String>,
    /// A setting of the method, such as num_special_tokens=4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = "Model", requires = "method")]
    pub(crate) settings: Vec<String>,
}

/// Settings of a method from `key.path=value` items; a value is read as JSON, or as text where it is no JSON.
///
/// # Errors
/// When an item has no `=`, or goes through something that is no table.
pub(crate) fn method_settings(items: &[String]) -> Result<Value> {
    let mut settings = Map::new();
    for item in items {
        let (path, value) = item.split_once('=').with_context(|| format!("--set {item}: expected KEY=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let mut keys: Vec<&str> = path.trim().split('.').collect();
        let last =
            keys.pop().filter(|key| !key.is_empty()).with_context(|| format!("--set {item}: expected KEY=VALUE"))?;
        let mut table = &mut settings;
        for key in keys {
            let entry = table.entry(key).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = entry else { bail!("--set {item}: {key} is no table") };
            table = inner;
        }
        table.insert(last.to_owned(), value);
    }
    Ok(Value::Object(settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_is_the_cpu_or_a_numbered_gpu() {
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda3", "CPU"] {
            wrong.parse::<DeviceName>().unwrap_err();
        }
    }

    #[test]
    fn settings_are_json_or_text_at_a_path() {
        let set = |items: &[&str]| method_settings(&items.iter().map(|&item| item.to_owned()).collect::<Vec<_>>());
        let found = set(&["k=3", "scope=all", "token_dropout.ratio=0.5", "token_dropout.form=none"]).unwrap();
        assert_eq!(found, json!({"k": 3, "scope": "all", "token_dropout": {"ratio": 0.5, "form": "none"}}));
        for wrong in [&["k"][..], &["=1"], &["k=1", "k.l=2"], &["a.=1"]] {
            set(wrong).unwrap_err();
        }
    }
}
