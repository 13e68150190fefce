//! One row in progress: its cache, and the tokens that come next, as ids.

use super::sampling::Sampler;
use crate::Error;
use crate::model::{AdapterView, Decoder, ForwardOptions, Kv, KvCache, Segment};
use kernels::{Fetch, Tensor};
use layout::{Anchors, TokenId};
use std::ops::ControlFlow;
use std::time::Instant;

/// Tokens of one forward pass while a prompt is run; bounds memory and does not change the result.
const PREFILL_TOKENS: usize = 512;

/// Why no further token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-sequence token or a stop string.
    Stop,
    /// The asked number of tokens is there.
    Length,
    /// The model has no further position (`max_position_embeddings`).
    Context,
    /// The caller asked to stop.
    Interrupted,
}

/// What ends a continuation.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end it; they are not part of it.
    pub eos_token_ids: &'a [TokenId],
}

/// What a watcher is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A part of the prompt has run.
    Prefill,
    /// The next token.
    Token(TokenId),
}

/// How a continuation went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceRun {
    /// Why it ended.
    pub finish: Finish,
    /// Prompt tokens that did not have to be run again.
    pub num_cached_tokens: usize,
    /// Seconds until the prompt had run.
    pub prefill_secs: f64,
    /// Seconds from there to the end.
    pub decode_secs: f64,
}

/// A causal row that sees all of its past; what has run is kept for the next prompt that begins the same.
#[derive(Debug, Clone)]
pub struct Sequence<'a> {
    decoder: &'a Decoder,
    /// Acts on every position.
    adapter: Option<&'a AdapterView>,
    /// What of the past stays in view, where not all of it does; the rest leaves the cache.
    anchors: Option<&'a Anchors>,
    cache: KvCache,
    /// Positions in the cache that lie before `ids`.
    num_before: u32,
    /// RoPE position of the first of `ids`.
    first_position: u32,
    ids: Vec<TokenId>,
    /// Of the last position, `[V]`; empty before any has run.
    logits: Vec<f32>,
}

