//! Replies that follow a JSON schema: what cannot come next is not chosen.

use crate::Error;
use crate::model::BaseModel;
use layout::TokenId;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::Arc;

/// Makes grammars over the tokens of one model.
pub struct Grammars {
    factory: ParserFactory,
    vocab_size: usize,
}

/// A grammar, and how far a reply has come in it.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    vocab_size: usize,
}

/// Its first line: behind it stands the state of the parser.
fn wrong(error: impl std::fmt::Display) -> Error {
    let found = error.to_string().lines().next().unwrap_or_default().to_owned();
    Error::Setting { field: "response_format".into(), expected: "a JSON schema that can be followed".into(), found }
}

impl Grammars {
    /// Takes the model's tokens.
    ///
    /// # Errors
    /// When the model has no end-of-sequence token, with which a reply could end.
    pub fn new(base: &BaseModel) -> Result<Self, Error> {
        let vocab_size = base.decoder.config().vocab_size;
        let eos = base.generation.eos_token_ids.first().ok_or_else(|| wrong("a model without an end of sequence"))?;
        let mut words = base.tokenizer.token_bytes(vocab_size);
        // Special tokens are no text: they are found by their names, behind a byte that no text has.
        for (id, word) in (0..).zip(&mut words).filter(|(id, _)| base.tokenizer.is_special(*id)) {
            let name = base.tokenizer.id_to_token(id).unwrap_or_default();
            *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
        }
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, *eos), &words);
        let factory = ParserFactory::new(
            &(Arc::new(ApproximateTokEnv::new(trie)) as _),
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::json_slices(),
        );
        let mut factory = factory.map_err(wrong)?;
        factory.quiet();
        Ok(Self { factory, vocab_size })
    }

    /// A grammar of the JSON that a schema allows, written without blanks that it does not need: a small model would not
    /// come to the end of them.
    ///
    /// # Errors
    /// When it is no schema, or has parts that cannot be had.
    pub fn json_schema(&self, mut schema: Value) -> Result<Grammar, Error> {
        if let Some(object) = schema.as_object_mut() {
            object.insert("x-guidance".into(), json!({ "whitespace_flexible": false }));
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(wrong)?;
        let mut matcher = Matcher::new(Ok(parser));
        // What the schema asks for and the grammar does not keep is said, not passed over.
        let warnings = matcher.grammar_warnings();
        if !warnings.is_empty() {
            return Err(wrong(warnings.join("; ")));
        }
        // A schema that leads nowhere shows it here.
        matcher.compute_mask().map_err(wrong)?;
        Ok(Grammar { matcher, vocab_size: self.vocab_size })
    }
}

impl Grammar {
    /// Makes what may not come next impossible.
    ///
    /// # Errors
    /// When the grammar takes too long to follow, or nothing may come next.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), Error> {
        let allowed = self.matcher.compute_mask_or_eos();
        let allowed = allowed.map_err(|error| Error::Internal(format!("grammar: {error}")))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= self.vocab_size || !allowed.is_allowed(id as TokenId) {
                // Finite: a number that is not is a fault of the model.
                *logit = f32::MIN;
            }
        }
        Ok(())
    }

    /// Goes on behind a token.
    ///
    /// # Errors
    /// When it may not come next.
    pub(crate) fn accept(&mut self, id: TokenId) -> Result<(), Error> {
        self.matcher.consume_token(id).map_err(|error| Error::Internal(format!("grammar: {error}")))
    }
}
