//! How well the special tokens stand in for the text before them: the loss of what follows, given the special tokens
//! alone, given nothing, and given the text itself.

use super::reconstruct::Compressed;
use crate::model::{ForwardOptions, Kv, Segment};
use crate::{Error, Lapidary};
use kernels::ops;
use layout::{Continuation, TokenId};

/// Negative log-likelihood of a suffix in all, nats; its first token is left out, because a model without BOS cannot
/// predict it from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SuffixLosses {
    /// Given the special tokens' keys and values, the text dropped.
    pub special: f64,
    /// Given nothing.
    pub nothing: f64,
    /// Given the text.
    pub text: f64,
    /// Tokens counted.
    pub num_tokens: usize,
}

impl SuffixLosses {
    /// Adds another text's.
    pub fn add(&mut self, other: &Self) {
        self.special += other.special;
        self.nothing += other.nothing;
        self.text += other.text;
        self.num_tokens += other.num_tokens;
    }

    /// The three losses by token: special, nothing, text.
    #[must_use]
    pub fn by_token(&self) -> [f64; 3] {
        [self.special, self.nothing, self.text].map(|sum| sum / self.num_tokens.max(1) as f64)
    }
}

/// The losses of `suffix` after `text`: the text again, or its rest.
///
/// # Errors
/// When the method has no special tokens, the suffix has fewer than two tokens, or a row is too long.
pub fn suffix_losses(
    gem: &Lapidary,
    text: &[TokenId],
    continuation: Continuation,
    suffix: &[TokenId],
) -> Result<SuffixLosses, Error> {
    if suffix.len() < 2 {
        return Err(Error::Setting {
            field: "suffix".into(),
            expected: "at least two tokens".into(),
            found: suffix.len().to_string(),
        });
    }
    let compressed = Compressed::new(gem, text, continuation)?;
    let (inputs, labels) = (&suffix[..suffix.len() - 1], &suffix[1..]);
    let nll = |hidden: &kernels::Tensor, first: usize| -> Result<f64, Error> {
        let places = (first..first + labels.len()).map(|at| vec![(at as u32, 1.0)]).collect();
        let nll = gem.base().decoder.cross_entropy(&ops::pool(hidden, places)?, labels)?.to_vec1::<f32>()?;
        Ok(nll.into_iter().map(f64::from).sum())
    };
    let run = |segment: Segment, kv: Kv<'_>| -> Result<kernels::Tensor, Error> {
        let adapter = gem.plain_adapter();
        let segment = if adapter.is_some() { segment.adapt_all() } else { segment };
        gem.base().decoder.forward(&segment, kv, ForwardOptions { adapter, ..ForwardOptions::default() })
    };
    let plain = |ids: &[TokenId]| run(Segment::plain_rows([ids]), Kv::None);
    let past = compressed.cache.num_tokens() as u32;
    let behind = Segment::next_tokens(0, inputs, past, compressed.next_position);
    let special = run(behind, Kv::Past(&compressed.cache))?;
    let bos: Vec<TokenId> = gem.base().bos().into_iter().collect();
    let alone = [&bos, inputs].concat();
    let after = [&bos, text, inputs].concat();
    Ok(SuffixLosses {
        special: nll(&special, 0)?,
        nothing: nll(&plain(&alone)?, bos.len())?,
        text: nll(&plain(&after)?, bos.len() + text.len())?,
        num_tokens: labels.len(),
    })
}
