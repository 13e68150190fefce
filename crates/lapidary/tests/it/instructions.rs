//! Texts after an instruction, on the real model: what their vectors are made of.

use lapidary::embed::EmbedOptions;
use lapidary::{Error, Lapidary, ModelFiles};
use serde_json::Value;

use crate::common::close_to_each_other;
use crate::models::real_model;

const PLAIN: EmbedOptions = EmbedOptions { max_tokens: 0, batch_tokens: 2048, standardise: false, normalise: false };

fn model(method: &str) -> Lapidary {
    Lapidary::untrained(&ModelFiles::Gguf(real_model()), method, Value::Null).unwrap()
}

fn embedded(model: &Lapidary, text: &str) -> Vec<f32> {
    model.embed_with(&[text], &PLAIN, &mut |_| {}).unwrap().vectors.remove(0)
}

#[test]
fn the_instruction_is_read_and_left_out_of_the_mean() {
    let (before, text) = ("Find a similar text:", "A man is playing a guitar.");
    let joined = format!("{before} {text}");
    let instructed = |model: &Lapidary| {
        model.embed_instructed("Find a similar text", &[text], &PLAIN, &mut |_| {}).unwrap().vectors.remove(0)
    };
    let last = model("last");
    assert_eq!(instructed(&last), embedded(&last, &joined));
    assert_ne!(instructed(&last), embedded(&last, text));

    // Under the causal mask the instruction's states are what they are alone, so its part of the mean is known.
    let mean = model("mean");
    let count = |text: &str| mean.base().tokenizer.encode(text).unwrap().len() as f32;
    let (all, first) = (count(&joined), count(before));
    let whole = embedded(&mean, &joined);
    let alone = embedded(&mean, before);
    let rest: Vec<f32> =
        whole.iter().zip(&alone).map(|(whole, alone)| (whole * all - alone * first) / (all - first)).collect();
    // Means of states that are up to a hundred times as large, in f32.
    close_to_each_other(&instructed(&mean), &rest, 1e-4, "mean over the text");
    let empty = mean.embed_instructed("Find a similar text", &[""], &PLAIN, &mut |_| {});
    assert!(matches!(empty, Err(Error::Setting { .. })));
}

#[test]
fn the_limit_is_that_of_the_text() {
    let model = model("mean");
    let options = EmbedOptions { max_tokens: 3, ..PLAIN };
    let text = "one two three four five";
    let cut = model.embed_instructed("Find it", &[text], &options, &mut |_| {}).unwrap();
    assert_eq!(cut.num_truncated, 1);
    let whole = model.embed_instructed("Find it", &["one two three"], &PLAIN, &mut |_| {}).unwrap();
    assert_eq!(cut.vectors, whole.vectors);
}
