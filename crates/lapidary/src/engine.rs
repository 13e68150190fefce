//! Many requests at once on one set of weights: a pass runs the next tokens of conversations and whole texts to embed side
//! by side, which the gate of the adapter, told by each position, makes one forward pass.
//!
//! Continuous batching: a request joins the next pass and leaves when it ends; long prompts run in parts between the others'
//! tokens. Keys and values lie in pages of one pool ([`KvPool`]), where prompts that begin the same share them. The engine
//! is a plain machine without threads or clocks: [`Engine::step`] runs one pass.

mod pass;
mod request;
mod share;

pub use crate::model::Compressed;
pub use request::{Done, EmbedRequest, Embedded, Event, GenerateRequest, IsGone, Placed, Token, Watch, place};

use crate::Error;
use crate::gem::Lapidary;
use crate::generate::Finish;
use crate::model::{KvPool, KvRow, PAGE_TOKENS};
use layout::{Continuation, TokenId};
use request::{Chat, Text};
use share::Share;
use std::collections::VecDeque;
use std::sync::Arc;

/// What an engine may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineOptions {
    /// Tokens whose keys and values are held at most, all rows together.
    pub kv_tokens: usize,
    /// Tokens of one pass, about: a text that is longer runs in a pass of its own.
    pub batch_tokens: usize,
    /// Share of a pass that texts to embed get while prompts wait too, from 0 to 1; the rest is for prompts. Tokens of
    /// replies always run.
    pub embed_share: f32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { kv_tokens: 16384, batch_tokens: 512, embed_share: 0.5 }
    }
}

/// What an engine has to do and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Conversations that have run in part.
    pub running: usize,
    /// Conversations that wait for pages.
    pub waiting: usize,
    /// Texts that wait.
    pub texts: usize,
    /// Tokens that have to run before all prompts and texts have.
    pub tokens: usize,
    /// Pages held, and of how many.
    pub pages: (usize, usize),
}

/// Runs requests on one model.
pub struct Engine<'m> {
    model: &'m Lapidary,
    options: EngineOptions,
    pool: KvPool,
    running: Vec<Chat>,
    waiting: VecDeque<Chat>,
    texts: VecDeque<Text>,
    /// Passes for which the text that is next has had no pages.
    num_passed_over: usize,
    share: Share,
    /// Rows of the last pass.
    num_rows: usize,
}

/// Passes after which a text that finds no pages keeps further conversations from beginning.
const MAX_PASSED_OVER: usize = 16;

/// What one row of a pass is for.
enum Part {
    /// The conversation of this number among those that run, and how many of its tokens.
    Chat(usize, usize),
    Text(Box<Text>),
}

impl Part {
    fn num_tokens(&self) -> usize {
        match self {
            Self::Chat(_, count) => *count,
            Self::Text(text) => text.layout.num_tokens(),
        }
    }
}

impl<'m> Engine<'m> {
    /// An engine without requests.
    ///
    /// # Errors
    /// When an option is out of range, or the model's method drops what leaves the view of a row, which a pool does not.
    pub fn new(model: &'m Lapidary, options: EngineOptions) -> Result<Self, Error> {
        let wrong = |field: &str, expected: &str, found: String| {
            Err(Error::Setting { field: field.into(), expected: expected.into(), found })
        };
        if model.method().anchors().is_some() {
            return wrong("method", "one whose rows see all of their past", model.method().name().into());
        }
        if options.batch_tokens == 0 || options.kv_tokens < 2 * PAGE_TOKENS {
            return wrong("kv_tokens, batch_tokens", "at least 64 and 1", format!("{options:?}"));
        }
        if !(0.0..=1.0).contains(&options.embed_share) {
            return wrong("embed_share", "a number from 0 to 1", options.embed_share.to_string());
        }
        let pool = model.base().decoder.new_pool(options.kv_tokens / PAGE_TOKENS);
        let share = Share::new(options.batch_tokens, options.embed_share);
        let (running, waiting, texts) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Ok(Self { model, options, pool, running, waiting, texts, num_passed_over: 0, share, num_rows: 0 })
    }

    /// Most tokens that a row can have.
    pub fn longest_row(&self) -> usize {
        self.model.base().decoder.config().max_position_embeddings.min(self.pool.num_pages() * PAGE_TOKENS)
    }

    /// Takes a request to continue tokens.
    ///
    /// # Errors
    /// When the prompt is empty, has a token outside the vocabulary or leaves no room for a token, or a setting is out of
    /// range.
    pub fn generate(&mut self, request: GenerateRequest) -> Result<(), Error> {
        let limit = self.longest_row();
        let vocab_size = self.model.base().decoder.config().vocab_size;
        self.waiting.push_back(Chat::new(request, limit, vocab_size)?);
        Ok(())
    }

