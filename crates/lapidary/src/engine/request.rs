//! What is asked of the engine, and how it answers.

use crate::Error;
use crate::embed::EmbedOptions;
use crate::generate::{Finish, Grammar, Sampler, Sampling};
use crate::model::{Compressed, Decoder, KvRow};
use kernels::Tensor;
use layout::{Layout, Role, TokenId};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// A token with what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Natural logarithm of its probability, before temperature and truncation; where they were asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens in its place, the most probable first, as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// How a continuation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
    /// Those of them whose keys and values were there already.
    pub num_cached_tokens: usize,
    /// Tokens of the continuation, without an end-of-sequence token.
    pub num_tokens: usize,
}

/// What a watcher of a continuation is told.
#[derive(Debug)]
pub enum Event {
    /// A token of the prompt, after the first, where they were asked for.
    Prompt(Token),
    /// The prompt has run; so many of its tokens' keys and values were there already.
    Ran(usize),
    /// The next token.
    Token(Token),
    /// It is over.
    Done(Done),
    /// It failed; nothing more comes.
    Failed(Error),
}

/// Is told what comes of a request; breaks to end it.
pub type Watch<T> = Box<dyn FnMut(T) -> ControlFlow<()> + Send>;

/// Is asked before each pass; yes ends a request.
pub type IsGone = Box<dyn Fn() -> bool + Send>;

/// Tokens to be continued.
pub struct GenerateRequest {
    /// The tokens, at least one.
    pub prompt: Vec<TokenId>,
    /// Compressed texts that stand in the prompt, in the order of their places; see [`place`].
    pub compressed: Vec<Placed>,
    /// Most tokens of the continuation; 0: the prompt runs alone.
    pub max_new_tokens: usize,
    /// Tokens that end it; they are not part of it.
    pub eos_token_ids: Vec<TokenId>,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// What is added to the logits of tokens.
    pub bias: Vec<(TokenId, f32)>,
    /// What the continuation has to follow.
    pub grammar: Option<Grammar>,
    /// Probabilities of tokens, and of so many others in their places.
    pub logprobs: Option<usize>,
    /// The tokens of the prompt are told too, with their probabilities where those are asked for.
    pub echo: bool,
    /// Whether nobody waits for it any more.
    pub is_gone: IsGone,
    /// Is told what comes of it.
    pub watch: Watch<Event>,
}

/// A compressed text in a prompt.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The place of its first position among the prompt's tokens.
    pub at: usize,
    /// Its keys and values.
    pub compressed: Arc<Compressed>,
}

/// Puts a compressed text behind the tokens of a prompt: they get an entry for each of its positions.
pub fn place(prompt: &mut Vec<TokenId>, compressed: Arc<Compressed>) -> Placed {
    let at = prompt.len();
    prompt.extend(compressed.stand_ins());
    Placed { at, compressed }
}

/// What comes of a text.
#[derive(Debug)]
pub struct Embedded {
    /// Its vector, `[D]`.
    pub vector: Vec<f32>,
    /// Its special tokens' keys and values, where they were asked for.
    pub compressed: Option<Arc<Compressed>>,
}

/// A text to embed.
pub struct EmbedRequest {
    /// Its tokens, at least one.
    pub ids: Vec<TokenId>,
    /// Texts that came before it: it is read with their special tokens in view.
    pub before: Vec<Arc<Compressed>>,
    /// What happens to its vector.
    pub options: EmbedOptions,
    /// Its special tokens' keys and values are asked for.
    pub compress: bool,
    /// The states of its tokens, end to end, in place of its vector; nothing happens to them.
    pub each_token: bool,
    /// Whether nobody waits for it any more.
    pub is_gone: IsGone,
    /// Is told what came of it.
    pub watch: Box<dyn FnOnce(Result<Embedded, Error>) + Send>,
}

/// A text that waits.
pub(super) struct Text {
    pub(super) layout: Layout,
    pub(super) before: Vec<Arc<Compressed>>,
    pub(super) num_text_tokens: usize,
    pub(super) options: EmbedOptions,
    pub(super) compress: bool,
    /// Places of the tokens whose states are told, where those are asked for.
    pub(super) tokens: Option<Vec<u32>>,
    pub(super) is_gone: IsGone,
    pub(super) watch: Box<dyn FnOnce(Result<Embedded, Error>) + Send>,
}

impl Text {
    /// Positions of the texts before it.
    pub(super) fn num_before(&self) -> usize {
        self.before.iter().map(|compressed| compressed.num_tokens()).sum()
    }

    /// Positions of its row, those before it among them.
    pub(super) fn num_positions(&self) -> usize {
        self.num_before() + self.layout.num_tokens()
    }

    /// Special tokens at the end of its row.
    pub(super) fn num_special_tokens(&self) -> usize {
        self.layout.roles().iter().rev().take_while(|role| **role == Role::Special).count()
    }

    pub(super) fn end(self, embedded: Result<Embedded, Error>) {
        (self.watch)(embedded);
    }
}

