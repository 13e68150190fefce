//! `generation_config.json`: how the makers of a model want its text to be sampled.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::ConfigError;

/// The sampling settings of a model; `None` where the file is silent. Keys not listed here are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Sample, instead of taking the most probable token.
    pub do_sample: Option<bool>,
    /// Logits are divided by this.
    pub temperature: Option<f32>,
    /// Sample from the `top_k` most probable tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Sample from the fewest tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Sample from tokens at least this fraction as probable as the most probable.
    pub min_p: Option<f32>,
    /// Logits of tokens already seen are divided (positive) or multiplied (negative) by this.
    pub repetition_penalty: Option<f32>,
    /// Longest reply, tokens.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end a reply: one or a list in the file.
    #[serde(rename = "eos_token_id", deserialize_with = "one_or_many")]
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] for text that is not JSON, a value of the wrong type or one out of bounds.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        // Through a map, as a list would pass for a struct whose fields all have defaults.
        let entries: Map<String, Value> = serde_json::from_str(json)?;
        let config: Self = serde_json::from_value(Value::Object(entries))?;
        let Self {
            do_sample: _,
            temperature,
            top_k: _,
            top_p,
            min_p,
            repetition_penalty,
            max_new_tokens: _,
            eos_token_ids: _,
        } = &config;
        let bounds = [
            ("temperature", temperature, 1e3),
            ("top_p", top_p, 1.0),
            ("min_p", min_p, 1.0),
            ("repetition_penalty", repetition_penalty, 1e3),
        ];
        for (field, value, max) in bounds {
            if let Some(value) = value
                && !(0.0..=max).contains(value)
            {
                return Err(ConfigError::invalid(field, format!("a number from 0 to {max}"), value));
            }
        }
        if *repetition_penalty == Some(0.0) {
            return Err(ConfigError::invalid("repetition_penalty", "a number above 0", 0));
        }
        Ok(config)
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    use serde::de::Error;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| D::Error::custom(format!("eos_token_id: expected a token id, found {value}")))
    };
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => Ok(vec![id(&value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_knows_and_ignores_the_rest() {
        let config = GenerationConfig::from_json(
            r#"{"_from_model_config": true, "eos_token_id": [1, 106], "do_sample": true, "top_k": 64,
                "top_p": 0.95, "cache_implementation": "hybrid", "temperature": null}"#,
        );
        let expected = GenerationConfig {
            do_sample: Some(true),
            top_k: Some(64),
            top_p: Some(0.95),
            eos_token_ids: vec![1, 106],
            ..GenerationConfig::default()
        };
        assert_eq!(config.unwrap(), expected);
        assert_eq!(GenerationConfig::from_json(r#"{"eos_token_id": 2}"#).unwrap().eos_token_ids, [2]);
    }

    #[test]
    fn wrong_types_and_bounds_are_errors() {
        for json in [
            r#"{"temperature": "hot"}"#,
            r#"{"temperature": -1}"#,
            r#"{"top_p": 1.5}"#,
            r#"{"top_k": -1}"#,
            r#"{"repetition_penalty": 0}"#,
            r#"{"eos_token_id": [1, -2]}"#,
            r#"{"eos_token_id": 4294967296}"#,
            "[]",
            "{",
        ] {
            GenerationConfig::from_json(json).unwrap_err();
        }
    }
}
