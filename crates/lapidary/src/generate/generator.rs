//! Text that continues a row: ids to pieces of text as they come, stop strings, counts and times.

use super::sampling::{Sampler, Sampling};
use super::sequence::{Finish, Limits, Progress, Sequence};
use super::stop::StopFinder;
use crate::Error;
use crate::model::{AdapterView, Decoder, GenerationConfig};
use crate::text::Tokenizer;
use crate::text::tokenizer::DecodeStream;
use layout::{Anchors, TokenId};
use std::ops::ControlFlow;

/// Longest reply where neither the caller nor the model's makers say, tokens.
const DEFAULT_MAX_NEW_TOKENS: usize = 512;

/// How text is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Go on behind end-of-sequence tokens.
    pub ignore_eos: bool,
    /// How each token is chosen.
    pub sampling: Sampling,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: DEFAULT_MAX_NEW_TOKENS,
            stop: Vec::new(),
            ignore_eos: false,
            sampling: Sampling::default(),
        }
    }
}

impl GenerateOptions {
    /// What a model's makers ask for.
    pub fn from_generation_config(config: &GenerationConfig) -> Self {
        Self {
            max_new_tokens: config.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
            sampling: Sampling::from_generation_config(config),
            ..Self::default()
        }
    }
}

/// Generated text and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text: exactly the pieces given out, without special tokens and stop strings.
    pub text: String,
    /// The tokens generated, without an end-of-sequence token; with a stop string they spell more than the text.
    pub ids: Vec<TokenId>,
    /// Why no further token came.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
    /// Those of them that were run before, for an earlier prompt.
    pub num_cached_tokens: usize,
    /// Seconds until the prompt had run.
    pub prefill_secs: f64,
    /// Seconds from there to the end.
    pub decode_secs: f64,
}

/// What generates text: a model and its tokenizer.
#[derive(Clone, Copy)]
pub struct Generator<'a> {
    /// Runs the rows.
    pub decoder: &'a Decoder,
    /// Acts on every position; none: the base model as it is.
    pub adapter: Option<&'a AdapterView>,
    /// What of the past stays in view, where not all of it does.
    pub anchors: Option<&'a Anchors>,
    /// Ids to text.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end a text.
    pub eos_token_ids: &'a [TokenId],
}

impl<'a> Generator<'a> {
    /// An empty row to generate in. Kept over the turns of a conversation, it runs only what is new of each prompt.
    pub fn sequence(&self) -> Sequence<'a> {
        Sequence::new(self.decoder, self.adapter).in_view(self.anchors)
    }

    /// Generates what follows `prompt`, the whole row so far.
    ///
    /// `on_text` is given each piece of text as soon as it is certain, and may end the generation. It is also called
    /// with an empty piece, after each part of the prompt and each token that completes no text, so that a reply can
    /// be ended at any time.
    ///
    /// # Errors
    /// When an option is out of range, the prompt is empty or longer than the model's `max_position_embeddings`, or the
    /// tokenizer fails.
    pub fn generate(
        &self,
        sequence: &mut Sequence<'_>,
        prompt: &[TokenId],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let mut sampler = Sampler::new(options.sampling)?;
        let mut writer = Writer {
            stream: self.tokenizer.decode_stream(true),
            stop: StopFinder::new(&options.stop)?,
            on_text,
            text: String::new(),
            ids: Vec::new(),
            ended: false,
        };
        let eos_token_ids = if options.ignore_eos { &[] } else { self.eos_token_ids };
        let limits = Limits { max_new_tokens: options.max_new_tokens, eos_token_ids };
        let run = sequence.generate(prompt, &limits, &mut sampler, &mut |progress| match progress {
            Progress::Prefill => Ok(writer.give("")),
            Progress::Token(id) => writer.push(id),
        })?;
        let (text, ids, finish) = writer.finish(run.finish)?;
        Ok(Generation {
            text,
            ids,
            finish,
            num_prompt_tokens: prompt.len(),
            num_cached_tokens: run.num_cached_tokens,
            prefill_secs: run.prefill_secs,
            decode_secs: run.decode_secs,
        })
    }
}

/// Turns ids into pieces of text and gives them out.
struct Writer<'a> {
    stream: DecodeStream<'a>,
    stop: StopFinder,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    text: String,
    ids: Vec<TokenId>,
    /// A stop string or the caller has ended the text: what is held back belongs to nobody.
    ended: bool,
}

impl Writer<'_> {
    fn give(&mut self, piece: &str) -> ControlFlow<Finish> {
        self.text.push_str(piece);
        let given = (self.on_text)(piece);
        self.ended |= given.is_break();
        given.map_break(|()| Finish::Interrupted)
    }

    fn push(&mut self, id: TokenId) -> Result<ControlFlow<Finish>, Error> {
        self.ids.push(id);
        let (piece, stopped) = self.stop.push(&self.stream.push(id)?);
        let given = self.give(&piece);
        self.ended |= stopped;
        Ok(if stopped { ControlFlow::Break(Finish::Stop) } else { given })
    }

    /// Gives out what was held back; a stop string may still appear in it.
    fn finish(self, finish: Finish) -> Result<(String, Vec<TokenId>, Finish), Error> {
        let Self { stream, mut stop, on_text, mut text, ids, ended } = self;
        if ended {
            return Ok((text, ids, finish));
        }
        let (mut rest, stopped) = stop.push(&stream.finish()?);
        rest.push_str(&stop.finish());
        if !rest.is_empty() {
            text.push_str(&rest);
            // Nothing is left that the answer could end.
            let _: ControlFlow<()> = on_text(&rest);
        }
        Ok((text, ids, if stopped { Finish::Stop } else { finish }))
    }
}