/// A continuation in progress.
pub(super) struct Chat {
    /// The prompt and what has come of it.
    pub(super) ids: Vec<TokenId>,
    /// Those of them that have run.
    pub(super) row: KvRow,
    compressed: Vec<Placed>,
    num_prompt: usize,
    num_cached: Option<usize>,
    /// Its prompt has, once.
    has_run: bool,
    /// Tokens in all at which it ends, and whether the model has no room for more.
    end: (usize, bool),
    eos_token_ids: Vec<TokenId>,
    sampler: Sampler,
    bias: Vec<(TokenId, f32)>,
    grammar: Option<Grammar>,
    logprobs: Option<usize>,
    echo: bool,
    /// Tokens of the prompt that were told.
    num_told: usize,
    is_gone: IsGone,
    watch: Watch<Event>,
}

impl Chat {
    /// # Errors
    /// As of [`super::Engine::generate`]; `limit` is the longest row.
    pub(super) fn new(request: GenerateRequest, limit: usize, vocab_size: usize) -> Result<Self, Error> {
        let GenerateRequest { prompt, compressed, max_new_tokens, eos_token_ids, .. } = &request;
        let (max_new_tokens, eos_token_ids) = (*max_new_tokens, eos_token_ids.clone());
        let own = check_prompt(prompt, compressed, vocab_size)?;
        if let Some((id, bias)) = request.bias.iter().find(|(id, bias)| *id as usize >= vocab_size || !bias.is_finite())
        {
            let expected = format!("finite numbers for ids below {vocab_size}");
            return Err(Error::Setting { field: "logit_bias".into(), expected, found: format!("{id}: {bias}") });
        }
        let GenerateRequest { prompt, compressed, sampling, bias, grammar, logprobs, echo, is_gone, watch, .. } =
            request;
        // The last token of a row is chosen, but does not run.
        if prompt.len() > limit {
            return Err(Error::TooLong { found: prompt.len(), limit });
        }
        let mut sampler = Sampler::new(sampling)?;
        sampler.see(&own);
        let asked = prompt.len().saturating_add(max_new_tokens);
        let end = (asked.min(limit + 1), asked > limit + 1);
        let (num_prompt, row) = (prompt.len(), KvRow::default());
        Ok(Self {
            ids: prompt,
            row,
            compressed,
            num_prompt,
            num_cached: None,
            has_run: false,
            end,
            eos_token_ids,
            sampler,
            bias,
            grammar,
            logprobs,
            echo,
            num_told: 0,
            is_gone,
            watch,
        })
    }

    pub(super) fn is_gone(&self) -> bool {
        (self.is_gone)()
    }

    /// Its tokens that have not run.
    pub(super) fn num_left(&self) -> usize {
        self.ids.len() - self.row.num_tokens()
    }

    /// The compressed text whose place is next, and how many of its positions are there: pages may end within it.
    pub(super) fn next_compressed(&self) -> Option<(Arc<Compressed>, usize)> {
        let done = self.row.num_tokens();
        let placed = self.compressed.iter().find(|Placed { at, compressed }| at + compressed.num_tokens() > done)?;
        (placed.at <= done).then(|| (Arc::clone(&placed.compressed), done - placed.at))
    }

    /// Its tokens that can run before the next compressed text.
    pub(super) fn num_plain(&self) -> usize {
        let done = self.row.num_tokens();
        let next = self.compressed.iter().find(|Placed { at, compressed }| at + compressed.num_tokens() > done);
        next.map_or(self.ids.len(), |placed| placed.at).saturating_sub(done)
    }

    /// It joins the passes with what is there of its tokens.
    pub(super) fn begin(&mut self, row: KvRow) {
        self.num_cached.get_or_insert(row.num_tokens());
        self.row = row;
    }

    /// Whether pages that hold the beginning of its prompt may stand for it: not where what the model thinks of each of its
    /// tokens is asked for.
    pub(super) fn may_share(&self) -> bool {
        !(self.echo && self.logprobs.is_some() && self.num_told < self.num_prompt)
    }

