//! Every method's rows as text: the diff of a snapshot is the review.

use layout::{Continuation, Example, Plan, TokenId};
use serde_json::{Value, json};

use crate::{method, seeded};

const BOS: TokenId = 1;
const TEXT: [TokenId; 4] = [11, 12, 13, 14];

fn drawn(plan: &Plan) -> String {
    let rows: Vec<String> = plan.rows.iter().map(layout::Layout::draw).collect();
    rows.join("\n")
}

fn embedded(name: &str, settings: Value) -> String {
    drawn(&method(name, settings, Some(BOS)).embed_plan(&TEXT).expect("a plan"))
}

fn trained_on(example: &Example, settings: Value) -> String {
    let plan = method("gem", settings, Some(BOS)).train_plan(example, &mut seeded(3));
    drawn(&plan.expect("a plan"))
}

fn trained(settings: Value) -> String {
    trained_on(&Example { text: TEXT.to_vec(), ..Example::default() }, settings)
}

#[test]
fn training_free_methods() {
    for name in ["mean", "weighted-mean", "last", "prompt-eol", "echo"] {
        insta::assert_snapshot!(name, embedded(name, Value::Null));
    }
}

/// Two tokens of an instruction before the text: means leave them out, and the last token or `[E]`s have seen them.
#[test]
fn instructions_stand_before_the_text() {
    let pieces = |name: &str| method(name, Value::Null, Some(BOS)).instructed("Find it", "now");
    assert_eq!(pieces("mean"), ["Find it:", " now"]);
    assert_eq!(pieces("gritlm"), ["<|user|>\nFind it\n<|embed|>\n", "now"]);
    let text = [11, 12];
    // Positions and weights: BOS, the instruction, the text; the templates of the test's tokenizer between them.
    for (name, weights) in [
        ("mean", vec![(3, 0.5), (4, 0.5)]),
        ("weighted-mean", vec![(3, 3.0 / 7.0), (4, 4.0 / 7.0)]),
        ("last", vec![(4, 1.0)]),
        ("simcse", vec![(3, 3.0 / 7.0), (4, 4.0 / 7.0)]),
        ("llm2vec", vec![(3, 0.5), (4, 0.5)]),
        ("gritlm", vec![(3, 0.5), (4, 0.5)]),
    ] {
        let method = method(name, Value::Null, Some(BOS));
        let row = method.instructed_plan(&[21, 22], &text).expect("a plan").rows.remove(0);
        let ids = row.inputs().iter().map(|input| match input {
            layout::Input::Token(id) => *id,
            input => panic!("{name}: {input:?}"),
        });
        assert_eq!(ids.collect::<Vec<_>>(), [BOS, 21, 22, 11, 12], "{name}");
        let found = &row.pooled()[0].weights;
        assert_eq!(found.len(), weights.len(), "{name}");
        for ((at, weight), (want, wanted)) in found.iter().zip(&weights) {
            // Weights are f32 of sums in f64.
            assert!(at == want && (f64::from(*weight) - wanted).abs() < 1e-6, "{name}: {found:?}");
        }
        assert!(method.instructed_plan(&[21, 22], &[]).is_err(), "{name}");
    }
    for name in ["gem", "prompt-eol"] {
        let method = method(name, Value::Null, Some(BOS));
        let (plain, instructed) = (method.embed_plan(&[21, 22, 11, 12]), method.instructed_plan(&[21, 22], &text));
        assert_eq!(instructed.expect("a plan").rows, plain.expect("a plan").rows, "{name}");
    }
    // The second copy of the text, without that of the instruction.
    let echo = method("echo", Value::Null, Some(BOS));
    let positions = |plan: Result<Plan, layout::MethodError>| -> Vec<u32> {
        plan.expect("a plan").rows[0].pooled()[0].weights.iter().map(|(at, _)| *at).collect()
    };
    let (plain, instructed) = (echo.embed_plan(&[21, 22, 11, 12]), echo.instructed_plan(&[21, 22], &text));
    assert_eq!(positions(instructed), positions(plain)[2..]);
}

/// Training rows; of each of these methods the first is the row that embeds.
#[test]
fn methods_that_adapt_the_whole_model() {
    let example = Example { text: TEXT.to_vec(), ..Example::default() };
    for (name, settings) in [
        ("simcse", Value::Null),
        ("llm2vec", json!({"mask_ratio": 0.5})),
        ("gritlm", json!({"instruction": "Find it"})),
    ] {
        let method = method(name, settings, Some(BOS));
        let plan = method.train_plan(&example, &mut seeded(3)).expect("a plan");
        assert_eq!(plan.rows[0], method.embed_plan(&TEXT).expect("a plan").rows[0]);
        insta::assert_snapshot!(name, drawn(&plan));
    }
}

/// Rows of one training example, without BOS so that the pictures stay small.
#[test]
fn methods_that_compress() {
    let alone = Example { text: vec![11, 12, 13, 14, 15, 16], ..Example::default() };
    let pair = Example { text: vec![11, 12], positive: Some(vec![21, 22, 23]), negatives: vec![] };
    for (name, settings, example) in [
        ("gist", json!({"num_special_tokens": 2}), &pair),
        ("autocompressor", json!({"num_special_tokens": 1, "num_segments": 3}), &alone),
        ("icae", json!({"num_special_tokens": 2, "continuation_ratio": 0.0}), &pair),
        ("llm2vec-gen", json!({"num_thought_tokens": 1, "num_special_tokens": 2}), &pair),
    ] {
        let plan = method(name, settings, None).train_plan(example, &mut seeded(3));
        insta::assert_snapshot!(name, drawn(&plan.expect("a plan")));
    }
    let icae = method("icae", json!({"num_special_tokens": 2, "continuation_ratio": 1.0}), None);
    insta::assert_snapshot!("icae_continuation", drawn(&icae.train_plan(&alone, &mut seeded(3)).expect("a plan")));
    insta::assert_snapshot!("icae_read", drawn(&icae.read_plan(&[11, 12], Continuation::Again).expect("a plan")));
}