    /// Takes a text to embed.
    ///
    /// # Errors
    /// When it has no tokens, one outside the vocabulary, or more than a row can have.
    pub fn embed(&mut self, request: EmbedRequest) -> Result<(), Error> {
        let EmbedRequest { ids, before, options, compress, each_token, is_gone, watch } = request;
        let layout = self.model.embedder().row_of(&ids)?;
        let tokens = if each_token { Some(self.model.embedder().places_of(&layout, &ids)?) } else { None };
        let text = Text { layout, before, num_text_tokens: ids.len(), options, compress, tokens, is_gone, watch };
        if compress && !self.ends_in_special_tokens(&text, &ids)? {
            let (field, expected) = ("method".into(), "one that ends a text in special tokens, to go on from".into());
            return Err(Error::Setting { field, expected, found: self.model.method().name().into() });
        }
        if text.num_positions() > self.longest_row() {
            return Err(Error::TooLong { found: text.num_positions(), limit: self.longest_row() });
        }
        self.texts.push_back(text);
        Ok(())
    }

    /// Whether what follows a text reads the special tokens at the end of the row that embeds it, and those alone.
    fn ends_in_special_tokens(&self, text: &Text, ids: &[TokenId]) -> Result<bool, Error> {
        let plan = self.model.method().read_plan(ids, Continuation::Again)?;
        Ok(text.num_special_tokens() > 0 && plan.rows.as_slice() == std::slice::from_ref(&text.layout))
    }

