//! SentencePiece BPE (`llama`) from the metadata of a GGUF file: spaces are `▁`, unknown characters become bytes.

use std::cmp::Ordering;
use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{DecoderWrapper, NormalizerWrapper};

use super::gguf_vocabulary::{GgufVocabulary, TokenKind};
use super::shared_model::SharedModel;
use super::{Parts, TokenizerError};
use crate::text::guard::guarded;

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

pub(super) fn build(vocabulary: &GgufVocabulary<'_>) -> Result<Parts, TokenizerError> {
    let build = |message| TokenizerError::Build { message };
    let merges = match vocabulary.merges()? {
        Some(merges) => merges,
        None => derived_merges(vocabulary)?,
    };
    let mut builder = BPE::builder().vocab_and_merges(vocabulary.vocab(), merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown_token(vocabulary) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let model = guarded(|| builder.build()).map_err(build)?;
    let mut parts = Parts::new(SharedModel::new(model));
    // Files that do not say are those of the first models with this vocabulary, which do add the space.
    let add_space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let normalizer = normalizer(add_space_prefix).map_err(build)?;
    parts.with_normalizer(Some(normalizer)).map_err(|e| build(e.to_string()))?;
    parts.with_decoder(Some(decoder(add_space_prefix).map_err(build)?));
    Ok(parts)
}

fn unknown_token<'a>(vocabulary: &GgufVocabulary<'a>) -> Option<&'a str> {
    let by_kind = || vocabulary.kinds.iter().position(|&kind| kind == TokenKind::Unknown);
    let index = vocabulary.unknown_id.map(|id| id as usize).or_else(by_kind)?;
    vocabulary.tokens.get(index).copied()
}

fn normalizer(add_space_prefix: bool) -> Result<NormalizerWrapper, String> {
    let spaces = NormalizerWrapper::from(Replace::new(" ", SPACE).map_err(|e| e.to_string())?);
    if !add_space_prefix {
        return Ok(spaces);
    }
    Ok(Normalizers::new(vec![Prepend::new(SPACE.to_owned()).into(), spaces]).into())
}

fn decoder(add_space_prefix: bool) -> Result<DecoderWrapper, String> {
    let spaces = Replace::new(SPACE, " ").map_err(|e| e.to_string())?;
    let mut steps: Vec<DecoderWrapper> = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(steps).into())
}

/// Two tokens that join into a third.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
    /// Ids of the two tokens.
    ids: (u32, u32),
    /// Id of the third.
    joined: usize,
}

impl Merge<'_> {
    /// Higher scores first, then longer left and right tokens, then the vocabulary's order: the order of the
    /// converter in `transformers`.
    fn compare(&self, other: &Self) -> Ordering {
        let lengths = |merge: &Self| (merge.left.chars().count(), merge.right.chars().count());
        let by_score = other.score.total_cmp(&self.score);
        by_score
            .then_with(|| lengths(other).cmp(&lengths(self)))
            .then_with(|| self.joined.cmp(&other.joined))
            .then_with(|| self.ids.cmp(&other.ids))
    }
}

/// The merges that SentencePiece's scores imply: any two ordinary tokens that join into an ordinary token do, those
/// with the highest score first. Control, byte and user-defined tokens are never made by merging.
fn derived_merges(vocabulary: &GgufVocabulary<'_>) -> Result<Vec<(String, String)>, TokenizerError> {
    let Some(scores) = &vocabulary.scores else {
        let message =
            "expected the key `tokenizer.ggml.scores` or `tokenizer.ggml.merges` of a `llama` model, not found";
        return Err(TokenizerError::Build { message: message.to_owned() });
    };
    let normal = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0u32..);
    let normal = normal.filter(|((_, kind), _)| **kind == TokenKind::Normal).map(|((token, _), id)| (*token, id));
    let ids: HashMap<&str, u32> = normal.collect();
    let mut merges = Vec::new();
    for (joined, token) in vocabulary.tokens.iter().enumerate() {
        if !ids.contains_key(token) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push(Merge { left, right, score: scores[joined], ids: (left_id, right_id), joined });
            }
        }
    }
    merges.sort_unstable_by(Merge::compare);
    Ok(merges.into_iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect())
}
