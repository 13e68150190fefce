//! The settings of GEM: defaults where the paper is silent, checked once.

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::NAME;
use crate::methods::{check_num_special_tokens, parse, wrong_setting};
use crate::{MethodContext, MethodError, Rng, SpecialInit};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Settings {
    /// The prefix, with `{text}` in the place of the text; more than one place repeats it.
    pub(super) template: String,
    /// k, the number of special tokens.
    pub(super) num_special_tokens: u32,
    /// Where the adapter acts.
    pub(super) scope: Scope,
    /// Whether a special token sees the ones before it.
    pub(super) special_visibility: SpecialVisibility,
    /// How the k states become one vector.
    pub(super) pooling: Pooling,
    /// p: the share of examples whose next-token row is plain text.
    pub(super) plain_ratio: f64,
    /// The share of the other rows that carry a suffix.
    pub(super) bottleneck_ratio: f64,
    /// The share of the rows with a suffix whose suffix is the rest of the text, not the text again.
    pub(super) continuation_ratio: f64,
    /// How a text without a given positive becomes its own positive.
    pub(super) token_dropout: TokenDropout,
    /// How the special embeddings start.
    pub(super) special_init: SpecialInitSetting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    /// Every position: the paper.
    All,
    /// Prefix and special tokens of rows that carry special tokens.
    Embed,
    /// The special tokens only.
    Special,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SpecialVisibility {
    /// A special token sees the prefix and itself: the paper.
    Isolated,
    /// A special token sees the ones before it too.
    Causal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Pooling {
    Mean,
    Last,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TokenDropout {
    pub(super) form: DropoutForm,
    /// The probability that a token of the prefix is hidden from the positive.
    pub(super) ratio: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DropoutForm {
    /// The positive is a second row whose prefix lacks the tokens.
    Delete,
    /// The positive is a second set of special tokens in the same row that do not see the tokens.
    Visibility,
    /// The positive is a second row of the same text; the noise is the trainer's hidden-state dropout.
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SpecialInitSetting {
    /// The embeddings of the tokens of this text, cycled over the special tokens.
    Prompt(String),
    VocabularyMean,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            template: "{text}".to_owned(),
            num_special_tokens: 6,
            scope: Scope::Special,
            special_visibility: SpecialVisibility::Isolated,
            pooling: Pooling::Mean,
            plain_ratio: 0.0,
            bottleneck_ratio: 1.0,
            continuation_ratio: 0.0,
            token_dropout: TokenDropout::default(),
            special_init: SpecialInitSetting::Prompt(" means in one word:\"".to_owned()),
        }
    }
}

impl Default for TokenDropout {
    fn default() -> Self {
        Self { form: DropoutForm::Visibility, ratio: 0.2 }
    }
}

impl TokenDropout {
    /// Hides each of `num_tokens` tokens (at least one) with the probability `ratio`, but never all of them.
    pub(super) fn draw(&self, num_tokens: usize, rng: &mut Rng) -> Vec<bool> {
        let mut hidden: Vec<bool> = (0..num_tokens).map(|_| rng.random_bool(self.ratio)).collect();
        if hidden.iter().all(|&hidden| hidden) {
            hidden[rng.random_range(0..num_tokens)] = false;
        }
        hidden
    }
}

impl Settings {
    pub(super) fn parse(settings: Value) -> Result<Self, MethodError> {
        let settings: Self = parse(NAME, settings)?;
        check_num_special_tokens(NAME, settings.num_special_tokens)?;
        for (field, ratio) in [
            ("plain_ratio", settings.plain_ratio),
            ("bottleneck_ratio", settings.bottleneck_ratio),
            ("continuation_ratio", settings.continuation_ratio),
            ("token_dropout.ratio", settings.token_dropout.ratio),
        ] {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(wrong(field, "between 0 and 1", ratio.to_string()));
            }
        }
        if settings.scope != Scope::All && settings.plain_ratio != 0.0 {
            let expected = "0 unless scope is \"all\" (with any other scope the adapter is off on a \
                            plain row, so that nothing is learned from it)";
            return Err(wrong("plain_ratio", expected, settings.plain_ratio.to_string()));
        }
        Ok(settings)
    }

    /// How each special embedding starts.
    pub(super) fn special_inits(&self, context: &MethodContext) -> Result<Vec<SpecialInit>, MethodError> {
        let k = self.num_special_tokens as usize;
        match &self.special_init {
            SpecialInitSetting::VocabularyMean => Ok(vec![SpecialInit::VocabularyMean; k]),
            SpecialInitSetting::Prompt(prompt) => {
                let ids = (context.encode)(prompt);
                if ids.is_empty() {
                    let expected = "a text of at least one token";
                    return Err(wrong("special_init.prompt", expected, format!("{prompt:?}")));
                }
                Ok(ids.into_iter().cycle().take(k).map(SpecialInit::Token).collect())
            }
        }
    }
}

pub(super) fn wrong(field: &'static str, expected: &'static str, found: String) -> MethodError {
    wrong_setting(NAME, field, expected, found)
}
