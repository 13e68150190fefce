//! What a model knows as a language model: likelihoods of texts and of answers, through the chat path.

use super::multiple_choice::{self, LETTERS, MultipleChoiceScore, Question};
use super::perplexity::{self, windows};
use crate::Error;
use crate::model::{AdapterView, BaseModel, Decoder, ForwardOptions, Kv, KvCache, Segment};
use kernels::Tensor;
use kernels::ops;
use layout::{Anchors, TokenId};

/// Rows whose logits or likelihoods are computed at a time.
const PREFILL_TOKENS: usize = 512;

/// A base model, and what a GEM adds to it; plain rows must not feel it unless its scope says so.
#[derive(Clone, Copy)]
pub struct LanguageModel<'a> {
    /// Turns text into token ids.
    pub base: &'a BaseModel,
    /// Runs the rows: the base model's, or what training has made of it.
    pub decoder: &'a Decoder,
    /// Adapter and special rows of a GEM.
    pub adapter: Option<&'a AdapterView>,
    /// The adapter acts on plain rows too (scope `all`).
    pub adapts_plain_rows: bool,
    /// What of their past plain rows keep in view, where not all of it.
    pub anchors: Option<&'a Anchors>,
}

impl<'a> LanguageModel<'a> {
    /// A base model as it is.
    pub fn of_base(base: &'a BaseModel) -> Self {
        Self { base, decoder: &base.decoder, adapter: None, adapts_plain_rows: false, anchors: None }
    }

    /// Hidden states `[T, D]` of a plain causal row.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the row too long.
    pub fn hidden(&self, ids: &[TokenId]) -> Result<Tensor, Error> {
        self.run(ids, &mut self.decoder.new_cache())
    }

    /// Hidden states `[T, D]` of the tokens of a row that follow those in the cache.
    fn run(&self, row: &[TokenId], cache: &mut KvCache) -> Result<Tensor, Error> {
        let mut parts = Vec::new();
        for part in row[cache.num_tokens()..].chunks(PREFILL_TOKENS) {
            let past = cache.num_tokens();
            let plain = Segment::next_tokens(0, part, past as u32, past as u32);
            let plain = plain.in_view(self.anchors, &[&row[..past + part.len()]]);
            let segment = if self.adapts_plain_rows { plain.adapt_all() } else { plain };
            let options = ForwardOptions { adapter: self.adapter, ..ForwardOptions::default() };
            parts.push(self.decoder.forward(&segment, Kv::Append(cache), options)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Logits `[V]` of the last of some hidden states.
    fn last_logits(&self, hidden: &Tensor) -> Result<Vec<f32>, Error> {
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        Ok(self.decoder.logits(&last)?.flatten_all()?.to_vec1()?)
    }

    /// The tokens that greedy decoding puts after a row, at most `max_new_tokens`, without the one of `eos_token_ids`
    /// that ends them.
    ///
    /// # Errors
    /// As [`LanguageModel::hidden`].
    pub fn greedy(
        &self,
        ids: &[TokenId],
        max_new_tokens: usize,
        eos_token_ids: &[TokenId],
    ) -> Result<Vec<TokenId>, Error> {
        let mut cache = self.decoder.new_cache();
        let mut hidden = self.run(ids, &mut cache)?;
        let mut row = ids.to_vec();
        while row.len() < ids.len() + max_new_tokens {
            let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
            let best = self.decoder.logits(&last)?.argmax(1)?.to_vec1::<u32>()?[0];
            if eos_token_ids.contains(&best) {
                break;
            }
            row.push(best);
            if row.len() < ids.len() + max_new_tokens {
                hidden = self.run(&row, &mut cache)?;
            }
        }
        Ok(row.split_off(ids.len()))
    }

    /// Sliding-window perplexity of a token sequence.
    ///
    /// # Errors
    /// As [`LanguageModel::hidden`], or with fewer than two tokens.
    pub fn perplexity(
        &self,
        ids: &[TokenId],
        (window_tokens, stride): (usize, usize),
        progress: &mut dyn FnMut(usize),
    ) -> Result<f64, Error> {
        let windows = windows(ids.len(), window_tokens, stride)?;
        let mut sums = Vec::with_capacity(windows.len());
        for window in &windows {
            let row = &ids[window.tokens.clone()];
            let places = window.scored.clone().map(|at| vec![((at - 1 - window.tokens.start) as u32, 1.0)]).collect();
            let states = ops::pool(&self.hidden(row)?, places)?;
            let nll = self.decoder.cross_entropy(&states, &ids[window.scored.clone()])?.to_vec1::<f32>()?;
            sums.push(nll.iter().map(|x| f64::from(*x)).sum());
            progress(window.tokens.end);
        }
        Ok(perplexity::perplexity(&windows, &sums)?)
    }

    /// The tokens of the answer letters.
    ///
    /// # Errors
    /// When a letter is more than one token of this tokenizer: the protocol cannot be followed then.
    pub fn answer_letters(&self) -> Result<[TokenId; 4], Error> {
        let mut tokens = [0; 4];
        for (token, letter) in tokens.iter_mut().zip(LETTERS) {
            let encoded = self.base.tokenizer.encode(letter)?;
            let [only] = encoded.as_slice() else {
                return Err(Error::Setting {
                    field: format!("answer letter {letter:?}"),
                    expected: "one token of the model's tokenizer".into(),
                    found: format!("{} tokens", encoded.len()),
                });
            };
            *token = *only;
        }
        Ok(tokens)
    }

    /// Multiple choice by the likelihood of the letter after each prompt (the MMLU protocol).
    ///
    /// # Errors
    /// When a prompt cannot be encoded, or a letter is more than one token.
    pub fn multiple_choice(
        &self,
        questions: &[Question],
        dev: &[Question],
        num_fewshot: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<MultipleChoiceScore, Error> {
        let prompts = multiple_choice::prompts(questions, dev, num_fewshot)?;
        let scores = self.letter_scores(&prompts, progress)?;
        Ok(multiple_choice::score(questions, &scores)?)
    }

    /// Of each prompt, scores that order the answer letters as their likelihoods do.
    ///
    /// # Errors
    /// When a prompt cannot be encoded, or a letter is more than one token.
    pub fn letter_scores(&self, prompts: &[String], progress: &mut dyn FnMut(usize)) -> Result<Vec<[f64; 4]>, Error> {
        let tokens = self.answer_letters()?;
        // Questions of one subject begin with the same examples, which run once.
        let (mut last, mut cache): (Vec<TokenId>, KvCache) = (Vec::new(), self.decoder.new_cache());
        let mut scores = Vec::with_capacity(prompts.len());
        for (i, prompt) in prompts.iter().enumerate() {
            let mut ids: Vec<TokenId> = self.decoder.config().bos_token_id.into_iter().collect();
            ids.extend(self.base.tokenizer.encode(prompt)?);
            let shared = last.iter().zip(&ids).take_while(|(a, b)| a == b).count().min(ids.len().saturating_sub(1));
            cache = if shared == 0 { self.decoder.new_cache() } else { cache.extract(0, 0..shared as u32)? };
            let logits = self.last_logits(&self.run(&ids, &mut cache)?)?;
            last = ids;
            // The softmax's sum is the same for the four letters.
            scores.push(tokens.map(|token| f64::from(logits[token as usize])));
            progress(i + 1);
        }
        Ok(scores)
    }
}
