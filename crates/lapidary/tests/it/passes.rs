//! Rows that read other rows' states, and rows under anchors, against `transformers` (`scripts/golden_passes.py`).

use lapidary::generate::{Limits, Sampler, Sampling, Sequence};
use lapidary::model::{Adapter, Decoder};
use lapidary::train::step::{LossWeights, StepOptions};
use layout::{Example, Input, Method, MethodContext, Plan, Rng, TokenId};
use rand::SeedableRng as _;
use serde_json::{Value, json};
use std::ops::ControlFlow;

use crate::common::{
    Golden, WHOLE, adapter, adapter_vars, close, close_to_each_other, close_to_largest, decoder, golden, hidden, norm,
    random_ids, run_step, scalar_close, tiny, values,
};

/// f32 on both sides, summed in another order.
const TOLERANCE: f64 = 3e-5;
const NEXT_TOKEN: LossWeights<'_> =
    LossWeights { next_token: 1.0, contrastive: 0.0, alignment: 0.0, scale: 20.0, similarity: None };

fn method(name: &str, settings: Value) -> Box<dyn Method + Send + Sync> {
    let context = MethodContext { encode: &|text| if text == "." { vec![7] } else { vec![9] }, bos: None };
    layout::build(name, settings, &context).unwrap()
}

fn llama() -> (Decoder, Golden) {
    let golden_file = Golden::read(&golden("passes").join("golden.safetensors"));
    (decoder(&golden("families").join("llama"), "config.json"), golden_file)
}

fn special_rows(decoder: &Decoder, golden: &Golden) -> Adapter {
    let d = decoder.config().hidden_size;
    let rows: Vec<Vec<f32>> =
        golden.get("special").chunks(d).map(|row| row.iter().map(|x| *x as f32).collect()).collect();
    Adapter::new(decoder, None, &rows, &mut Rng::seed_from_u64(0)).unwrap()
}

fn check_loss(name: &str, plan: Plan) {
    let (decoder, golden) = llama();
    let adapter = special_rows(&decoder, &golden);
    let vars = adapter_vars(&adapter);
    for split_frozen in [false, true] {
        let options = StepOptions { split_frozen, ..WHOLE };
        let result = run_step(&decoder, &adapter, &vars, std::slice::from_ref(&plan), (NEXT_TOKEN, options));
        scalar_close(result.next_token, golden.get(&format!("{name}.loss"))[0], TOLERANCE, name);
        let gradient = values(result.gradients[0].as_ref().unwrap());
        close_to_largest(&gradient, golden.get(&format!("{name}.grad")), TOLERANCE, name);
    }
}

#[test]
fn icae_reads_its_memory_as_transformers_does() {
    let example = Example { text: llama().1.ids("ids"), ..Example::default() };
    let icae = method("icae", json!({"num_special_tokens": 2, "continuation_ratio": 0.0}));
    check_loss("icae", icae.train_plan(&example, &mut Rng::seed_from_u64(0)).unwrap());
}

#[test]
fn autocompressor_accumulates_its_summaries_as_transformers_does() {
    let example = Example { text: llama().1.ids("ids"), ..Example::default() };
    let autocompressor = method("autocompressor", json!({"num_special_tokens": 1, "num_segments": 3}));
    // Segments of 2, 3 and 3 tokens, with one summary after each of the first two.
    let wanted = |plan: &Plan| plan.rows.iter().map(|row| row.num_tokens()).eq([3, 5, 5]);
    let plans = (0..10_000).map(|seed| autocompressor.train_plan(&example, &mut Rng::seed_from_u64(seed)).unwrap());
    check_loss("autocompressor", plans.into_iter().find(wanted).expect("some seed cuts there"));
}

#[test]
fn anchored_rows_are_those_of_transformers() {
    let (decoder, golden) = llama();
    let ids = golden.ids("sepllm.ids");
    let sepllm = method("sepllm", json!({"num_initial": 2, "window": 3, "separators": [".", ","]}));
    let row = sepllm.embed_plan(&ids).unwrap().rows.remove(0);
    close(&hidden(&decoder, &[&row], None), golden.get("sepllm.final"), TOLERANCE, "states");
}

/// Whatever has left the cache was not in view any more.
#[test]
fn decoding_under_anchors_is_the_whole_row_and_holds_less() {
    let (decoder, _) = llama();
    let ids: Vec<TokenId> =
        random_ids(60, 4).into_iter().flat_map(|id| if id % 9 == 0 { [id, 7] } else { [id, id] }).take(60).collect();
    let sepllm = method("sepllm", json!({"num_initial": 1, "window": 5, "separators": ["."]}));
    let d = decoder.config().hidden_size;
    for pieces in [1, 7, 60] {
        let mut sequence = Sequence::new(&decoder, None).in_view(sepllm.anchors());
        for piece in ids.chunks(pieces) {
            sequence.push(piece).unwrap();
        }
        let row = sepllm.embed_plan(&ids).unwrap().rows.remove(0);
        let whole = hidden(&decoder, &[&row], None);
        let last = kernels::Tensor::from_vec(whole[59 * d..].to_vec(), (1, d), decoder.device()).unwrap();
        close_to_each_other(sequence.logits(), &values(&decoder.logits(&last).unwrap()), 1e-4, "logits");
        if pieces == 1 {
            let separators = ids.iter().filter(|id| **id == 7).count();
            assert!(separators < 15, "{separators}");
            assert!(sequence.num_kv_tokens() <= 1 + separators + 4 + 32, "{}", sequence.num_kv_tokens());
        }
    }
}

