//! What a run refuses before its first step, so that it neither fails late nor replaces what is not its own; and what
//! its settings change.

use lapidary::train::RunOptions;

use crate::training::{TEXTS, Workshop, train};

#[test]
fn a_directory_of_something_else_is_not_replaced() {
    let shop = Workshop::new(&TEXTS);
    for name in ["model", "best"] {
        let dir = shop.path("run").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("thesis.txt"), "years of work").unwrap();
        let told = train(&shop.recipe(&[]), &mut shop.base(), shop.options("run"));
        assert!(told.error().contains("choose another directory"), "{}", told.error());
        assert_eq!(std::fs::read(dir.join("thesis.txt")).unwrap(), b"years of work");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn another_base_model_cannot_resume() {
    let shop = Workshop::new(&TEXTS);
    let options = RunOptions { stop_after_steps: 2, ..shop.options("run") };
    train(&shop.recipe(&[]), &mut shop.base(), options.clone());
    shop.change_base();
    let told = train(&shop.recipe(&[]), &mut shop.base(), options);
    assert!(told.error().contains("fingerprint"), "{}", told.error());
}

#[test]
fn settings_that_cannot_be_are_told_before_the_run() {
    let shop = Workshop::new(&TEXTS);
    for (change, expected) in [
        ("budget.max_tokens=100000", "budget.max_tokens: expected texts whose rows have at most"),
        ("weights='int8'", "because nothing is trained through eight bits, found \"int8\""),
        ("lora.r=100000000", "lora.r"),
        ("lora.r=0", "lora.r"),
        ("loss.teacher.methods=[{name='gem'}]", "loss.teacher.methods[0].name"),
        ("loss.teacher.methods=[{name='nobody'}]", "nobody"),
    ] {
        let told = train(&shop.recipe(&[change]), &mut shop.base(), shop.options("run"));
        assert!(told.error().contains(expected), "{change}: {}", told.error());
    }
}

/// The tiny model is stored in f32: widening changes no bit, rounding to bf16 changes losses by about 2^-9, to eight bits by
/// twice as much (a 254th of the largest number of a row).
#[test]
fn frozen_weights_train_in_the_format_of_the_recipe() {
    let shop = Workshop::new(&TEXTS);
    let losses = |setting: &str, weights: &str| -> Vec<f64> {
        let recipe = shop.recipe(&["budget.rows=8", &format!("{setting}='{weights}'")]);
        let options = shop.options(&format!("{setting}-{weights}"));
        train(&recipe, &mut shop.base(), options).metrics.iter().map(|m| m.loss).collect()
    };
    let stored = losses("weights", "stored");
    for setting in ["weights", "prefix_weights"] {
        assert_eq!(losses(setting, "f32"), stored, "{setting}");
    }
    for (setting, format) in [("weights", "bf16"), ("prefix_weights", "bf16"), ("prefix_weights", "int8")] {
        let rounded = losses(setting, format);
        assert_ne!(rounded, stored, "{setting} {format}");
        assert!(rounded.iter().zip(&stored).all(|(a, b)| (a - b).abs() < 0.05 * b), "{rounded:?} {stored:?}");
    }
}

#[test]
fn a_teacher_is_learned_from() {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&[
        "budget.rows=320",
        "budget.batch_rows=8",
        "lora.r=8",
        "optimizer.learning_rate=1e-2",
        "loss.alpha.value=0.3",
        "loss.teacher.weight=2.0",
        "loss.teacher.methods=[{name='mean'}]",
    ]);
    let told = train(&recipe, &mut shop.base(), shop.options("run"));
    assert!(told.outcome().finished);
    let (first, last) = (told.metrics[0].similarity, told.metrics[told.metrics.len() - 1].similarity);
    assert!(last < 0.7 * first, "{first} before, {last} after");
    let next_token = (told.metrics[0].next_token, told.metrics[told.metrics.len() - 1].next_token);
    assert!(next_token.1 < next_token.0, "{next_token:?}");
}

/// A vector that no loss asks for is not made: the first steps of a schedule cost the reconstruction alone.
#[test]
fn a_contrastive_loss_without_weight_is_not_computed() {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&[
        "budget.rows=16",
        "loss.alpha={form='step', value=0.5, steps=2}",
        "method.settings.bottleneck_ratio=1.0",
    ]);
    let told = train(&recipe, &mut shop.base(), shop.options("run"));
    let computed: Vec<bool> = told.metrics.iter().map(|m| m.contrastive.is_finite()).collect();
    assert_eq!(computed, [false, false, true, true]);
    assert!(told.metrics.iter().all(|m| m.loss.is_finite() && m.next_token.is_finite()));
}
