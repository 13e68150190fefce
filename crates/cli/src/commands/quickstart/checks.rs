//! Proof that the GEM chats as its base model does: bits, not impressions.

use crate::commands::eval::language_model;
use crate::context::Context;
use anyhow::{Context as _, Result};
use lapidary::Lapidary;
use lapidary::eval::language::LanguageModel;
use lapidary::generate::GenerateOptions;
use lapidary::layout::{Layout, TokenId};
use lapidary::model::{ForwardOptions, Kv, Segment};
use lapidary::text::Message;

/// What was checked, and what came out.
pub(super) struct Check {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) explanation: String,
}

const QUESTIONS: [&str; 3] =
    ["What is the capital of France?", "Write one sentence about the sea.", "Why is the sky blue?"];
const REPLY_TOKENS: usize = 32;

fn messages(question: &str) -> [Message; 1] {
    [Message { role: "user".into(), content: question.into() }]
}

/// A question and the GEM's greedy reply.
pub(super) fn reply(gem: &Lapidary) -> Result<(String, String)> {
    let options = GenerateOptions { max_new_tokens: REPLY_TOKENS, ..GenerateOptions::default() };
    let generation = gem.chat(&messages(QUESTIONS[0]), &options)?;
    Ok((QUESTIONS[0].to_owned(), generation.text))
}

/// Runs every check; `embedded` are texts whose embedding rows share a pass with the chats.
pub(super) fn run(
    base: &Lapidary,
    gem: &Lapidary,
    embedded: &[Vec<TokenId>],
    knowledge: &[(String, f64, f64)],
    context: &Context,
) -> Result<Vec<Check>> {
    context.note("Checking that chat is untouched");
    let chats = QUESTIONS.iter().map(|q| Ok(base.chat_ids(&messages(q))?)).collect::<Result<Vec<_>>>()?;
    let mut checks = vec![logits(base, gem, &chats)?, packed(base, gem, &chats, embedded)?, greedy(base, gem)?];
    checks.extend(knowledge.iter().map(|(name, before, after)| Check {
        name: format!("{name} has not moved"),
        passed: before.to_bits() == after.to_bits(),
        explanation: format!("base {before:.4}, GEM {after:.4}"),
    }));
    Ok(checks)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// Logits of whole chat rows, the GEM's adapter in place.
fn logits(base: &Lapidary, gem: &Lapidary, chats: &[Vec<TokenId>]) -> Result<Check> {
    let (mut differing, mut count) = (0, 0);
    for chat in chats {
        let of = |model: LanguageModel<'_>| -> Result<Vec<f32>> {
            Ok(model.decoder.logits(&model.hidden(chat)?)?.flatten_all()?.to_vec1()?)
        };
        let (before, after) = (of(LanguageModel::of_base(base.base()))?, of(language_model(gem))?);
        count += before.len();
        differing += bits(&before).zip(bits(&after)).filter(|(a, b)| a != b).count();
    }
    Ok(Check {
        name: "chat logits equal the base model's, bit for bit".into(),
        passed: differing == 0,
        explanation: format!("{differing} of {count} logits of {} chats differ", chats.len()),
    })
}

/// The same with embedding rows in the same pass: company changes nothing either.
fn packed(base: &Lapidary, gem: &Lapidary, chats: &[Vec<TokenId>], embedded: &[Vec<TokenId>]) -> Result<Check> {
    let plain = |ids: &Vec<TokenId>| -> Result<Layout> {
        // A plain causal row is the embedding row of a method that only reads the last state.
        let last = lapidary::train::build_method(gem.base(), "last", serde_json::Value::Null)?;
        Ok(last.embed_plan(ids)?.rows.swap_remove(0))
    };
    let mut rows = chats.iter().map(plain).collect::<Result<Vec<_>>>()?;
    let chat_tokens: usize = rows.iter().map(Layout::num_tokens).sum();
    for ids in embedded {
        rows.extend(gem.method().embed_plan(ids)?.rows);
    }
    let segment = Segment::whole(&rows);
    let of = |model: &Lapidary| -> Result<Vec<f32>> {
        let options = ForwardOptions { adapter: model.adapter(), ..ForwardOptions::default() };
        let hidden = model.base().decoder.forward(&segment, Kv::None, options)?;
        let width = hidden.dim(1)?;
        Ok(hidden.flatten_all()?.to_vec1::<f32>()?[..chat_tokens * width].to_vec())
    };
    let (before, after) = (of(base)?, of(gem)?);
    let differing = bits(&before).zip(bits(&after)).filter(|(a, b)| a != b).count();
    Ok(Check {
        name: "chat states in one pass with embedding rows are untouched, bit for bit".into(),
        passed: differing == 0,
        explanation: format!(
            "{differing} of {} numbers differ; {} chats and {} embeddings in one pass",
            before.len(),
            chats.len(),
            embedded.len()
        ),
    })
}

fn greedy(base: &Lapidary, gem: &Lapidary) -> Result<Check> {
    let options = GenerateOptions { max_new_tokens: REPLY_TOKENS, ..GenerateOptions::default() };
    let mut same = 0;
    for question in QUESTIONS {
        let replies = [base, gem].map(|model| model.chat(&messages(question), &options));
        let [before, after] = replies;
        let (before, after) = (before.context("the base model's reply")?, after.context("the GEM's reply")?);
        same += usize::from(before.ids == after.ids);
    }
    Ok(Check {
        name: "greedy replies equal the base model's, token for token".into(),
        passed: same == QUESTIONS.len(),
        explanation: format!("{same} of {} replies of up to {REPLY_TOKENS} tokens are equal", QUESTIONS.len()),
    })
}