/// What has left the cache may be in view of another prompt: it runs anew.
#[test]
fn a_prompt_that_begins_as_before_under_anchors_is_the_whole_row() {
    let (decoder, _) = llama();
    let ids = random_ids(60, 4);
    let sepllm = method("sepllm", json!({"num_initial": 1, "window": 5, "separators": ["."]}));
    let mut sequence = Sequence::new(&decoder, None).in_view(sepllm.anchors());
    sequence.push(&ids[..55]).unwrap();
    assert!(sequence.num_kv_tokens() < 55);
    let limits = Limits { max_new_tokens: 0, eos_token_ids: &[] };
    for (prompt, num_cached) in [(&ids[..], 55), (&ids[..30], 0)] {
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        let run = sequence.generate(prompt, &limits, &mut sampler, &mut |_| Ok(ControlFlow::Continue(())));
        assert_eq!(run.unwrap().num_cached_tokens, num_cached);
        let mut alone = Sequence::new(&decoder, None).in_view(sepllm.anchors());
        alone.push(prompt).unwrap();
        close_to_each_other(sequence.logits(), alone.logits(), 1e-4, "logits");
    }
}

/// Micro-batches and frozen starts change nothing, whatever rows read from each other.
#[test]
fn micro_batches_do_not_change_plans_of_several_passes() {
    let decoder = tiny();
    for (name, settings, num_special) in [
        ("icae", json!({"num_special_tokens": 2}), 3),
        ("autocompressor", json!({"num_special_tokens": 2, "num_segments": 3}), 2),
        ("llm2vec-gen", json!({"num_thought_tokens": 1, "num_special_tokens": 2}), 3),
        ("gist", json!({"num_special_tokens": 2}), 1),
    ] {
        let adapter = adapter(&decoder, true, num_special);
        let vars = adapter_vars(&adapter);
        let method = method(name, settings);
        let plan = |i: u64| {
            let text = random_ids(6 + i as usize, i);
            let example = Example { text, positive: Some(random_ids(4, 50 + i)), negatives: vec![] };
            method.train_plan(&example, &mut Rng::seed_from_u64(i)).unwrap()
        };
        let plans: Vec<Plan> = (0..4).map(plan).collect();
        let weights = LossWeights { alignment: if name == "llm2vec-gen" { 0.7 } else { 0.0 }, ..NEXT_TOKEN };
        let whole = run_step(&decoder, &adapter, &vars, &plans, (weights, WHOLE));
        assert_eq!(whole.alignment.is_nan(), name != "llm2vec-gen");
        for (micro_batch_tokens, split_frozen) in [(1, false), (usize::MAX, true), (30, true)] {
            let options = StepOptions { micro_batch_tokens, split_frozen, ..WHOLE };
            let found = run_step(&decoder, &adapter, &vars, &plans, (weights, options));
            scalar_close(found.next_token, whole.next_token, 1e-5, name);
            for (found, whole) in found.gradients.iter().zip(&whole.gradients) {
                let [found, whole] = [found, whole].map(|gradient| values(gradient.as_ref().unwrap()));
                assert!(norm(&whole) > 0.0, "{name}");
                close_to_each_other(&found, &whole, 2e-5, name);
            }
        }
    }
}

/// With one segment a group every soft input is a constant: the last row's loss does not reach the summary tokens.
#[test]
fn detached_soft_inputs_end_the_gradient() {
    let decoder = tiny();
    let adapter = adapter(&decoder, false, 2);
    let vars = adapter_vars(&adapter);
    let reached = |segments_per_substep: u32| {
        let settings =
            json!({"num_special_tokens": 2, "num_segments": 2, "segments_per_substep": segments_per_substep});
        let example = Example { text: random_ids(8, 1), ..Example::default() };
        let plan = method("autocompressor", settings).train_plan(&example, &mut Rng::seed_from_u64(2)).unwrap();
        assert!(plan.rows[1].inputs().iter().any(|input| matches!(input, Input::Soft { .. })));
        let result = run_step(&decoder, &adapter, &vars, &[plan], (NEXT_TOKEN, WHOLE));
        result.gradients[0].as_ref().map_or(0.0, |gradient| norm(&values(gradient)))
    };
    assert!(reached(2) > 0.0);
    assert_eq!(reached(1), 0.0);
}