impl<'a> Sequence<'a> {
    /// An empty row; the adapter, if given, acts on every position of it.
    pub fn new(decoder: &'a Decoder, adapter: Option<&'a AdapterView>) -> Self {
        let cache = decoder.new_cache();
        Self {
            decoder,
            adapter,
            anchors: None,
            cache,
            num_before: 0,
            first_position: 0,
            ids: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// The same row, not yet begun, of whose past no more stays in view than these anchors.
    #[must_use]
    pub fn in_view(self, anchors: Option<&'a Anchors>) -> Self {
        Self { anchors, ..self }
    }

    /// A row that goes on behind all positions of a cache of one row; `hidden` `[1, D]` is the last one's state,
    /// `next_position` the RoPE position of what follows.
    ///
    /// # Errors
    /// When the state is not of the model's width.
    pub fn behind(
        decoder: &'a Decoder,
        adapter: Option<&'a AdapterView>,
        cache: KvCache,
        next_position: u32,
        hidden: &Tensor,
    ) -> Result<Self, Error> {
        let num_before = cache.num_tokens() as u32;
        let logits = Fetch::start(&decoder.logits(hidden)?)?.finish()?;
        Ok(Self { cache, num_before, first_position: next_position, logits, ..Self::new(decoder, adapter) })
    }

    /// The tokens that have run.
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Tokens whose keys and values are held.
    pub fn num_kv_tokens(&self) -> usize {
        self.cache.num_tokens()
    }

    /// Logits of the last position, `[V]`; empty before any has run.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Tokens that the model has room for before any has run.
    fn room(&self) -> usize {
        self.decoder.config().max_position_embeddings.saturating_sub(self.first_position as usize)
    }

    /// Runs the next tokens in one forward pass.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or a position beyond the model's last; the row is empty then.
    pub fn push(&mut self, ids: &[TokenId]) -> Result<(), Error> {
        let Some(last) = ids.len().checked_sub(1) else { return Ok(()) };
        let done = self.ids.len() as u32;
        let mut segment = Segment::next_tokens(0, ids, self.num_before + done, self.first_position + done);
        if self.adapter.is_some() {
            segment = segment.adapt_all();
        }
        let row = [self.ids.as_slice(), ids].concat();
        segment = segment.in_view(self.anchors, &[&row]);
        // A pass that fails leaves a cache that is half grown: it is kept only when the pass succeeds.
        let mut before = std::mem::replace(self, Self::new(self.decoder, self.adapter).in_view(self.anchors));
        let options = ForwardOptions { adapter: self.adapter, bf16_attention: true, ..ForwardOptions::default() };
        let hidden = self.decoder.forward(&segment, Kv::Append(&mut before.cache), options)?;
        before.logits = Fetch::start(&self.decoder.logits(&hidden.narrow(0, last, 1)?)?)?.finish()?;
        before.ids = row;
        before.forget()?;
        *self = before;
        Ok(())
    }

    /// Drops what no later token sees from the cache; a little late, because each time costs a copy of the rest.
    fn forget(&mut self) -> Result<(), Error> {
        const LATE: usize = 32;
        let Some(anchors) = self.anchors else { return Ok(()) };
        let next = self.ids.len() as u32;
        let near = (next + 1).saturating_sub(anchors.window)..next;
        let mut keep = anchors.of(&self.ids);
        keep.iter_mut().for_each(|anchor| anchor.end = anchor.end.min(near.start));
        keep.retain(|anchor| !anchor.is_empty());
        keep.push(near);
        if self.cache.num_tokens() > keep.iter().map(ExactSizeIterator::len).sum::<usize>() + LATE {
            self.cache = self.cache.retain(&keep)?;
        }
        Ok(())
    }

    /// Keeps what `prompt` begins with of what has run, but leaves at least its last token to run; returns the number
    /// of tokens kept.
    fn keep_common(&mut self, prompt: &[TokenId]) -> Result<usize, Error> {
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        if kept < self.ids.len() && self.anchors.is_some() {
            // What has left the cache may be in view again.
            *self = Self::new(self.decoder, self.adapter).in_view(self.anchors);
            return Ok(0);
        }
        if kept < self.ids.len() {
            let num_positions = self.num_before + kept as u32;
            self.cache =
                if num_positions == 0 { self.decoder.new_cache() } else { self.cache.extract(0, 0..num_positions)? };
            self.ids.truncate(kept);
        }
        Ok(kept)
    }

    /// Runs `prompt`, the whole row so far, and generates what follows; `watch` is told of each token (never an
    /// end-of-sequence one) and may end it.
    ///
    /// An empty prompt goes on from where [`Sequence::behind`] starts.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a prompt that the model has no room for, and when it is empty on an empty row, has a
    /// token outside the vocabulary, or `watch` fails.
    pub fn generate(
        &mut self,
        prompt: &[TokenId],
        limits: &Limits<'_>,
        sampler: &mut Sampler,
        watch: &mut dyn FnMut(Progress) -> Result<ControlFlow<Finish>, Error>,
    ) -> Result<SequenceRun, Error> {
        if prompt.is_empty() && (self.logits.is_empty() || !self.ids.is_empty()) {
            return Err(Error::Setting {
                field: "prompt".into(),
                expected: "at least one token".into(),
                found: "none".into(),
            });
        }
        if prompt.len() > self.room() {
            let first = self.first_position as usize;
            return Err(Error::TooLong { found: first + prompt.len(), limit: first + self.room() });
        }
        let clock = Instant::now();
        sampler.see(prompt);
        let num_cached_tokens = self.keep_common(prompt)?;
        let mut stopped = None;
        for chunk in prompt[num_cached_tokens..].chunks(PREFILL_TOKENS) {
            self.push(chunk)?;
            if let ControlFlow::Break(finish) = watch(Progress::Prefill)? {
                stopped = Some(finish);
                break;
            }
        }
        let prefill_secs = clock.elapsed().as_secs_f64();
        let finish = match stopped {
            Some(finish) => finish,
            None => self.decode(limits, sampler, watch)?,
        };
        Ok(SequenceRun {
            finish,
            num_cached_tokens,
            prefill_secs,
            decode_secs: clock.elapsed().as_secs_f64() - prefill_secs,
        })
    }

    fn decode(
        &mut self,
        limits: &Limits<'_>,
        sampler: &mut Sampler,
        watch: &mut dyn FnMut(Progress) -> Result<ControlFlow<Finish>, Error>,
    ) -> Result<Finish, Error> {
        let mut pending: Option<TokenId> = None;
        for _ in 0..limits.max_new_tokens {
            if let Some(id) = pending {
                if self.ids.len() == self.room() {
                    return Ok(Finish::Context);
                }
                self.push(&[id])?;
            }
            let id = sampler.next_token(&self.logits)?;
            if limits.eos_token_ids.contains(&id) {
                return Ok(Finish::Stop);
            }
            if let ControlFlow::Break(finish) = watch(Progress::Token(id))? {
                return Ok(finish);
            }
            pending = Some(id);
        }
        Ok(Finish::Length)
    }
}
