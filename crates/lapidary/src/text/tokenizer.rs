//! Text to token ids and back: `tokenizer.json` files and the vocabularies inside GGUF files.

mod byte_level;
mod gguf_vocabulary;
mod sentencepiece;
mod shared_model;
mod stream;
#[cfg(test)]
mod tests;
mod token_bytes;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::guard::guarded;
use crate::model::gguf::{GgufError, GgufFile};
use gguf_vocabulary::GgufVocabulary;
use shared_model::SharedModel;
pub use stream::DecodeStream;

/// Largest `tokenizer.json` that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// Longest text that is encoded in one call, in bytes; longer documents are cut into chunks before.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// A long text is encoded in pieces that end with a line and have at least this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// The parts of a tokenizer, the model shared.
type Parts = TokenizerImpl<SharedModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's message says what its fields are")]
pub enum TokenizerError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: expected a tokenizer of at most {limit} bytes, found more")]
    FileTooLarge { path: PathBuf, limit: u64 },
    #[error("{path}: not a tokenizer: {message}")]
    File { path: PathBuf, message: String },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("metadata key `{key}`: expected one of {known}, found `{found}`")]
    Unsupported { key: &'static str, found: String, known: String },
    #[error("metadata key `{key}`: expected {expected} items, one per token, found {found}")]
    NumItems { key: &'static str, expected: usize, found: usize },
    #[error("tokenizer.ggml.tokens: expected each token once, found `{token}` at {first} and {second}")]
    DuplicateToken { token: String, first: usize, second: usize },
    #[error("tokenizer.ggml.tokens: expected tokens of at most {limit} bytes, found {found} at {index}")]
    TokenTooLong { index: usize, limit: usize, found: usize },
    #[error("tokenizer.ggml.token_type: expected a type from 0 to 6, found {found} at {index}")]
    TokenType { index: usize, found: i32 },
    #[error("tokenizer.ggml.merges: expected two tokens and a space between them, found `{found}` at {index}")]
    Merge { index: usize, found: String },
    #[error("tokenizer metadata: {message}")]
    Build { message: String },
    #[error("text: expected at most {limit} bytes, found {found}")]
    TextTooLong { limit: usize, found: usize },
    #[error("text: encodes to the special token `{token}`, which plain text must not")]
    SpecialInText { token: String },
    #[error("cannot {action}: {message}")]
    Failed { action: &'static str, message: String },
}

/// A tokenizer; cheap to share, all methods take `&self`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    with_special: Parts,
    plain: Parts,
    special_ids: HashSet<u32>,
    unknown_id: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding settings in it are ignored.
    ///
    /// # Errors
    /// When the file cannot be read, is larger than [`MAX_FILE_BYTES`], or is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let io = |source| TokenizerError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(TokenizerError::FileTooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
        }
        let file = |message| TokenizerError::File { path: path.to_owned(), message };
        let parts = guarded(|| serde_json::from_str::<Parts>(&text)).map_err(file)?;
        Self::new(parts).map_err(file)
    }

    /// Builds the tokenizer that the metadata of a GGUF file describes: byte-level BPE (`gpt2`) or SentencePiece BPE
    /// (`llama`).
    ///
    /// # Errors
    /// When the metadata is missing, contradicts itself, or names a model or pre-tokenizer this program does not know.
    pub fn from_gguf<S: AsRef<[u8]>>(file: &GgufFile<S>) -> Result<Self, TokenizerError> {
        Self::from_vocabulary(&GgufVocabulary::read(file)?)
    }

    fn from_vocabulary(vocabulary: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let build = |message| TokenizerError::Build { message };
        let mut parts = match vocabulary.model {
            "gpt2" => byte_level::build(vocabulary)?,
            "llama" => sentencepiece::build(vocabulary)?,
            found => {
                let known = "`gpt2`, `llama`".to_owned();
                return Err(TokenizerError::Unsupported {
                    key: "tokenizer.ggml.model",
                    found: found.to_owned(),
                    known,
                });
            }
        };
        guarded(|| parts.add_tokens(vocabulary.added_tokens())).map_err(build)?;
        Self::new(parts).map_err(build)
    }

    fn new(mut parts: Parts) -> Result<Self, String> {
        parts.with_truncation(None).map_err(|e| e.to_string())?;
        parts.with_padding(None);
        let special_ids = parts.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let special_ids = special_ids.map(|(id, _)| id).collect();
        let unknown = match parts.get_model().wrapper() {
            ModelWrapper::BPE(model) => model.get_unk_token().clone(),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
            ModelWrapper::Unigram(_) => Some("<unk>".to_owned()),
        };
        let unknown_id = unknown.and_then(|token| parts.token_to_id(&token));
        let mut plain = parts.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self { with_special: parts, plain, special_ids, unknown_id })
    }

    /// The token that the tokenizer's own template puts before every text (BOS), if it does so.
    ///
    /// # Errors
    /// When the tokenizer fails on the empty text.
    pub fn leading_token(&self) -> Result<Option<u32>, TokenizerError> {
        let encoding =
            guarded(|| self.with_special.encode("", true)).map_err(|message| TokenizerError::Build { message })?;
        Ok(encoding.get_ids().first().copied().filter(|id| self.is_special(*id)))
    }

    /// The text of a `tokenizer.json` that makes the same tokenizer.
    ///
    /// # Errors
    /// When a part of it has no JSON form.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        serde_json::to_string(&self.with_special).map_err(|e| TokenizerError::Build { message: e.to_string() })
    }

    /// Encodes plain text: no token is added, and the strings of special tokens in the text are ordinary characters,
    /// so that a user cannot write a turn marker.
    ///
    /// # Errors
    /// When the text is longer than [`MAX_TEXT_BYTES`], would become a special token all the same, or the tokenizer
    /// fails on it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = encode(&self.plain, text)?;
        self.check_plain(&ids)?;
        Ok(ids)
    }

    /// # Errors
    /// When plain text has become a special token.
    fn check_plain(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        match ids.iter().find(|&&id| self.is_control(id)) {
            Some(&id) => Err(TokenizerError::SpecialInText { token: self.id_to_token(id).unwrap_or_default() }),
            None => Ok(()),
        }
    }

    /// As [`Tokenizer::encode`], and the bytes of the text that each token stands for: whole characters, in some
    /// tokenizers without the blanks around them; tokens that share a character have it both.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), TokenizerError> {
        let (ids, offsets) = encode_with_offsets(&self.plain, text)?;
        self.check_plain(&ids)?;
        Ok((ids, offsets))
    }

    /// As [`Tokenizer::encode`], for a text of any length: a stretch of whole lines at a time.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_long(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let newline = rest.bytes().skip(PIECE_BYTES).position(|byte| byte == b'\n');
            let end = newline.map_or(rest.len(), |at| PIECE_BYTES + at + 1);
            ids.extend(self.encode(&rest[..end])?);
            rest = &rest[end..];
        }
        Ok(ids)
    }

    /// Encodes text that a chat template wrote: no token is added, and the strings of special tokens become those
    /// tokens.
    ///
    /// # Errors
    /// When the text is longer than [`MAX_TEXT_BYTES`], or the tokenizer fails on it.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.with_special, text)
    }

    /// As [`Tokenizer::encode_with_special`], and the bytes of the text that each token stands for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_special`].
    pub fn encode_special_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), TokenizerError> {
        encode_with_offsets(&self.with_special, text)
    }

    /// The text of `ids`; unknown ids have none, bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails on them.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let decoded = guarded(|| self.with_special.decode(ids, skip_special));
        decoded.map_err(|message| TokenizerError::Failed { action: "decode", message })
    }

    /// Decodes ids as they are generated.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The id of a token, if the vocabulary has it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.with_special.token_to_id(token)
    }

    /// The token with this id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.with_special.id_to_token(id)
    }

    /// Whether this is the id of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Whether no plain text may become this token: special ones, but for the one of unknown characters.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        self.is_special(id) && Some(id) != self.unknown_id
    }

    /// Number of tokens, special and added ones included.
    pub fn vocab_size(&self) -> usize {
        self.with_special.get_vocab_size(true)
    }
}

fn encode(parts: &Parts, text: &str) -> Result<Vec<u32>, TokenizerError> {
    Ok(encoding(text, || parts.encode_fast(text, false))?.get_ids().to_vec())
}

fn encode_with_offsets(parts: &Parts, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), TokenizerError> {
    let encoded = encoding(text, || parts.encode(text, false))?;
    let offsets = encoded.get_offsets().iter().map(|(start, end)| *start..*end).collect();
    Ok((encoded.get_ids().to_vec(), offsets))
}

fn encoding(
    text: &str,
    encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
) -> Result<tokenizers::Encoding, TokenizerError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TokenizerError::TextTooLong { limit: MAX_TEXT_BYTES, found: text.len() });
    }
    guarded(encode).map_err(|message| TokenizerError::Failed { action: "encode the text", message })
}
