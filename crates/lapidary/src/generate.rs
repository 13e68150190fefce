//! Text from a model: chat, raw continuation, and what the special tokens remember of a text.

mod generator;
mod grammar;
mod reconstruct;
mod retention;
mod sampling;
mod sequence;
mod stop;

pub use generator::{GenerateOptions, Generation, Generator};
pub use grammar::{Grammar, Grammars};
pub use reconstruct::{Reconstruction, read, reconstruct, reconstruct_ids};
pub use retention::{SuffixLosses, suffix_losses};
pub use sampling::{Sampler, Sampling, candidates, greedy, penalise_repetition};
pub use sequence::{Finish, Limits, Progress, Sequence, SequenceRun};
pub use stop::StopFinder;

use crate::model::AdapterView;
use crate::text::Message;
use crate::{Error, Lapidary};
use layout::TokenId;
use std::ops::ControlFlow;

impl Lapidary {
    /// What generates text with this model; stream a reply, or keep a [`Sequence`] over the turns of a conversation,
    /// with it.
    pub fn generator(&self) -> Generator<'_> {
        Generator {
            decoder: &self.base().decoder,
            adapter: self.plain_adapter(),
            anchors: self.method().anchors(),
            tokenizer: &self.base().tokenizer,
            eos_token_ids: &self.base().generation.eos_token_ids,
        }
    }

    /// What acts on rows without special tokens: nothing, unless the method's adapter acts on every position.
    pub fn plain_adapter(&self) -> Option<&AdapterView> {
        self.adapter().filter(|_| self.method().adapts_plain_rows())
    }

    /// The makers' sampling settings and length, as options to change and pass on.
    pub fn generate_options(&self) -> GenerateOptions {
        GenerateOptions::from_generation_config(&self.base().generation)
    }

    /// The token ids of a conversation up to the head of the next reply.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], or when the template refuses the messages.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
        self.base().chat_ids(messages)
    }

    /// The token ids of plain text to be continued: BOS, where the model has one, and the text.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub fn prompt_ids(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        self.base().prompt_ids(text)
    }

    /// The reply to a conversation.
    ///
    /// ```no_run
    /// use lapidary::text::Message;
    /// use lapidary::{Lapidary, ModelFiles};
    ///
    /// # fn main() -> Result<(), lapidary::Error> {
    /// let base = ModelFiles::Gguf("SmolLM2-135M-Instruct.Q4_1.gguf".into());
    /// let gem = Lapidary::load("models/smollm2-135m-gem".as_ref(), &base)?;
    /// let question = Message { role: "user".into(), content: "What is the capital of France?".into() };
    /// let reply = gem.chat(&[question], &gem.generate_options())?;
    /// println!("{}", reply.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Lapidary::chat_ids`] and [`Generator::generate`].
    pub fn chat(&self, messages: &[Message], options: &GenerateOptions) -> Result<Generation, Error> {
        self.continue_ids(&self.chat_ids(messages)?, options)
    }

    /// The continuation of plain text; the strings of special tokens in it are ordinary characters.
    ///
    /// # Errors
    /// As [`Lapidary::prompt_ids`] and [`Generator::generate`].
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generation, Error> {
        self.continue_ids(&self.prompt_ids(prompt)?, options)
    }

    fn continue_ids(&self, ids: &[TokenId], options: &GenerateOptions) -> Result<Generation, Error> {
        let generator = self.generator();
        generator.generate(&mut generator.sequence(), ids, options, &mut |_| ControlFlow::Continue(()))
    }
}
