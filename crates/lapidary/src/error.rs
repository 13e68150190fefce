//! What can go wrong in the library, each with what was expected, what was found, and where.

use std::path::PathBuf;

/// An error of the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation met shapes or values that it cannot take.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// A method met settings or a text that it cannot take.
    #[error(transparent)]
    Method(#[from] layout::MethodError),
    /// A model configuration is unknown or out of bounds.
    #[error(transparent)]
    Config(#[from] crate::model::ConfigError),
    /// A GGUF file is damaged or unsupported.
    #[error(transparent)]
    Gguf(#[from] crate::model::gguf::GgufError),
    /// A safetensors file is damaged or unsupported.
    #[error(transparent)]
    Safetensors(#[from] crate::model::SafetensorsError),
    /// A tokenizer cannot be loaded or a text not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] crate::text::TokenizerError),
    /// A text cannot be cut into chunks.
    #[error(transparent)]
    Chunk(#[from] crate::text::chunk::ChunkError),
    /// A chat template cannot be parsed or rendered.
    #[error(transparent)]
    Template(#[from] crate::text::TemplateError),
    /// Training or evaluation data cannot be read.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A result cannot be written.
    #[error(transparent)]
    Output(#[from] crate::output::OutputError),
    /// A metric cannot be computed.
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    /// A recipe is no TOML or has an unknown key.
    #[error("recipe: {0}")]
    Recipe(String),
    /// A vector or logits came out with a number that is none.
    #[error("{0}")]
    NotFinite(String),
    /// A setting is out of range.
    #[error("{field}: expected {expected}, found {found}")]
    Setting {
        /// The setting, with its path.
        field: String,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// A tensor is missing or of another shape.
    #[error("tensor {name}: expected {expected}, found {found}")]
    Tensor {
        /// Its Hugging Face name.
        name: String,
        /// What the config demands.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The model was made without a chat template.
    #[error(
        "the model has no chat template, so it cannot chat; continue plain text instead, or use a model made for chat"
    )]
    NoChatTemplate,
    /// A row does not fit the model.
    #[error("a row of {found} positions is longer than the model's {limit}")]
    TooLong {
        /// Positions of the row.
        found: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// A file of a model directory or checkpoint is missing or damaged.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        reason: String,
    },
    /// The GEM was trained on another base model.
    #[error("{path}: made for a base model with fingerprint {expected}, found one with {found}")]
    Fingerprint {
        /// The GEM's directory.
        path: PathBuf,
        /// Fingerprint in `gem.json`.
        expected: String,
        /// Fingerprint of the model at hand.
        found: String,
    },
    /// Training went wrong; the last good checkpoint is kept.
    #[error("training stopped at step {step}: {reason}")]
    Training {
        /// Step, from 1.
        step: u64,
        /// What was seen, and in which rows.
        reason: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}
