//! A reply as it comes: ids to text, stop strings, counts.

use super::api_error::ApiError;
use super::metrics::Reply;
use super::state::{Server, Ticket};
use lapidary::engine::{Event, GenerateRequest, Token};
use lapidary::generate::{Finish, StopFinder};
use lapidary::layout::TokenId;
use lapidary::text::tokenizer::DecodeStream;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most stop strings of a request.
const MAX_STOP: usize = 16;
/// Most alternatives to a token that are told.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

/// What requests of both kinds may say about how tokens are chosen.
#[derive(Deserialize)]
pub(crate) struct Choices {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<Stop>,
    n: Option<usize>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Choices {
    /// # Errors
    /// 400 for what is asked for and cannot be had: nothing is passed over in silence.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if let Some(n) = self.n.filter(|n| *n != 1) {
            return Err(ApiError::field("n", "1", n));
        }
        let penalties = [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        for (name, penalty) in penalties {
            if let Some(penalty) = penalty.filter(|penalty| *penalty != 0.0) {
                return Err(ApiError::field(name, "0 (repetition_penalty is there)", penalty));
            }
        }
        if self.logit_bias.as_ref().is_some_and(|bias| bias.as_object().is_none_or(|bias| !bias.is_empty())) {
            return Err(ApiError::field("logit_bias", "none", "some"));
        }
        Ok(())
    }

    fn stop(&self) -> Result<StopFinder, ApiError> {
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Many(stop)) => stop.clone(),
        };
        if stop.len() > MAX_STOP {
            return Err(ApiError::field("stop", &format!("at most {MAX_STOP}"), stop.len()));
        }
        Ok(StopFinder::new(&stop)?)
    }
}

/// What is to be said.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// Most tokens of the reply; none: as the model's makers say.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
}

/// What comes of it.
pub(crate) enum Said {
    /// A token of the prompt.
    Prompt(Token),
    /// Text, with the tokens since the last.
    Piece(String, Vec<Token>),
    /// It is over.
    End(&'static str),
}

/// A reply in progress.
pub(crate) struct Speaker<'s> {
    events: Option<Reply>,
    text: Option<DecodeStream<'s>>,
    stop: Option<StopFinder>,
    end: Option<&'static str>,
    num_prompt: usize,
    /// Known at the end of a reply that no stop string ended.
    num_cached: Option<usize>,
    num_tokens: usize,
}

impl<'s> Speaker<'s> {
    /// # Errors
    /// 400 for what cannot run.
    pub(crate) async fn start(
        server: &'s Arc<Server>,
        ticket: Arc<Ticket>,
        prompt: Prompt,
        choices: &Choices,
    ) -> Result<Self, ApiError> {
        let stop = choices.stop()?;
        let defaults = server.model.generate_options();
        let mut sampling = defaults.sampling;
        sampling.temperature = choices.temperature.unwrap_or(sampling.temperature);
        sampling.top_p = choices.top_p.unwrap_or(sampling.top_p);
        sampling.top_k = choices.top_k.unwrap_or(sampling.top_k);
        sampling.min_p = choices.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = choices.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.seed = choices.seed.map(i64::cast_unsigned);
        let num_prompt = prompt.ids.len();
        let request = |is_gone, watch| GenerateRequest {
            prompt: prompt.ids,
            max_new_tokens: prompt.max_tokens.unwrap_or(defaults.max_new_tokens),
            eos_token_ids: server.model.base().generation.eos_token_ids.clone(),
            sampling,
            logprobs: prompt.logprobs,
            echo: prompt.echo,
            is_gone,
            watch,
        };
        let events = server.generate(ticket, request).await?;
        Ok(Self {
            events: Some(events),
            text: Some(server.model.base().tokenizer.decode_stream(true)),
            stop: Some(stop),
            end: None,
            num_prompt,
            num_cached: None,
            num_tokens: 0,
        })
    }

    /// What comes next; nothing after the end.
    ///
    /// # Errors
    /// 500 when the engine fails.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>, ApiError> {
        loop {
            if let Some(end) = self.end.take() {
                return Ok(Some(Said::End(end)));
            }
            let Some(events) = &mut self.events else { return Ok(None) };
            match events.recv().await {
                Some(Event::Prompt(token)) => return Ok(Some(Said::Prompt(token))),
                Some(Event::Token(token)) => {
                    self.num_tokens += 1;
                    let (Some(text), Some(stop)) = (&mut self.text, &mut self.stop) else { return Ok(None) };
                    let piece = text.push(token.id).map_err(lapidary::Error::from)?;
                    let (piece, found) = stop.push(&piece);
                    if found {
                        // Dropped, so that the engine ends the request.
                        self.events.take().into_iter().for_each(Reply::stop);
                        self.end = Some("stop");
                    }
                    return Ok(Some(Said::Piece(piece, vec![token])));
                }
                Some(Event::Done(done)) => {
                    self.events = None;
                    self.num_cached = Some(done.num_cached_tokens);
                    let mut end = match done.finish {
                        Finish::Stop => "stop",
                        Finish::Length | Finish::Context => "length",
                        Finish::Interrupted => return Err(ApiError::gone()),
                    };
                    let (Some(text), Some(mut stop)) = (self.text.take(), self.stop.take()) else { return Ok(None) };
                    let (mut rest, found) = stop.push(&text.finish().map_err(lapidary::Error::from)?);
                    if found {
                        end = "stop";
                    } else {
                        rest += &stop.finish();
                    }
                    self.end = Some(end);
                    if !rest.is_empty() {
                        return Ok(Some(Said::Piece(rest, Vec::new())));
                    }
                }
                Some(Event::Failed(error)) => return Err(error.into()),
                None => return Err(ApiError::gone()),
            }
        }
    }

    pub(crate) fn usage(&self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt + self.num_tokens,
        });
        if let Some(num_cached) = self.num_cached {
            usage["prompt_tokens_details"] = json!({ "cached_tokens": num_cached });
        }
        usage
    }
}