    /// Tells the tokens of the prompt that these states, the places `run` of the pass, are about.
    ///
    /// # Errors
    /// When the logits cannot be had or are not finite.
    pub(super) fn tell_prompt(
        &mut self,
        decoder: &Decoder,
        hidden: &Tensor,
        run: Range<usize>,
    ) -> Result<ControlFlow<()>, Error> {
        if !self.echo || self.num_told >= self.num_prompt {
            return Ok(ControlFlow::Continue(()));
        }
        let mut told = Vec::new();
        if self.num_told == 0 {
            told.push(Token { id: self.ids[0], logprob: None, top: Vec::new() });
        }
        let done = self.row.num_tokens();
        let first = done - run.len();
        // The state of a position is about the token after it; without probabilities none of them has to run.
        let from = if self.logprobs.is_some() { first } else { 0 };
        for at in from.max(self.num_told.saturating_sub(1))..done.min(self.num_prompt - 1) {
            let id = self.ids[at + 1];
            told.push(match self.logprobs {
                None => Token { id, logprob: None, top: Vec::new() },
                Some(count) => {
                    let state = hidden.narrow(0, run.start + at - first, 1)?;
                    let logits: Vec<f32> = decoder.logits(&state)?.flatten_all()?.to_vec1()?;
                    if !logits.iter().all(|logit| logit.is_finite()) {
                        return Err(Error::NotFinite(format!(
                            "the logits after token {at} of the prompt are not finite"
                        )));
                    }
                    token(id, &logits, count)
                }
            });
        }
        self.num_told += told.len();
        for token in told {
            if (self.watch)(Event::Prompt(token)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Chooses the next token from the logits of the last position; breaks when that was all.
    pub(super) fn next(&mut self, logits: &[f32]) -> ControlFlow<()> {
        if !std::mem::replace(&mut self.has_run, true) {
            (self.watch)(Event::Ran(self.num_cached.unwrap_or(0)))?;
        }
        if self.ids.len() >= self.end.0 {
            return self.over();
        }
        let id = match self.choose(logits) {
            Ok(id) => id,
            Err(error) => {
                self.fail(&error);
                return ControlFlow::Break(());
            }
        };
        if self.eos_token_ids.contains(&id) {
            self.end(Finish::Stop);
            return ControlFlow::Break(());
        }
        let told = match self.logprobs {
            Some(count) => token(id, logits, count),
            None => Token { id, logprob: None, top: Vec::new() },
        };
        self.ids.push(id);
        (self.watch)(Event::Token(told))?;
        if self.ids.len() >= self.end.0 { self.over() } else { ControlFlow::Continue(()) }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<TokenId, Error> {
        if self.bias.is_empty() && self.grammar.is_none() {
            return self.sampler.next_token(logits);
        }
        let mut logits = logits.to_vec();
        for (id, bias) in &self.bias {
            logits[*id as usize] += bias;
        }
        let Some(grammar) = &mut self.grammar else { return self.sampler.next_token(&logits) };
        grammar.mask(&mut logits)?;
        let id = self.sampler.next_token(&logits)?;
        if !self.eos_token_ids.contains(&id) {
            grammar.accept(id)?;
        }
        Ok(id)
    }

    fn over(&mut self) -> ControlFlow<()> {
        self.end(if self.end.1 { Finish::Context } else { Finish::Length });
        ControlFlow::Break(())
    }

    pub(super) fn end(&mut self, finish: Finish) {
        let done = Done {
            finish,
            num_prompt_tokens: self.num_prompt,
            num_cached_tokens: self.num_cached.unwrap_or(0),
            num_tokens: self.ids.len() - self.num_prompt,
        };
        // Nothing comes after it, whether or not somebody listens.
        let _ = (self.watch)(Event::Done(done));
    }

    pub(super) fn fail(&mut self, error: &Error) {
        let _ = (self.watch)(Event::Failed(match error {
            Error::NotFinite(what) => Error::NotFinite(what.clone()),
            Error::Internal(what) => Error::Internal(what.clone()),
            _ => Error::Internal(error.to_string()),
        }));
    }
}

/// The tokens of a prompt without those that stand for compressed texts.
///
/// # Errors
/// When there are none, one is outside the vocabulary, or a compressed text is last.
fn check_prompt(prompt: &[TokenId], compressed: &[Placed], vocab_size: usize) -> Result<Vec<TokenId>, Error> {
    let wrong = |expected: String, found: String| Err(Error::Setting { field: "prompt".into(), expected, found });
    let (mut own, mut done) = (Vec::new(), 0);
    for Placed { at, compressed } in compressed {
        let end = at + compressed.num_tokens();
        if *at < done || end >= prompt.len() || !compressed.stand_ins().eq(prompt[*at..end].iter().copied()) {
            return wrong(
                "compressed texts where `place` put them, and a token behind".into(),
                format!("{at} to {end}"),
            );
        }
        own.extend(&prompt[done..*at]);
        done = end;
    }
    own.extend(&prompt[done..]);
    if own.is_empty() {
        return wrong("at least one token".into(), "none".into());
    }
    match own.iter().find(|id: &&TokenId| **id as usize >= vocab_size) {
        Some(id) => wrong(format!("ids of this model's tokenizer, below {vocab_size}"), id.to_string()),
        None => Ok(own),
    }
}

/// A token with its probability and those of the most probable.
fn token(id: TokenId, logits: &[f32], count: usize) -> Token {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
    // One formula for both: who compares them finds the same number.
    let logprob = |id: TokenId| (f64::from(logits[id as usize] - most) - sum.ln()) as f32;
    let mut top: Vec<TokenId> = (0..logits.len() as u32).collect();
    let by = |a: &TokenId, b: &TokenId| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(top.len());
    if (1..top.len()).contains(&count) {
        top.select_nth_unstable_by(count - 1, by);
    }
    top.truncate(count);
    top.sort_unstable_by(by);
    Token { id, logprob: Some(logprob(id)), top: top.into_iter().map(|id| (id, logprob(id))).collect() }
}
