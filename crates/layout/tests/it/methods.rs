//! What methods promise beside their rows: names, settings, errors, special tokens, the objective.

use layout::{Example, Loss, MethodContext, MethodError, SpecialInit, View, Weight, build, names};
use serde_json::{Value, json};

use crate::{encode, method, seeded};

fn refused(name: &str, settings: Value) -> String {
    let context = MethodContext { encode: &encode, bos: None };
    match build(name, settings, &context) {
        Ok(method) => panic!("{} was built", method.name()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_name_builds_its_method() {
    let trained = ["simcse", "llm2vec", "gritlm", "gist", "autocompressor", "icae", "sepllm", "llm2vec-gen"];
    let all: Vec<&str> =
        ["gem", "mean", "weighted-mean", "last", "prompt-eol", "echo"].into_iter().chain(trained).collect();
    assert_eq!(names(), all);
    for name in names() {
        assert_eq!(method(name, Value::Null, None).name(), *name);
    }
}

#[test]
fn settings_build_the_same_method_again() {
    let settings = json!({
        "template": "A {text}, again {text}", "num_special_tokens": 2, "scope": "all", "special_visibility": "causal", "pooling": "last",
        "plain_ratio": 0.8, "continuation_ratio": 0.25, "bottleneck_ratio": 0.5,
        "token_dropout": {"form": "none", "ratio": 0.3}, "special_init": "vocabulary_mean",
    });
    assert_eq!(method("gem", settings.clone(), None).settings(), settings);
    let default = method("gem", Value::Null, None).settings();
    assert_eq!(default["special_init"], json!({"prompt": " means in one word:\""}));
    assert_eq!(default["token_dropout"], json!({"form": "visibility", "ratio": 0.2}));
    assert_eq!(method("gem", default.clone(), None).settings(), default);
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (settings, field) in [
        (json!({"num_special_tokens": 0}), "num_special_tokens"),
        (json!({"num_special_tokens": 4_000_000_000_u32}), "num_special_tokens"),
        (json!({"plain_ratio": 0.5}), "plain_ratio must be 0 unless scope is \"all\""),
        (json!({"scope": "all", "plain_ratio": 1.5}), "plain_ratio"),
        (json!({"token_dropout": {"ratio": -0.1}}), "token_dropout.ratio"),
        (json!({"token_dropout": {"rate": 0.1}}), "rate"),
        (json!({"special_init": {"prompt": "  "}}), "special_init.prompt"),
        (json!({"template": "no place"}), "template must be a prompt with {text}"),
        (json!({"scope": "some"}), "some"),
        (json!({"hidden_dropout": 0.1}), "hidden_dropout"),
        (json!("x"), "settings of method gem"),
    ] {
        let message = refused("gem", settings);
        assert!(message.contains(field), "{message}");
    }
    assert!(refused("mean", json!({"k": 1})).contains("unknown field `k`"));
    let message = refused("mena", Value::Null);
    assert_eq!(message, format!("unknown method \"mena\"; expected one of {}", names().join(", ")));
}

#[test]
fn training_free_methods_refuse_training() {
    let example = Example { text: vec![5], ..Example::default() };
    for name in ["mean", "weighted-mean", "last", "prompt-eol", "echo"] {
        let method = method(name, Value::Null, None);
        assert!(!method.trainable());
        assert!(method.special_tokens().is_empty());
        let refused = method.train_plan(&example, &mut seeded(0));
        assert!(matches!(refused, Err(MethodError::NotTrained { .. })));
    }
}

#[test]
fn empty_texts_are_refused() {
    for name in names() {
        for bos in [None, Some(1)] {
            let refused = method(name, Value::Null, bos).embed_plan(&[]);
            assert!(matches!(refused, Err(MethodError::EmptyText { part: "text", .. })));
        }
    }
    let alone = Example { text: vec![5], ..Example::default() };
    let refused = method("llm2vec-gen", Value::Null, None).train_plan(&alone, &mut seeded(0)).unwrap_err().to_string();
    assert!(refused.contains("the positive (the model's own answer) has no tokens"), "{refused}");
    let gem = method("gem", Value::Null, Some(1));
    let (text, empty) = (vec![5], vec![]);
    for (example, expected) in [
        (Example::default(), "text"),
        (Example { text: text.clone(), positive: Some(empty.clone()), negatives: vec![] }, "positive"),
        (Example { text, positive: None, negatives: vec![empty] }, "negative"),
    ] {
        let refused = gem.train_plan(&example, &mut seeded(0));
        assert!(matches!(refused, Err(MethodError::EmptyText { part, .. }) if part == expected));
    }
}

#[test]
fn the_rivals_weigh_their_losses_as_their_papers() {
    let next_token = vec![(Loss::NextToken, Weight::Constant(1.0))];
    let both = |loss| vec![(Loss::NextToken, Weight::OneMinusAlpha), (loss, Weight::Alpha)];
    for (name, adapts_plain_rows, num_special_tokens, losses) in [
        ("simcse", true, 0, vec![(Loss::Contrastive, Weight::Constant(1.0))]),
        ("llm2vec", true, 0, both(Loss::Contrastive)),
        ("gritlm", true, 0, both(Loss::Contrastive)),
        ("gist", true, 1, next_token.clone()),
        ("autocompressor", true, 50, next_token.clone()),
        ("icae", false, 129, next_token.clone()),
        ("sepllm", true, 0, next_token),
        ("llm2vec-gen", false, 20, both(Loss::Alignment)),
    ] {
        let method = method(name, Value::Null, Some(1));
        assert!(method.trainable());
        assert_eq!(method.adapts_plain_rows(), adapts_plain_rows, "{name}");
        assert_eq!(method.special_tokens().len(), num_special_tokens, "{name}");
        let terms: Vec<_> = method.objective().terms.iter().map(|term| (term.loss, term.weight)).collect();
        assert_eq!(terms, losses);
        let again = crate::method(name, method.settings(), Some(1));
        assert_eq!(again.settings(), method.settings());
    }
    assert!(refused("llm2vec", json!({"mask_ratio": 2})).contains("mask_ratio"));
    assert!(
        refused("gist", json!({"num_special_tokens": 0})).contains("num_special_tokens must be between 1 and 1024")
    );
    assert!(refused("icae", json!({"continuation_ratio": -1})).contains("continuation_ratio"));
    assert!(refused("autocompressor", json!({"num_segments": 0})).contains("num_segments must be at least 1"));
    assert!(refused("sepllm", json!({"window": 0})).contains("window must be at least 1"));
    assert!(refused("sepllm", json!({"separators": ["no one"]})).contains("separators"));
    assert!(refused("llm2vec", json!({"mask": " "})).contains("mask must be a text of at least one token"));
    assert!(refused("simcse", json!({"pooling": "max"})).contains("settings of method simcse"));
}

#[test]
fn special_tokens_cycle_over_the_prompt() {
    // The default prompt has four words, encoded as 100 to 103.
    let gem = method("gem", Value::Null, None);
    let tokens = gem.special_tokens();
    let contents: Vec<&str> = tokens.iter().map(|token| token.content.as_str()).collect();
    assert_eq!(contents, ["[E0]", "[E1]", "[E2]", "[E3]", "[E4]", "[E5]"]);
    let inits: Vec<SpecialInit> = tokens.iter().map(|token| token.init).collect();
    assert_eq!(inits, [100, 101, 102, 103, 100, 101].map(SpecialInit::Token));
    let mean = method("gem", json!({"special_init": "vocabulary_mean"}), None);
    assert!(mean.special_tokens().iter().all(|token| token.init == SpecialInit::VocabularyMean));
}

#[test]
fn the_objective_has_a_term_for_each_loss_that_can_occur() {
    let terms = |settings| {
        let objective = method("gem", settings, None).objective();
        objective.terms.iter().map(|term| (term.loss, term.weight)).collect::<Vec<_>>()
    };
    assert_eq!(terms(Value::Null), [(Loss::NextToken, Weight::OneMinusAlpha), (Loss::Contrastive, Weight::Alpha)]);
    assert_eq!(terms(json!({"bottleneck_ratio": 0.0})), [(Loss::Contrastive, Weight::Constant(1.0))]);
    assert_eq!(Weight::OneMinusAlpha.at(0.25), 0.75);
}

#[test]
fn weighted_mean_weighs_by_rank() {
    // 1, 2, 3 over 1 + 2 + 3; BOS is position 0.
    let plan = method("weighted-mean", Value::Null, Some(1)).embed_plan(&[7, 8, 9]).expect("a plan");
    let pooled = &plan.rows[0].pooled()[0];
    assert_eq!(pooled.view, View::Query);
    assert_eq!(pooled.weights, [(1, 1.0 / 6.0), (2, 2.0 / 6.0), (3, 3.0 / 6.0)]);
}

#[test]
fn continuation_of_one_token_falls_back_to_reconstruction() {
    let gem = method("gem", json!({"num_special_tokens": 1, "continuation_ratio": 1.0}), None);
    let example = Example { text: vec![5], ..Example::default() };
    let plan = gem.train_plan(&example, &mut seeded(0)).expect("a plan");
    let row = &plan.rows[0];
    // The text, [E0], [E0]' and the text again; [E0] predicts it.
    assert_eq!(row.labels(), [None, Some(5), None, None]);
    assert_eq!(row.positions(), [0, 1, 1, 2]);
}

#[test]
fn shares_are_shares() {
    let gem = method(
        "gem",
        json!({"scope": "all", "plain_ratio": 0.8, "continuation_ratio": 0.5, "num_special_tokens": 1}),
        None,
    );
    let text: Vec<u32> = (0..40).collect();
    let example = Example { text, ..Example::default() };
    let mut rng = seeded(1);
    let (mut plain, mut continued) = (0, 0);
    for _ in 0..2000 {
        let plan = gem.train_plan(&example, &mut rng).expect("a plan");
        if plan.rows.len() == 2 {
            plain += 1;
        } else if plan.rows[0].num_tokens() == 42 {
            continued += 1;
        }
    }
    // Five standard deviations: of 2000 at 0.8, 89; of about 400 at 0.5, 50.
    assert!((1511..=1689).contains(&plain), "{plain}");
    assert!((150..=250).contains(&continued), "{continued}");
}
