//! `lapidary inspect`: what a model is, and what a method makes of a text.

use crate::args::{ModelArgs, method_settings};
use crate::context::Context;
use crate::progress;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use lapidary::layout::{Example, Rng};
use lapidary::model::gguf::GgufFile;
use lapidary::model::{BaseModel, GemConfig, ModelFiles, SafetensorsDir};
use lapidary::train::build_method;
use rand::SeedableRng as _;
use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  lapidary inspect mask --method gem --text \"A man plays.\"
  lapidary inspect mask --method gem --text \"A man plays.\" --train --set num_special_tokens=2
  lapidary inspect model smollm2-135m
  lapidary inspect model models/smollm2-135m-gem";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Draw the rows that a method makes of a text: roles, positions, labels, adapter gate, mask
    Mask(MaskArgs),
    /// Show what a model is: its shape, its weights, its fingerprint
    Model(InspectModelArgs),
}

#[derive(Debug, Args)]
struct MaskArgs {
    /// The method
    #[arg(long, value_name = "METHOD")]
    method: String,
    /// The text
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// A setting of the method, such as num_special_tokens=4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Draw the rows that train on the text, not the one that embeds it
    #[arg(long)]
    train: bool,
    /// Seed of what is random in training rows
    #[arg(long, value_name = "N", default_value_t = 0, requires = "train")]
    seed: u64,
    /// The model whose tokenizer cuts the text
    #[arg(long, short, value_name = "MODEL", default_value = "smollm2-135m")]
    model: String,
}

#[derive(Debug, Args)]
struct InspectModelArgs {
    /// A GEM directory, a GGUF file, a model directory, a hub id, or a built-in name
    #[arg(value_name = "MODEL")]
    model: String,
    /// The base model of a GEM, where it lies elsewhere than its gem.json says
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the model, the method or the text is at fault.
pub(crate) fn run(args: &InspectArgs, context: &Context) -> Result<()> {
    let text = match &args.what {
        What::Mask(args) => draw_rows(args, context)?,
        What::Model(args) => describe(args, context)?,
    };
    Ok(stdout().lock().write_all(text.as_bytes())?)
}

fn draw_rows(args: &MaskArgs, context: &Context) -> Result<String> {
    let base = BaseModel::load(&context.files(&args.model)?).with_context(|| args.model.clone())?;
    let method = build_method(&base, &args.method, method_settings(&args.settings)?)?;
    let ids = base.tokenizer.encode(&args.text)?;
    let plan = if args.train {
        let example = Example { text: ids, ..Example::default() };
        method.train_plan(&example, &mut Rng::seed_from_u64(args.seed))?
    } else {
        method.embed_plan(&ids)?
    };
    // Blanks at the ends of tokens would be lost between columns.
    let token = |id| base.tokenizer.decode(&[id], false).unwrap_or_default().replace(' ', "·");
    let rows: Vec<String> = plan.rows.iter().map(|row| row.draw_with(&token)).collect();
    Ok(rows.join("\n"))
}

fn describe(args: &InspectModelArgs, context: &Context) -> Result<String> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| rows.push((name.to_owned(), value));
    let dir = Path::new(&args.model);
    if GemConfig::is_gem(dir) {
        let config = GemConfig::load(dir)?;
        let model = ModelArgs { model: Some(args.model.clone()), base: args.base.clone(), ..ModelArgs::default() };
        let gem = context.load_model(&model)?;
        add("GEM", args.model.clone());
        add("method", format!("{} {}", config.method, config.settings));
        add("trained", if config.full { "all weights" } else { "adapter and special tokens" }.to_owned());
        add("special tokens", gem.method().special_tokens().len().to_string());
        add("standardised", yes(gem.standardisation().is_some()));
        add("fingerprint", gem.fingerprint().into_owned());
        let base = args.base.clone().unwrap_or(config.base_model);
        add("base model", base.clone());
        describe_base(gem.base(), &context.files(&base)?, &mut add)?;
    } else {
        let files = context.files(&args.model)?;
        let base = BaseModel::load(&files).with_context(|| args.model.clone())?;
        describe_base(&base, &files, &mut add)?;
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    Ok(rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect())
}

fn describe_base(base: &BaseModel, files: &ModelFiles, add: &mut dyn FnMut(&str, String)) -> Result<()> {
    let (ModelFiles::Gguf(path) | ModelFiles::Directory(path)) = files;
    let config = base.decoder.config();
    let weights = stored_weights(files)?;
    add("files", path.display().to_string());
    add("parameters", progress::grouped(weights.values().sum()));
    let stored: Vec<String> =
        weights.iter().map(|(kind, count)| format!("{kind} {}", progress::grouped(*count))).collect();
    add("stored as", stored.join(", "));
    add("base fingerprint", base.fingerprint.clone());
    add("chat template", yes(base.chat_template.is_some()));
    add("vocabulary", format!("{} tokens", progress::grouped(base.tokenizer.vocab_size() as u64)));
    // The rest as the config has it: every field, under the name it has there.
    for (name, value) in serde_json::to_value(config)?.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::Array(layers) if name == "layers" => {
                add("num_hidden_layers", layers.len().to_string());
                let mut kinds = BTreeMap::<String, usize>::new();
                layers.iter().for_each(|layer| *kinds.entry(layer.to_string()).or_default() += 1);
                kinds.iter().for_each(|(kind, count)| add("layers", format!("{count} × {kind}")));
            }
            value => add(name, value.to_string()),
        }
    }
    Ok(())
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Numbers of each storage type.
fn stored_weights(files: &ModelFiles) -> Result<BTreeMap<String, u64>> {
    let mut weights = BTreeMap::new();
    let mut add =
        |kind: String, shape: &[usize]| *weights.entry(kind).or_default() += shape.iter().product::<usize>() as u64;
    match files {
        ModelFiles::Gguf(path) => {
            for tensor in GgufFile::open(path)?.tensors() {
                let kind = tensor
                    .storage()
                    .map_or_else(|| format!("type {}", tensor.type_number()), |kind| format!("{kind:?}"));
                add(kind, tensor.shape());
            }
        }
        ModelFiles::Directory(dir) => {
            let weights = SafetensorsDir::open(dir)?;
            for name in weights.names() {
                let tensor = weights.tensor(name)?;
                add(format!("{:?}", tensor.storage), &tensor.shape);
            }
        }
    }
    Ok(weights)
}
