//! A reply as it comes: ids to text, stop strings, counts.

use super::api_error::ApiError;
use super::choices::Choices;
use super::metrics::Reply;
use super::state::{Server, Ticket};
use lapidary::engine::{Event, GenerateRequest, Placed, Token};
use lapidary::generate::{Finish, Grammar, StopFinder};
use lapidary::layout::TokenId;
use lapidary::text::tokenizer::DecodeStream;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::watch;
use utoipa::ToSchema;

/// What is to be said.
#[derive(Clone)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// Compressed texts in it.
    pub(crate) compressed: Vec<Placed>,
    /// Most tokens of the reply; none: as the model's makers say.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    /// What the reply has to follow.
    pub(crate) grammar: Option<Grammar>,
}

/// Tokens of a request and of what came of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Those of each prompt once.
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_tokens_details: Option<PromptTokensDetails>,
    /// Tokens of texts whose vectors came beside the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) embedding_tokens: Option<usize>,
    #[serde(flatten)]
    pub(crate) lost: LostUsage,
}

/// Tokens of what there was no room for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct LostUsage {
    /// Tokens that were left out because there was no room for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) truncated_tokens: Option<usize>,
    /// Tokens that are there as special tokens alone, and as how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compressed_tokens: Option<CompressedTokens>,
}

/// Tokens of a prompt that did not have to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens that an earlier request left in the pool.
    pub(crate) cached_tokens: usize,
}

/// Tokens of texts, and the special tokens that hold them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CompressedTokens {
    pub(crate) text_tokens: usize,
    pub(crate) special_tokens: usize,
}

impl Usage {
    /// Counts a reply that is over; a prompt counts once for all its replies.
    pub(crate) fn add_reply(&mut self, end: &End) {
        if end.number == 0 {
            self.prompt_tokens += end.num_prompt;
            if let Some(cached_tokens) = end.num_cached {
                let before = self.prompt_tokens_details.map_or(0, |details| details.cached_tokens);
                self.prompt_tokens_details = Some(PromptTokensDetails { cached_tokens: before + cached_tokens });
            }
        }
        self.completion_tokens += end.num_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// Why a reply ended: the model or a stop string ended it, or it has as many tokens as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = FinishReason)]
pub(crate) enum Finished {
    Stop,
    Length,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) finish: Finished,
    number: usize,
    num_prompt: usize,
    num_cached: Option<usize>,
    num_tokens: usize,
}

/// What comes of it.
pub(crate) enum Said {
    /// The engine has taken it.
    Start,
    /// A token of the prompt, and the text that is whole with it.
    Prompt(String, Token),
    /// Text, with the tokens since the last.
    Piece(String, Vec<Token>),
    /// It is over.
    End(End),
}

/// Other replies to a prompt wait at it until the first has run the prompt, and find it there.
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    async fn wait(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|is_open| *is_open).await;
    }
}

/// Opens a gate when the prompt has run, or when it will not run.
struct Opens(Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.0.send_replace(true);
    }
}

/// A reply in progress.
pub(crate) struct Speaker<'s> {
    events: Option<Reply>,
    opens: Option<Opens>,
    /// Of the prompt, where that is told too.
    prompt: Option<DecodeStream<'s>>,
    text: Option<DecodeStream<'s>>,
    stop: Option<StopFinder>,
    end: Option<Finished>,
    /// Which of the replies to its prompt it is.
    number: usize,
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
        (number, gate): (usize, &Arc<Gate>),
    ) -> Result<Self, ApiError> {
        let opens = (number == 0).then(|| Opens(Arc::clone(gate)));
        if opens.is_none() {
            gate.wait().await;
        }
        let (stop, bias) = (choices.stop()?, choices.bias(server)?);
        let sampling = choices.sampling(server, number);
        let max_new_tokens = server.model.generate_options().max_new_tokens;
        let (num_prompt, is_echoed) = (prompt.ids.len(), prompt.echo);
        let request = |is_gone, watch| GenerateRequest {
            prompt: prompt.ids,
            compressed: prompt.compressed,
            max_new_tokens: prompt.max_tokens.unwrap_or(max_new_tokens),
            eos_token_ids: server.model.base().generation.eos_token_ids.clone(),
            sampling,
            bias,
            grammar: prompt.grammar,
            logprobs: prompt.logprobs,
            echo: prompt.echo,
            is_gone,
            watch,
        };
        let events = server.generate(ticket, request).await?;
        Ok(Self {
            events: Some(events),
            opens,
            prompt: is_echoed.then(|| server.model.base().tokenizer.decode_stream(false)),
            text: Some(server.model.base().tokenizer.decode_stream(true)),
            stop: Some(stop),
            end: None,
            number,
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
            if let Some(finish) = self.end.take() {
                let Self { number, num_prompt, num_cached, num_tokens, .. } = *self;
                return Ok(Some(Said::End(End { finish, number, num_prompt, num_cached, num_tokens })));
            }
            let Some(events) = &mut self.events else { return Ok(None) };
            let event = events.recv().await;
            self.opens = None;
            match event {
                Some(Event::Prompt(token)) => {
                    let piece = self.prompt.as_mut().map(|text| text.push(token.id)).transpose();
                    let piece = piece.map_err(lapidary::Error::from)?.unwrap_or_default();
                    return Ok(Some(Said::Prompt(piece, token)));
                }
                Some(Event::Ran(num_cached)) => {
                    self.num_cached = Some(num_cached);
                    // A prompt that ends within a character.
                    let rest = self.prompt.take().map(DecodeStream::finish).transpose();
                    let rest = rest.map_err(lapidary::Error::from)?.unwrap_or_default();
                    if !rest.is_empty() {
                        return Ok(Some(Said::Piece(rest, Vec::new())));
                    }
                }
                Some(Event::Token(token)) => {
                    self.num_tokens += 1;
                    let (Some(text), Some(stop)) = (&mut self.text, &mut self.stop) else { return Ok(None) };
                    let piece = text.push(token.id).map_err(lapidary::Error::from)?;
                    let (piece, found) = stop.push(&piece);
                    if found {
                        // Dropped, so that the engine ends the request.
                        self.events.take().into_iter().for_each(Reply::stop);
                        self.end = Some(Finished::Stop);
                    }
                    return Ok(Some(Said::Piece(piece, vec![token])));
                }
                Some(Event::Done(done)) => {
                    self.events = None;
                    let mut end = match done.finish {
                        Finish::Stop => Finished::Stop,
                        Finish::Length | Finish::Context => Finished::Length,
                        Finish::Interrupted => return Err(ApiError::gone()),
                    };
                    let (Some(text), Some(mut stop)) = (self.text.take(), self.stop.take()) else { return Ok(None) };
                    let (mut rest, found) = stop.push(&text.finish().map_err(lapidary::Error::from)?);
                    if found {
                        end = Finished::Stop;
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
}
