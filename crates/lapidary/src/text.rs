//! Text to token ids and back, and conversations to text.

pub mod chat_template;
pub mod chunk;
mod guard;
pub mod tokenizer;

pub use chat_template::{ChatTemplate, Message, TemplateError};
pub use tokenizer::{Tokenizer, TokenizerError};
