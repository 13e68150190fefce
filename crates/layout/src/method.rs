//! What every method offers, and the registry of methods.

use serde_json::Value;

use crate::methods::{
    autocompressor, check_text, echo, gem, gist, gritlm, icae, last, llm2vec, llm2vec_gen, mean, prompt_eol, sepllm,
    simcse, weighted_mean,
};
use crate::{Anchors, LayoutError, Objective, Plan, Rng, TokenId};

/// One training example.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Example {
    /// The text, without BOS.
    pub text: Vec<TokenId>,
    /// A text of the same meaning; without it the method makes a positive from the text itself.
    pub positive: Option<Vec<TokenId>>,
    /// Hard negatives: texts that must stay far from it.
    pub negatives: Vec<Vec<TokenId>>,
}

/// How the embedding of an added special token starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialInit {
    /// A copy of this token's embedding.
    Token(TokenId),
    /// The mean of all token embeddings.
    VocabularyMean,
}

/// A special token that a method adds to the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// How it is written, such as `[E0]`.
    pub content: String,
    /// How its embedding starts.
    pub init: SpecialInit,
}

/// What comes after a compressed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuation {
    /// The text again.
    Again,
    /// The rest of the text.
    Rest,
}

/// What a method needs to know of the tokenizer.
pub struct MethodContext<'a> {
    /// Turns a text into ids, adding neither BOS nor EOS.
    pub encode: &'a dyn Fn(&str) -> Vec<TokenId>,
    /// The id put first in every row, if the model uses one.
    pub bos: Option<TokenId>,
}

/// Turns texts into plans.
pub trait Method {
    /// The name on the command line and in files.
    fn name(&self) -> &'static str;

    /// The special tokens it adds; `Input::Special(j)` is the j-th.
    fn special_tokens(&self) -> Vec<SpecialToken> {
        Vec::new()
    }

    /// The rows that train on one example.
    ///
    /// # Errors
    /// [`MethodError::NotTrained`] for a training-free method, [`MethodError::EmptyText`].
    fn train_plan(&self, _example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        Err(MethodError::NotTrained { method: self.name() })
    }

    /// The row that embeds one text; it pools one query and carries no label.
    ///
    /// # Errors
    /// [`MethodError::EmptyText`].
    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError>;

    /// The rows that compress a text for a plain row to go on from: of the last one, the special positions alone stay
    /// in view.
    ///
    /// # Errors
    /// [`MethodError::EmptyText`].
    fn read_plan(&self, text: &[TokenId], _continuation: Continuation) -> Result<Plan, MethodError> {
        self.embed_plan(text)
    }

    /// Which past tokens a plain row keeps in view; `None`: all.
    fn anchors(&self) -> Option<&Anchors> {
        None
    }

    /// How a text with an instruction is written: what comes first, and the text after it.
    fn instructed(&self, instruction: &str, text: &str) -> [String; 2] {
        [format!("{instruction}:"), format!(" {text}")]
    }

    /// The row that embeds a text after an instruction, both as [`Method::instructed`] writes them. What pools every
    /// token of the text leaves the instruction out.
    ///
    /// # Errors
    /// As [`Method::embed_plan`].
    fn instructed_plan(&self, instruction: &[TokenId], text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(self.name(), "text", text)?;
        let mut plan = self.embed_plan(&[instruction, text].concat())?;
        for row in &mut plan.rows {
            row.leave_out_of_means(instruction.len(), text.len())?;
        }
        Ok(plan)
    }

    /// Whether an example without a positive cannot be trained on.
    fn needs_positive(&self) -> bool {
        false
    }

    /// Whether a part of the training rows runs on the base model as it was, so that its weights cannot be trained.
    fn needs_frozen_weights(&self) -> bool {
        false
    }

    /// Whether the adapter acts on rows without special tokens, chat among them, and on what follows special tokens.
    fn adapts_plain_rows(&self) -> bool {
        false
    }

    /// What training minimises; no term for a training-free method.
    fn objective(&self) -> Objective {
        Objective::default()
    }

    /// Whether `train_plan` works.
    fn trainable(&self) -> bool {
        !self.objective().terms.is_empty()
    }

    /// The resolved settings, from which [`build`] makes the same method again.
    fn settings(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }
}

/// Why a method could not be built or could not make a plan.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// No method of that name.
    #[error("unknown method {found:?}; expected one of {}", names().join(", "))]
    Unknown {
        /// The name found.
        found: String,
    },
    /// Settings that do not parse: an unknown field or a value of the wrong kind.
    #[error("settings of method {method}: {source}")]
    Settings {
        /// The method.
        method: &'static str,
        /// The field and what was expected there.
        source: serde_json::Error,
    },
    /// A setting with a value that cannot be.
    #[error("method {method}: {field} must be {expected}, found {found}")]
    Setting {
        /// The method.
        method: &'static str,
        /// The field, with dots between the levels.
        field: &'static str,
        /// What would be right, and why.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// A text without tokens.
    #[error("method {method}: the {part} has no tokens, expected at least one")]
    EmptyText {
        /// The method.
        method: &'static str,
        /// `text`, `positive` or `negative`.
        part: &'static str,
    },
    /// The method is used as it is.
    #[error("method {method} is not trained: it has nothing to learn; only embed with it")]
    NotTrained {
        /// The method.
        method: &'static str,
    },
    /// A row that is not valid.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

type Build = fn(Value, &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError>;

const REGISTRY: [(&str, Build); 14] = [
    (gem::NAME, gem::build),
    (mean::NAME, mean::build),
    (weighted_mean::NAME, weighted_mean::build),
    (last::NAME, last::build),
    (prompt_eol::NAME, prompt_eol::build),
    (echo::NAME, echo::build),
    (simcse::NAME, simcse::build),
    (llm2vec::NAME, llm2vec::build),
    (gritlm::NAME, gritlm::build),
    (gist::NAME, gist::build),
    (autocompressor::NAME, autocompressor::build),
    (icae::NAME, icae::build),
    (sepllm::NAME, sepllm::build),
    (llm2vec_gen::NAME, llm2vec_gen::build),
];

const NAMES: [&str; REGISTRY.len()] = {
    let mut names = [""; REGISTRY.len()];
    let mut at = 0;
    while at < REGISTRY.len() {
        names[at] = REGISTRY[at].0;
        at += 1;
    }
    names
};

/// The names of all methods.
#[must_use]
pub fn names() -> &'static [&'static str] {
    &NAMES
}

/// Builds the method called `name`; `Value::Null` or an empty object stands for the default settings.
///
/// # Errors
/// [`MethodError::Unknown`], or what is wrong with the settings, naming the field.
pub fn build(
    name: &str,
    settings: Value,
    context: &MethodContext,
) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let Some((_, build)) = REGISTRY.iter().find(|entry| entry.0 == name) else {
        return Err(MethodError::Unknown { found: name.to_owned() });
    };
    let default = Value::Object(serde_json::Map::new());
    build(if settings.is_null() { default } else { settings }, context)
}
