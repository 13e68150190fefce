//! What the special tokens remember: a text is read, all but their keys and values is dropped, and the model goes on
//! from these alone (arXiv 2506.04344, section 3.1, the reconstruction task).

use super::generator::{GenerateOptions, Generator};
use super::sequence::{Finish, Sequence};
use crate::model::{Kv, KvCache, Passes};
use crate::{Error, Lapidary};
use kernels::Tensor;
use layout::{Continuation, Role, TokenId};
use std::ops::ControlFlow;

/// A text that came back from the special tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    /// The greedy continuation.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the original.
    pub num_text_tokens: usize,
    /// Positions that it came back from.
    pub num_special_tokens: usize,
    /// Memory of their keys and values, bytes.
    pub num_kv_bytes: usize,
    /// Share of the original's tokens that came back in order: the longest common subsequence over their number.
    pub recovered: f64,
}

/// A text as the special tokens hold it: their keys and values, the text's own dropped.
pub(super) struct Compressed {
    pub(super) cache: KvCache,
    /// RoPE position of what follows.
    pub(super) next_position: u32,
    /// State of the last special token, `[1, D]`.
    last: Tensor,
}

impl Compressed {
    /// # Errors
    /// When the method has no special tokens, or the text has no tokens or is longer than the model's
    /// `max_position_embeddings`.
    pub(super) fn new(gem: &Lapidary, text: &[TokenId], continuation: Continuation) -> Result<Self, Error> {
        let base = gem.base();
        let plan = gem.method().read_plan(text, continuation)?;
        let passes = Passes::new([&plan], |row| 0..row.num_tokens())?;
        let (number, row) = (plan.rows.len() - 1, &plan.rows[plan.rows.len() - 1]);
        let num_special_tokens = row.roles().iter().rev().take_while(|role| **role == Role::Special).count();
        if num_special_tokens == 0 {
            return Err(Error::Setting {
                field: "method".into(),
                expected: "one that ends a text in special tokens, to go on from".into(),
                found: gem.method().name().into(),
            });
        }
        let (end, mut cache) = (row.num_tokens(), base.decoder.new_cache());
        let hidden = passes.forward(&base.decoder, Kv::Append(&mut cache), gem.adapter(), None)?;
        Ok(Self {
            cache: cache.extract(number, (end - num_special_tokens) as u32..end as u32)?,
            next_position: row.positions()[end - 1] + 1,
            last: hidden.narrow(0, passes.rows()[number].place(end - 1) as usize, 1)?,
        })
    }

    /// A row that goes on behind the special tokens.
    fn sequence(self, gem: &Lapidary) -> Result<Sequence<'_>, Error> {
        Sequence::behind(&gem.base().decoder, gem.plain_adapter(), self.cache, self.next_position, &self.last)
    }
}

/// A row that goes on behind the special tokens of `text`, whose own keys and values are dropped: what follows sees the
/// former alone.
///
/// # Errors
/// When the method has no special tokens, or the text has no tokens or is longer than the model's
/// `max_position_embeddings`.
pub fn read<'a>(gem: &'a Lapidary, text: &[TokenId], continuation: Continuation) -> Result<Sequence<'a>, Error> {
    Compressed::new(gem, text, continuation)?.sequence(gem)
}

/// Reads `text`, keeps the special tokens' part of the cache alone, and continues greedily from it: at most
/// `max_new_tokens` tokens, or as many as the text has.
///
/// # Errors
/// When the method has no special tokens, or the text has no tokens or is longer than the model's
/// `max_position_embeddings`.
pub fn reconstruct(gem: &Lapidary, text: &str, max_new_tokens: Option<usize>) -> Result<Reconstruction, Error> {
    reconstruct_ids(gem, &gem.base().tokenizer.encode(text)?, max_new_tokens)
}

/// As [`reconstruct`], of an encoded text.
///
/// # Errors
/// As [`reconstruct`].
pub fn reconstruct_ids(
    gem: &Lapidary,
    original: &[TokenId],
    max_new_tokens: Option<usize>,
) -> Result<Reconstruction, Error> {
    let compressed = Compressed::new(gem, original, Continuation::Again)?;
    let (num_special_tokens, num_kv_bytes) = (compressed.cache.num_tokens(), compressed.cache.num_bytes());
    let generator: Generator<'_> = gem.generator();
    let mut sequence = compressed.sequence(gem)?;
    let max_new_tokens = max_new_tokens.unwrap_or(original.len());
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let generation = generator.generate(&mut sequence, &[], &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(Reconstruction {
        recovered: longest_common_subsequence(original, &generation.ids) as f64 / original.len() as f64,
        text: generation.text,
        ids: generation.ids,
        finish: generation.finish,
        num_text_tokens: original.len(),
        num_special_tokens,
        num_kv_bytes,
    })
}

/// Length of the longest sequence that both contain in order, not necessarily together.
fn longest_common_subsequence(a: &[TokenId], b: &[TokenId]) -> usize {
    // lengths[j]: of the part of `a` seen so far and the first j of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if x == y { diagonal + 1 } else { above.max(lengths[j]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_subsequences_by_hand() {
        let lcs = longest_common_subsequence;
        assert_eq!(lcs(&[], &[1]), 0);
        assert_eq!(lcs(&[1, 2, 3], &[1, 2, 3]), 3);
        assert_eq!(lcs(&[1, 2, 3, 4], &[2, 9, 4, 1]), 2);
        // ABCBDAB and BDCABA share BCBA.
        assert_eq!(lcs(&[1, 2, 3, 2, 4, 1, 2], &[2, 4, 3, 1, 2, 1]), 4);
        assert_eq!(lcs(&[7, 7], &[7]), 1);
    }
}
