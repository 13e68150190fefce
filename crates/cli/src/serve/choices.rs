//! What a request may say about how tokens are chosen.

use super::api_error::ApiError;
use super::state::Server;
use lapidary::generate::{Sampling, StopFinder};
use lapidary::layout::TokenId;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most stop strings of a request.
const MAX_STOP: usize = 16;
/// Most replies to one prompt.
const MAX_REPLIES: usize = 128;
/// Most alternatives to a token that are told.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;
/// Bounds of what may be added to a logit.
const MAX_BIAS: f32 = 100.0;

#[derive(Default, Deserialize)]
pub(crate) struct Choices {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<Stop>,
    n: Option<usize>,
    logit_bias: Option<BTreeMap<String, f32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
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