#[test]
fn a_row_with_separators() {
    // The full stop is 100 in these tests.
    let settings = json!({"num_initial": 1, "window": 2, "separators": ["."]});
    let text = vec![11, 12, 100, 13, 14, 100, 15, 16];
    let plan = method("sepllm", settings, None).train_plan(&Example { text, ..Example::default() }, &mut seeded(3));
    insta::assert_snapshot!("sepllm", drawn(&plan.expect("a plan")));
}

#[test]
fn gem_embedding_rows() {
    insta::assert_snapshot!("gem_embed_default", embedded("gem", Value::Null));
    insta::assert_snapshot!("gem_embed_k1", embedded("gem", json!({"num_special_tokens": 1})));
    insta::assert_snapshot!(
        "gem_embed_k3_causal_last_scope_embed",
        embedded(
            "gem",
            json!({
                "num_special_tokens": 3, "special_visibility": "causal", "pooling": "last",
                "scope": "embed",
            })
        )
    );
}

#[test]
fn gem_training_rows() {
    for (name, settings) in [
        ("k1", json!({"num_special_tokens": 1})),
        ("k3_isolated", json!({"num_special_tokens": 3})),
        ("k3_causal", json!({"num_special_tokens": 3, "special_visibility": "causal"})),
        ("delete", json!({"num_special_tokens": 2, "token_dropout": {"form": "delete", "ratio": 0.5}})),
        ("none", json!({"num_special_tokens": 1, "token_dropout": {"form": "none"}})),
        (
            "template",
            json!({
                "template": "Say {text} again: {text}", "num_special_tokens": 2, "scope": "all",
                "token_dropout": {"form": "visibility", "ratio": 0.5},
            }),
        ),
        ("scope_embed", json!({"num_special_tokens": 2, "scope": "embed"})),
        ("scope_all", json!({"num_special_tokens": 2, "scope": "all"})),
        ("scope_all_plain", json!({"num_special_tokens": 2, "scope": "all", "plain_ratio": 1.0})),
        ("continuation", json!({"num_special_tokens": 2, "continuation_ratio": 1.0})),
        ("no_bottleneck", json!({"num_special_tokens": 2, "bottleneck_ratio": 0.0})),
    ] {
        insta::assert_snapshot!(format!("gem_train_{name}"), trained(settings));
    }
}

#[test]
fn gem_pair_with_a_hard_negative() {
    let example = Example { text: TEXT.to_vec(), positive: Some(vec![21, 22]), negatives: vec![vec![31]] };
    insta::assert_snapshot!("gem_train_pair", trained_on(&example, json!({"num_special_tokens": 1})));
}

#[test]
fn token_text_is_escaped() {
    let plan = method("last", Value::Null, None).embed_plan(&[7, 8]).expect("a plan");
    insta::assert_snapshot!(plan.rows[0].draw_with(&|id| format!("<{id}>\n")));
}

/// The mask in a method's documentation is the mask the method makes.
#[test]
fn documented_masks_are_drawn_masks() {
    let documented = |source: &str, plan: &Plan| {
        let row = &plan.rows[0];
        let mask = row.visibility().draw(row.num_tokens() as u32);
        let comment: Vec<String> = mask.lines().map(|line| format!("//! {line}")).collect();
        assert!(source.contains(&comment.join("\n")), "{source}\nshould draw\n{mask}");
    };
    // One token for each piece of a prompt, so that every one of these rows has four positions.
    let context = layout::MethodContext { encode: &|_| vec![100], bos: None };
    for (name, text, source) in [
        ("mean", &TEXT[..], include_str!("../../src/methods/mean.rs")),
        ("weighted-mean", &TEXT[..], include_str!("../../src/methods/weighted_mean.rs")),
        ("last", &TEXT[..], include_str!("../../src/methods/last.rs")),
        ("prompt-eol", &TEXT[..2], include_str!("../../src/methods/prompt_eol.rs")),
        ("echo", &TEXT[..1], include_str!("../../src/methods/echo.rs")),
    ] {
        let method = layout::build(name, Value::Null, &context).expect("valid settings");
        documented(source, &method.embed_plan(text).expect("a plan"));
    }
    let gist = method("gist", json!({"num_special_tokens": 2}), None);
    let pair = Example { text: TEXT[..2].to_vec(), positive: Some(TEXT[2..].to_vec()), negatives: vec![] };
    documented(include_str!("../../src/methods/gist.rs"), &gist.train_plan(&pair, &mut seeded(0)).expect("a plan"));
    let sepllm = method("sepllm", json!({"num_initial": 1, "window": 2, "separators": ["."]}), None);
    let plan = sepllm.embed_plan(&[11, 12, 100, 13, 14, 15]).expect("a plan");
    documented(include_str!("../../src/methods/sepllm.rs"), &plan);
    let gem = method("gem", json!({"num_special_tokens": 2}), None);
    let example = Example { text: TEXT[..3].to_vec(), ..Example::default() };
    let second_is_hidden = |plan: &Plan| {
        let sees = |key| plan.rows[0].visibility().allows(5, key);
        [sees(0), sees(1), sees(2)] == [true, false, true]
    };
    let plan = (0..1000)
        .map(|seed| gem.train_plan(&example, &mut seeded(seed)).expect("a plan"))
        .find(second_is_hidden)
        .expect("some seed hides it");
    documented(include_str!("../../src/methods/gem.rs"), &plan);
}
