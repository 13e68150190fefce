//! Byte-level BPE (`gpt2`) from the metadata of a GGUF file.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::gguf_vocabulary::GgufVocabulary;
use super::shared_model::SharedModel;
use super::{Parts, TokenizerError};
use crate::text::guard::guarded;

/// How a family of tokenizers splits text before the merges.
#[derive(Debug)]
struct PreTokenizer {
    /// The names of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: Splitting,
    /// Compose characters first.
    nfc: bool,
    /// A piece that is a token stays whole, whatever the merges say.
    ignore_merges: bool,
}

#[derive(Debug)]
enum Splitting {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    DigitsThenGpt2,
    /// This pattern.
    Pattern(&'static str),
}

const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BY_CASE: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizers that are known.
const KNOWN: &[PreTokenizer] = &[
    PreTokenizer { names: &["default", "gpt-2", "gpt2"], split: Splitting::Gpt2, nfc: false, ignore_merges: false },
    PreTokenizer { names: &["smollm"], split: Splitting::DigitsThenGpt2, nfc: false, ignore_merges: false },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Splitting::Pattern(THREE_DIGITS),
        nfc: false,
        ignore_merges: true,
    },
    PreTokenizer { names: &["smaug-bpe"], split: Splitting::Pattern(THREE_DIGITS), nfc: false, ignore_merges: false },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Splitting::Pattern(ONE_DIGIT),
        nfc: true,
        ignore_merges: false,
    },
    PreTokenizer { names: &["tekken"], split: Splitting::Pattern(BY_CASE), nfc: false, ignore_merges: true },
];

pub(super) fn build(vocabulary: &GgufVocabulary<'_>) -> Result<Parts, TokenizerError> {
    let pre = KNOWN.iter().find(|known| known.names.contains(&vocabulary.pre)).ok_or_else(|| {
        let known: Vec<String> = KNOWN.iter().flat_map(|known| known.names).map(|name| format!("`{name}`")).collect();
        TokenizerError::Unsupported {
            key: "tokenizer.ggml.pre",
            found: vocabulary.pre.to_owned(),
            known: known.join(", "),
        }
    })?;
    let merges = vocabulary.merges()?;
    let merges = merges.ok_or_else(|| TokenizerError::Build { message: missing_merges() })?;
    let build = |message| TokenizerError::Build { message };
    let builder = BPE::builder().vocab_and_merges(vocabulary.vocab(), merges).ignore_merges(pre.ignore_merges);
    let model = guarded(|| builder.build()).map_err(build)?;
    let mut parts = Parts::new(SharedModel::new(model));
    if pre.nfc {
        parts.with_normalizer(Some(NormalizerWrapper::from(NFC))).map_err(|e| build(e.to_string()))?;
    }
    parts.with_pre_tokenizer(Some(pre.split.pre_tokenizer().map_err(build)?));
    parts.with_decoder(Some(ByteLevel::default()));
    Ok(parts)
}

fn missing_merges() -> String {
    "expected the key `tokenizer.ggml.merges` of a `gpt2` model, not found".to_owned()
}

impl Splitting {
    fn pre_tokenizer(&self) -> Result<PreTokenizerWrapper, String> {
        let bytes = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
        let first: PreTokenizerWrapper = match self {
            Self::Gpt2 => return Ok(bytes(true)),
            Self::DigitsThenGpt2 => Digits::new(true).into(),
            Self::Pattern(pattern) => {
                let pattern = SplitPattern::Regex((*pattern).to_owned());
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| e.to_string())?.into()
            }
        };
        let use_regex = matches!(self, Self::DigitsThenGpt2);
        Ok(Sequence::new(vec![first, bytes(use_regex)]).into())
    }
}