    /// What there is to do.
    pub fn load(&self) -> Load {
        let chats = self.running.iter().chain(&self.waiting).map(Chat::num_left).sum::<usize>();
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            texts: self.texts.len(),
            tokens: chats + self.texts.iter().map(|text| text.layout.num_tokens()).sum::<usize>(),
            pages: (self.pool.num_held(), self.pool.num_pages()),
        }
    }

    /// Rows of the last pass: texts, and conversations of which a part ran.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.texts.is_empty()
    }

    /// Runs one pass, and tells each request what came of it. A request whose watcher breaks is gone, with all that it held,
    /// when this returns. Where a pass fails, its requests are told and gone; the others go on. Returns the tokens that ran.
    pub fn step(&mut self) -> usize {
        self.forget_gone();
        self.admit();
        self.put_compressed();
        let (parts, mut rows) = self.parts();
        if parts.is_empty() {
            return 0;
        }
        let num_tokens = parts.iter().map(Part::num_tokens).sum();
        self.num_rows = parts.len();
        match self.run(&parts, &mut rows) {
            Ok(hidden) => self.tell(parts, rows, &hidden),
            Err(error) => self.fail(parts, rows, &error),
        }
        num_tokens
    }

    /// Nobody waits for what comes of these any more.
    fn forget_gone(&mut self) {
        let gone = (0..self.running.len()).filter(|at| self.running[*at].is_gone()).collect();
        self.end(gone);
        self.waiting.retain(|chat| !chat.is_gone());
        self.texts.retain(|text| !(text.is_gone)());
        if self.texts.is_empty() {
            self.num_passed_over = 0;
        }
    }

    /// Pages of the text that is next.
    fn pages_of_next_text(&self) -> usize {
        self.texts.front().map_or(0, |text| text.num_positions().div_ceil(PAGE_TOKENS))
    }

    /// Lets conversations begin, as long as there are pages for their prompts, beside those that have begun and a pass of
    /// texts.
    fn admit(&mut self) {
        if self.num_passed_over > MAX_PASSED_OVER {
            return;
        }
        let pass = self.options.batch_tokens.div_ceil(PAGE_TOKENS).min(self.pool.num_pages() / 2);
        let kept = pass.max(self.pages_of_next_text());
        let lacking = |chat: &Chat| self.pool.num_lacking(&chat.row, chat.num_left());
        let mut promised: usize = self.running.iter().map(lacking).sum();
        while let Some(mut chat) = self.waiting.pop_front() {
            let row = if chat.may_share() { self.pool.begin(&chat.ids) } else { KvRow::default() };
            let lacking = self.pool.num_lacking(&row, chat.ids.len() + 1 - row.num_tokens());
            if !self.running.is_empty() && self.pool.num_available() < promised + lacking + kept {
                self.pool.release(row);
                self.waiting.push_front(chat);
                return;
            }
            promised += lacking;
            chat.begin(row);
            self.running.push(chat);
        }
    }

    /// Compressed texts take their places in conversations that have come so far: nothing has to run for them.
    fn put_compressed(&mut self) {
        let decoder = &self.model.base().decoder;
        let mut gone = Vec::new();
        for (at, chat) in self.running.iter_mut().enumerate() {
            while let Some((compressed, done)) = chat.next_compressed() {
                if !self.pool.reserve(&mut chat.row, compressed.num_tokens() - done) {
                    break;
                }
                if let Err(error) = self.pool.put(&mut chat.row, (&compressed, done), decoder) {
                    chat.fail(&error);
                    gone.push(at);
                    break;
                }
            }
        }
        self.end(gone);
    }

    /// The rows of the next pass, in the order of its parts.
    fn parts(&mut self) -> (Vec<Part>, Vec<KvRow>) {
        let (mut parts, mut rows) = (Vec::new(), Vec::new());
        // A token of each reply, oldest first: the youngest gives its pages back where there are none left.
        let mut at = 0;
        let mut prompts: Vec<usize> = Vec::new();
        while at < self.running.len() {
            if self.running[at].num_left() > 1 {
                prompts.push(at);
            } else if self.reserve(at, 1) {
                rows.push(std::mem::take(&mut self.running[at].row));
                parts.push(Part::Chat(at, 1));
            }
            at += 1;
        }
        prompts.retain(|at| *at < self.running.len());
        let mut budget = self.share.begin(parts.len(), !prompts.is_empty(), !self.texts.is_empty());
        // Texts leave the oldest prompt the pages for its next part.
        let next_part = |chat: &Chat| self.pool.num_lacking(&chat.row, chat.num_left().min(budget));
        let left_to_prompts = prompts.first().map_or(0, |at| next_part(&self.running[*at]));
        while let Some(text) = self.texts.front() {
            let len = text.layout.num_tokens();
            let mut row = KvRow::default();
            let has_pages = self.pool.num_available() >= self.pages_of_next_text() + left_to_prompts;
            let num_positions = text.num_positions();
            self.num_passed_over = if has_pages { 0 } else { self.num_passed_over + 1 };
            if !has_pages || !self.share.takes(len, parts.is_empty()) || !self.pool.reserve(&mut row, num_positions) {
                break;
            }
            let Some(text) = self.texts.pop_front() else { break };
            let put = |before: &Arc<Compressed>| self.pool.put(&mut row, (before, 0), &self.model.base().decoder);
            if let Err(error) = text.before.iter().try_for_each(put) {
                self.pool.release(row);
                text.end(Err(error));
                continue;
            }
            budget = budget.saturating_sub(len);
            rows.push(row);
            parts.push(Part::Text(Box::new(text)));
        }
        for at in prompts {
            let chat = &self.running[at];
            let count = chat.num_plain().min(budget).min(self.pool.room(&chat.row));
            if count > 0 && self.pool.reserve(&mut self.running[at].row, count) {
                budget -= count;
                rows.push(std::mem::take(&mut self.running[at].row));
                parts.push(Part::Chat(at, count));
            }
        }
        if parts.is_empty() && !self.running.is_empty() {
            // Conversations that hold pages but can go on no further: the youngest makes room.
            self.give_way(self.running.len() - 1);
        }
        (parts, rows)
    }

    /// Pages for more of a conversation; the youngest behind it give way for it.
    fn reserve(&mut self, at: usize, count: usize) -> bool {
        let mut row = std::mem::take(&mut self.running[at].row);
        while !self.pool.reserve(&mut row, count) {
            if self.running.len() == at + 1 {
                self.running[at].row = row;
                return false;
            }
            self.give_way(self.running.len() - 1);
        }
        self.running[at].row = row;
        true
    }

    /// A conversation waits again, first in line; what it held is found again if it is not needed until then.
    fn give_way(&mut self, at: usize) {
        let mut chat = self.running.remove(at);
        self.release(&mut chat);
        self.waiting.push_front(chat);
    }

    fn release(&mut self, chat: &mut Chat) {
        let mut row = std::mem::take(&mut chat.row);
        self.pool.share(&mut row, &chat.ids);
        self.pool.release(row);
    }

    /// The ids that end a text, as the model's makers say.
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.model.base().generation.eos_token_ids
    }
}

/// The engine ends: its requests are told so.
impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let chats = self.running.drain(..).chain(self.waiting.drain(..));
        chats.for_each(|mut chat| chat.end(Finish::Interrupted));
        let ended = || Error::Internal("the engine has ended".into());
        self.texts.drain(..).for_each(|text| text.end(Err(ended())));
    }
}
