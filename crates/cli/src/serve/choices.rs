//! What a request may say about how tokens are chosen.

use super::api_error::ApiError;
use super::state::Server;
use lapidary::generate::{Sampling, StopFinder};
use lapidary::layout::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// Most stop strings of a request.
const MAX_STOP: usize = 16;
/// Most replies to one prompt.
const MAX_REPLIES: usize = 128;
/// Most alternatives to a token that are told.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;
/// Bounds of what may be added to a logit.
const MAX_BIAS: f32 = 100.0;

/// How the tokens of a reply are chosen. What is not there is as the model's makers say.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = Sampling)]
pub(crate) struct Choices {
    /// What logits are divided by; 0: the most probable token each time.
    #[schema(minimum = 0, maximum = 1000)]
    temperature: Option<f32>,
    /// Of the most probable tokens, as few as have this probability together.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// So many of the most probable tokens; 0: all.
    top_k: Option<usize>,
    /// Tokens that are this probable at least, the most probable one being 1.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// What the logits of tokens that were there are divided by, or multiplied with where they are below 0.
    #[schema(exclusive_minimum = 0, maximum = 1000)]
    repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens that the reply has.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    /// Taken from the logits of tokens for each time that the reply has them.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// The same request with the same seed has the same reply.
    seed: Option<i64>,
    /// The reply ends before the first of these texts.
    stop: Option<Stop>,
    /// Replies to each prompt; 1 unless it says otherwise.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<usize>,
    #[schema(schema_with = biases)]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// What no field is for.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// Fields that other servers know, which would change what comes of a request: they are refused, not passed over.
const REFUSED: &[&str] = &[
    "audio",
    "function_call",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "min_tokens",
    "overflow",
    "prompt_logprobs",
    "reasoning_effort",
    "response_format",
    "return_embedding",
    "stop_token_ids",
    "structured_outputs",
    "web_search_options",
];

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl ToSchema for Stop {}

impl PartialSchema for Stop {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
        let texts = ArrayBuilder::new().items(text()).max_items(Some(MAX_STOP));
        OneOfBuilder::new().item(text()).item(texts).into()
    }
}

fn biases() -> Schema {
    let bias = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-MAX_BIAS)).maximum(Some(MAX_BIAS));
    let ids = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]+$"));
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some("What is added to the logits of tokens, by their ids"))
        .additional_properties(Some(bias))
        .property_names(Some(ids))
        .into()
}

impl Choices {
    /// The most probable token each time.
    pub(crate) fn greedy() -> Self {
        Self { temperature: Some(0.0), repetition_penalty: Some(1.0), ..Self::default() }
    }

    /// Replies to each prompt.
    ///
    /// # Errors
    /// 400 for none or too many.
    pub(crate) fn num_replies(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_REPLIES).contains(&n) => Ok(n),
            n => Err(ApiError::field("n", &format!("1 to {MAX_REPLIES}"), n)),
        }
    }

    /// # Errors
    /// 400 for the first of all this that cannot be had.
    pub(crate) fn check(&self, server: &Server) -> Result<(), ApiError> {
        let is_set =
            |name: &&&str| self.rest.get(**name).is_some_and(|value| !value.is_null() && value != &json!(false));
        if let Some(name) = REFUSED.iter().find(is_set) {
            return Err(ApiError::field(name, "none on this route", "some"));
        }
        self.num_replies()?;
        self.stop()?;
        self.bias(server)?;
        Ok(self.sampling(server, 0).validate()?)
    }

    /// How the tokens of reply `number` are chosen, where the request is silent as the model's makers say.
    pub(crate) fn sampling(&self, server: &Server, number: usize) -> Sampling {
        let defaults = server.model.generate_options().sampling;
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            // Other replies to the same prompt are other draws.
            seed: self.seed.map(|seed| seed.cast_unsigned().wrapping_add(number as u64)),
        }
    }

    /// # Errors
    /// 400 for what is no id of this model's tokenizer, or out of bounds.
    pub(crate) fn bias(&self, server: &Server) -> Result<Vec<(TokenId, f32)>, ApiError> {
        let vocab_size = server.model.base().decoder.config().vocab_size;
        let entry = |(id, bias): (&String, &f32)| {
            let id = id.parse::<TokenId>().ok().filter(|id| (*id as usize) < vocab_size);
            let id = id.ok_or_else(|| ApiError::field("logit_bias", &format!("ids below {vocab_size}"), "another"))?;
            if !(-MAX_BIAS..=MAX_BIAS).contains(bias) {
                return Err(ApiError::field("logit_bias", &format!("numbers from -{MAX_BIAS} to {MAX_BIAS}"), bias));
            }
            Ok((id, *bias))
        };
        self.logit_bias.iter().flatten().map(entry).collect()
    }

    /// # Errors
    /// 400 for too many, or an empty one.
    pub(crate) fn stop(&self) -> Result<StopFinder, ApiError> {
        let stop = match &self.stop {
            None => &[][..],
            Some(Stop::One(stop)) => std::slice::from_ref(stop),
            Some(Stop::Many(stop)) => stop,
        };
        if stop.len() > MAX_STOP {
            return Err(ApiError::field("stop", &format!("at most {MAX_STOP}"), stop.len()));
        }
        Ok(StopFinder::new(stop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Choices, MAX_REPLIES, MAX_TOP_LOGPROBS};
    use crate::serve::chat::ChatRequest;
    use crate::serve::completions::CompletionRequest;
    use lapidary::generate::Sampling;
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    fn bound(of: &Value, name: &str, which: &str) -> f64 {
        let all = of["allOf"].as_array().map_or(std::slice::from_ref(of), Vec::as_slice);
        let found = all.iter().find_map(|part| part["properties"][name][which].as_f64());
        found.unwrap_or_else(|| panic!("{name} {which}: {of}"))
    }

    #[test]
    fn the_document_has_the_bounds_that_are_checked() {
        let schema = json!(Choices::schema());
        assert_eq!(bound(&schema, "n", "maximum"), MAX_REPLIES as f64);
        assert_eq!(bound(&json!(CompletionRequest::schema()), "best_of", "maximum"), MAX_REPLIES as f64);
        assert_eq!(bound(&json!(CompletionRequest::schema()), "logprobs", "maximum"), MAX_TOP_LOGPROBS as f64);
        assert_eq!(bound(&json!(ChatRequest::schema()), "top_logprobs", "maximum"), MAX_TOP_LOGPROBS as f64);
        let plain = Sampling::default();
        let with = |name: &str, value: f32| match name {
            "temperature" => Sampling { temperature: value, ..plain },
            "top_p" => Sampling { top_p: value, ..plain },
            "min_p" => Sampling { min_p: value, ..plain },
            "repetition_penalty" => Sampling { repetition_penalty: value, ..plain },
            "presence_penalty" => Sampling { presence_penalty: value, ..plain },
            _ => Sampling { frequency_penalty: value, ..plain },
        };
        for name in ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"] {
            let least = if name == "repetition_penalty" { "exclusiveMinimum" } else { "minimum" };
            let (min, max) = (bound(&schema, name, least) as f32, bound(&schema, name, "maximum") as f32);
            let is_valid = |value: f32| with(name, value).validate().is_ok();
            assert!(is_valid(max) && !is_valid(max * 1.01) && !is_valid(min - 0.01), "{name}");
            assert_eq!(is_valid(min), least == "minimum", "{name}");
        }
    }
}
