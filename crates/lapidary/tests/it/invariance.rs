//! Laws: what must not change an output does not change it, and what must reach a gradient does.

use kernels::Tensor;
use lapidary::embed::{EmbedOptions, Embedder};
use lapidary::eval::standardise::Standardisation;
use lapidary::model::{
    Adapter, BaseModel, Decoder, ForwardOptions, HiddenDropout, Kv, LoraConfig, ModelFiles, Segment, WeightFormat,
};
use lapidary::train::build_method;
use lapidary::train::similarity::TeacherCosines;
use lapidary::train::step::{LossWeights, StepOptions, StepResult};
use layout::{Example, Input, Layout, LayoutParts, Plan, Rng, TokenId, View};
use rand::SeedableRng as _;
use serde_json::json;

use crate::common::{
    WHOLE, adapter, adapter_vars, bits, close, close_to_each_other, decoder, device, gem, golden, hidden, norm,
    plain_row, random_ids, real_model, run_step, scalar_close, tiny, values, widened,
};

/// A matrix product's order of summation depends on its number of rows: f32 rounding, as a share of the largest number.
const ROUNDING: f64 = 1e-5;
const WEIGHTS: LossWeights<'_> =
    LossWeights { next_token: 0.6, contrastive: 0.4, alignment: 0.0, scale: 20.0, similarity: None };

/// Training plans of texts of the given lengths.
fn plans(settings: serde_json::Value, lengths: &[usize]) -> Vec<Plan> {
    let method = gem(settings);
    let mut rng = Rng::seed_from_u64(11);
    let example = |(i, len): (usize, &usize)| Example { text: random_ids(*len, 40 + i as u64), ..Example::default() };
    lengths.iter().enumerate().map(|pair| method.train_plan(&example(pair), &mut rng).unwrap()).collect()
}

fn gradients_equal(found: &StepResult, want: &StepResult, names: &[(String, kernels::Var)]) {
    gradients_within(ROUNDING, found, want, names);
}

fn gradients_within(rounding: f64, found: &StepResult, want: &StepResult, names: &[(String, kernels::Var)]) {
    scalar_close(found.next_token, want.next_token, rounding, "next-token loss");
    scalar_close(found.contrastive, want.contrastive, 20.0 * rounding, "contrastive loss");
    for ((found, want), (name, _)) in found.gradients.iter().zip(&want.gradients).zip(names) {
        match (found, want) {
            (Some(found), Some(want)) => close_to_each_other(&values(found), &values(want), rounding, name),
            (None, None) => {}
            _ => panic!("{name}: one of two has a gradient"),
        }
    }
}

#[test]
fn alone_equals_in_a_batch() {
    let decoder = tiny();
    let adapter = adapter(&decoder, true, 3);
    let d = decoder.config().hidden_size;
    for lengths in [[7, 7, 7, 7], [3, 11, 6, 1]] {
        let plans = plans(json!({ "scope": "all" }), &lengths);
        let rows: Vec<&Layout> = plans.iter().flat_map(|plan| &plan.rows).collect();
        let packed = hidden(&decoder, &rows, Some(&adapter));
        let mut first = 0;
        for row in rows {
            let end = first + row.num_tokens() * d;
            close_to_each_other(&packed[first..end], &hidden(&decoder, &[row], Some(&adapter)), ROUNDING, "row");
            first = end;
        }
        assert_eq!(first, packed.len());
    }
}

/// Long segments run in parts of a layer in one piece, short ones do not: with biases, norms behind a part, norms of heads,
/// windows and adapters the bits are the same, where the machine has units for the format.
#[test]
fn parts_in_one_piece_have_the_bits_of_short_segments() {
    #[cfg(target_arch = "x86_64")]
    let units = [std::arch::is_x86_feature_detected!("avx512bf16"), std::arch::is_x86_feature_detected!("avx512vnni")];
    #[cfg(not(target_arch = "x86_64"))]
    let units = [false; 2];
    parts_in_one_piece(WeightFormat::Bf16, device().is_cpu() && units[0]);
    if device().is_cpu() {
        parts_in_one_piece(WeightFormat::Int8, units[1]);
    }
}

fn parts_in_one_piece(format: WeightFormat, units: bool) {
    let num_rows = 4 * rayon::current_num_threads() + 1;
    for family in ["gemma2", "gemma3", "llama", "llama_bias", "qwen2_sliding", "qwen3", "smollm3"] {
        let mut decoder = decoder(&golden("families").join(family), "config.json");
        decoder.set_weight_format(format).unwrap();
        let adapter = adapter(&decoder, true, 3);
        for scope in ["special", "all"] {
            let plans = plans(json!({ "scope": scope, "bottleneck_ratio": 0.0 }), &vec![9; num_rows]);
            let rows: Vec<&Layout> = plans.iter().flat_map(|plan| &plan.rows).collect();
            let packed = hidden(&decoder, &rows, Some(&adapter));
            let alone: Vec<f32> = rows.iter().flat_map(|row| hidden(&decoder, &[row], Some(&adapter))).collect();
            close_to_each_other(&packed, &alone, 1e-2, family);
            assert!(!units || bits(&packed) == bits(&alone), "{family} {scope}: other bits");
            let noise = |ratio| {
                let mut rng = Rng::seed_from_u64(1);
                let view = adapter.view(false);
                let dropout = Some(HiddenDropout { ratio, rng: &mut rng });
                let options = ForwardOptions { adapter: Some(&view), dropout, ..ForwardOptions::default() };
                values(&decoder.forward(&Segment::whole(rows.iter().copied()), Kv::None, options).unwrap())
            };
            assert!(bits(&noise(0.5)) != bits(&packed), "{family} {scope}: no noise");
        }
    }
}

/// Rows long enough for attention in bf16, which does not depend on their company either.
#[test]
fn long_rows_are_the_same_alone_and_packed() {
    let mut decoder = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap().decoder;
    decoder.set_weight_format(WeightFormat::Bf16).unwrap();
    let texts: Vec<Vec<TokenId>> = [140, 9, 200].iter().map(|length| random_ids(*length, *length as u64)).collect();
    let run = |rows: &[Vec<TokenId>], bf16_attention| {
        let options = ForwardOptions { bf16_attention, ..ForwardOptions::default() };
        let segment = Segment::plain_rows(rows.iter().map(Vec::as_slice));
        values(&decoder.forward(&segment, Kv::None, options).unwrap())
    };
    let packed = run(&texts, true);
    let alone: Vec<f32> = texts.iter().flat_map(|text| run(std::slice::from_ref(text), true)).collect();
    #[cfg(target_arch = "x86_64")]
    let units = std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let units = false;
    assert!(!units || bits(&packed) == bits(&alone), "other bits");
    let in_f32 = run(&texts, false);
    assert!(!units || bits(&packed) != bits(&in_f32), "nothing was rounded");
    close_to_each_other(&packed, &in_f32, 3e-2, "attention in f32");
}

/// The row with another token at `at`.
fn with_token(row: &Layout, at: usize, input: Input) -> Layout {
    let mut inputs = row.inputs().to_vec();
    inputs[at] = input;
    Layout::new(LayoutParts {
        inputs,
        roles: row.roles().to_vec(),
        positions: row.positions().to_vec(),
        labels: row.labels().to_vec(),
        adapted: row.adapted().to_vec(),
        visibility: row.visibility().clone(),
        pooled: row.pooled().to_vec(),
    })
    .unwrap()
}

/// Whether what stands at `from` can be felt at each position: seen, or seen by one that is seen, and so on.
fn reached(row: &Layout, from: u32, layers: usize) -> Vec<bool> {
    let n = row.num_tokens() as u32;
    let mut felt: Vec<bool> = (0..n).map(|t| t == from).collect();
    for _ in 0..layers {
        felt = (0..n)
            .map(|query| {
                felt[query as usize] || (0..n).any(|key| felt[key as usize] && row.visibility().allows(query, key))
            })
            .collect();
    }
    felt
}

#[test]
fn a_token_without_a_path_changes_no_bit() {
    let decoder = tiny();
    let adapter = adapter(&decoder, true, 3);
    let d = decoder.config().hidden_size;
    for changes in
        [json!({}), json!({ "scope": "all", "special_visibility": "causal" }), json!({ "bottleneck_ratio": 0.0 })]
    {
        let plans = plans(changes, &[9, 6]);
        let [row, other] = [&plans[0].rows[0], &plans[1].rows[0]];
        let before = hidden(&decoder, &[row, other], Some(&adapter));
        let (mut unreached, mut changed_bits) = (0, 0);
        for at in 0..row.num_tokens() {
            let input = match row.inputs()[at] {
                Input::Token(id) => Input::Token((id + 1) % 97),
                Input::Special(j) => Input::Special((j + 1) % 3),
                Input::Soft { .. } => panic!("a row of its own has no soft inputs"),
            };
            let after = hidden(&decoder, &[&with_token(row, at, input), other], Some(&adapter));
            let felt = reached(row, at as u32, decoder.config().layers.len());
            for t in 0..row.num_tokens() + other.num_tokens() {
                let equal = bits(&before[t * d..][..d]) == bits(&after[t * d..][..d]);
                if felt.get(t).copied().unwrap_or(false) {
                    changed_bits += usize::from(!equal);
                } else {
                    unreached += 1;
                    assert!(equal, "position {t} feels position {at}");
                }
            }
        }
        assert!(unreached > 100 && changed_bits > 20, "{unreached} unreached, {changed_bits} changed");
    }
}

/// Families whose attention differs: plain, windows, no positions in some layers, heads normed.
#[test]
fn cached_decoding_equals_the_whole_row() {
    for family in ["llama", "llama3", "gemma2", "gemma3", "mistral", "qwen2_sliding", "qwen3", "smollm3"] {
        let decoder = decoder(&golden("families").join(family), "config.json");
        let d = decoder.config().hidden_size;
        let (long, short) = (plain_row(&random_ids(14, 1), false), plain_row(&random_ids(9, 2), false));
        let want = hidden(&decoder, &[&long, &short], None);
        let mut cache = decoder.new_cache();
        let mut found = [Vec::new(), Vec::new()];
        for (a, b) in [(0..6, 0..4), (6..6, 4..9), (6..7, 9..9), (7..14, 9..9)] {
            let segment = Segment::of_rows([(&long, a.clone()), (&short, b.clone())]);
            let states = values(&decoder.forward(&segment, Kv::Append(&mut cache), ForwardOptions::default()).unwrap());
            found[0].extend_from_slice(&states[..a.len() * d]);
            found[1].extend_from_slice(&states[a.len() * d..]);
        }
        close_to_each_other(&found.concat(), &want, ROUNDING, family);
        let mut alone = cache.extract(1, 0..5).unwrap();
        let ids: Vec<TokenId> =
            short.inputs()[5..].iter().map(|i| if let Input::Token(id) = i { *id } else { 0 }).collect();
        let rest = decoder
            .forward(&Segment::next_tokens(0, &ids, 5, 5), Kv::Append(&mut alone), ForwardOptions::default())
            .unwrap();
        close_to_each_other(&values(&rest), &want[want.len() - 4 * d..], ROUNDING, family);
    }
}

#[test]
fn a_frozen_prefix_changes_no_loss_and_no_gradient() {
    let decoder = tiny();
    for scope in ["special", "embed", "all"] {
        for form in ["visibility", "delete"] {
            let adapter = adapter(&decoder, true, 3);
            let vars = adapter_vars(&adapter);
            let settings =
                json!({ "scope": scope, "token_dropout": { "form": form, "ratio": 0.3 }, "bottleneck_ratio": 0.7 });
            let plans = plans(settings, &[9, 4, 12, 2, 7]);
            let frozen = plans.iter().flat_map(|p| &p.rows).map(Layout::frozen_len).sum::<usize>();
            assert_eq!(frozen > 0, scope == "special", "{scope}: {frozen} frozen positions");
            let want = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, WHOLE));
            for micro_batch_tokens in [usize::MAX, 1] {
                let split = StepOptions { split_frozen: true, micro_batch_tokens, ..WHOLE };
                gradients_equal(&run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, split)), &want, &vars);
            }
        }
    }
}

/// With weights packed as bf16, updates are rounded within the graph and not where vectors are collected beforehand: the
/// rounding of bf16, which is a 256th of a number, in the updates of some layers.
#[test]
fn micro_batches_and_a_frozen_prefix_in_bf16_change_nothing_but_the_rounding() {
    let mut decoder = tiny();
    decoder.set_weight_format(WeightFormat::Bf16).unwrap();
    for scope in ["special", "embed", "all"] {
        let adapter = adapter(&decoder, true, 3);
        let vars = adapter_vars(&adapter);
        let plans = plans(json!({ "scope": scope, "bottleneck_ratio": 0.7 }), &[9, 4, 12, 2, 7]);
        let want = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, WHOLE));
        for (split_frozen, micro_batch_tokens) in [(true, usize::MAX), (false, 1), (true, 1)] {
            let options = StepOptions { split_frozen, micro_batch_tokens, ..WHOLE };
            let found = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, options));
            gradients_within(3e-2, &found, &want, &vars);
        }
    }
}

#[test]
fn micro_batches_change_no_loss_and_no_gradient() {
    let mut decoder = tiny();
    let lengths = [9, 4, 12, 2, 7, 5, 5, 8];
    let mut plans = plans(json!({ "scope": "all", "token_dropout": { "form": "delete", "ratio": 0.3 } }), &lengths);
    let with_negatives = Example {
        text: random_ids(6, 70),
        positive: Some(random_ids(5, 71)),
        negatives: vec![random_ids(4, 72), random_ids(9, 73)],
    };
    plans.insert(3, gem(json!({ "scope": "all" })).train_plan(&with_negatives, &mut Rng::seed_from_u64(5)).unwrap());
    let d = decoder.config().hidden_size;
    let seen: Vec<f32> = (0..plans.len() * d).map(|i| (i as f32 * 0.37).sin()).collect();
    let teacher = TeacherCosines::new(&[seen], d);
    let weights = LossWeights { similarity: Some((0.7, &teacher)), ..WEIGHTS };
    for full in [false, true] {
        let adapter = adapter(&decoder, !full, 3);
        let mut vars = adapter_vars(&adapter);
        if full {
            vars.extend(decoder.make_trainable().unwrap());
        }
        let want = run_step(&decoder, &adapter, &vars, &plans, (weights, WHOLE));
        assert!(want.similarity > 0.1 && want.contrastive > 0.1);
        for micro_batch_tokens in [1, 60] {
            let options = StepOptions { micro_batch_tokens, ..WHOLE };
            let found = run_step(&decoder, &adapter, &vars, &plans, (weights, options));
            gradients_equal(&found, &want, &vars);
            scalar_close(found.similarity, want.similarity, ROUNDING, "similarity loss");
            scalar_close(found.log_scale_gradient, want.log_scale_gradient, 20.0 * ROUNDING, "log scale");
        }
    }
}

/// Moves a variable along its gradient by `h` and gives the weighted loss.
fn moved_loss(var: &kernels::Var, gradient: &Tensor, h: f64, loss: &dyn Fn() -> f64) -> f64 {
    let start = var.as_detached_tensor().copy().unwrap();
    var.set(&(&start + (gradient * h).unwrap()).unwrap()).unwrap();
    let found = loss();
    var.set(&start).unwrap();
    found
}

/// Noise differs with the micro-batches, but in each of them both passes must see the same noise: otherwise the
/// gradient would be that of another loss.
#[test]
fn hidden_dropout_is_the_same_in_both_passes_of_a_micro_batch() {
    let decoder = tiny();
    let adapter = adapter(&decoder, true, 3);
    let vars = adapter_vars(&adapter);
    let plans = plans(json!({ "token_dropout": { "form": "none" } }), &[9, 4, 12, 6]);
    for split_frozen in [false, true] {
        let options = StepOptions { micro_batch_tokens: 1, split_frozen, hidden_dropout: 0.2, dropout_seed: 5 };
        let result = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, options));
        let again = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, options));
        assert_eq!(result.contrastive.to_bits(), again.contrastive.to_bits());
        let other =
            run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, StepOptions { dropout_seed: 6 << 20, ..options }));
        assert_ne!(result.contrastive.to_bits(), other.contrastive.to_bits());
        let loss = || {
            let result = run_step(&decoder, &adapter, &vars, &plans, (WEIGHTS, options));
            WEIGHTS.next_token * result.next_token + WEIGHTS.contrastive * result.contrastive
        };
        for (name, at) in [("special_tokens", vars.len() - 1), ("first A", 0), ("last B", vars.len() - 2)] {
            let gradient = result.gradients[at].as_ref().unwrap();
            let slope = norm(&values(gradient)).powi(2);
            // The step changes the loss by about 0.02: large against f32 rounding, small against the curvature.
            let h = 0.01 / slope;
            let found = (moved_loss(&vars[at].1, gradient, h, &loss) - moved_loss(&vars[at].1, gradient, -h, &loss))
                / (2.0 * h);
            scalar_close(found, slope, 0.02, name);
        }
    }
}

#[test]
fn the_temperature_has_the_gradient_of_finite_differences() {
    let decoder = tiny();
    let adapter = adapter(&decoder, true, 3);
    let vars = adapter_vars(&adapter);
    let plans = plans(json!({}), &[9, 4, 12, 6]);
    let at = |log_scale: f64, micro_batch_tokens| {
        let weights = LossWeights { scale: log_scale.exp() as f32, ..WEIGHTS };
        run_step(&decoder, &adapter, &vars, &plans, (weights, StepOptions { micro_batch_tokens, ..WHOLE }))
    };
    for micro_batch_tokens in [usize::MAX, 1] {
        let (log_scale, h) = (20f64.ln(), 1e-2);
        let loss = |log_scale| WEIGHTS.contrastive * at(log_scale, micro_batch_tokens).contrastive;
        let slope = (loss(log_scale + h) - loss(log_scale - h)) / (2.0 * h);
        assert!(slope.abs() > 1e-4);
        scalar_close(at(log_scale, micro_batch_tokens).log_scale_gradient, slope, 5e-3, "log scale");
    }
}

#[test]
fn every_trained_weight_gets_a_gradient() {
    let trained = |decoder: &Decoder, adapter: &Adapter, vars: &[(String, kernels::Var)], scope: &str| {
        let plans = plans(json!({ "scope": scope }), &[9, 4, 12, 6]);
        let result = run_step(decoder, adapter, vars, &plans, (WEIGHTS, WHOLE));
        for ((name, _), gradient) in vars.iter().zip(&result.gradients) {
            let gradient = values(gradient.as_ref().unwrap_or_else(|| panic!("{scope}: {name} has no gradient")));
            let size = norm(&gradient);
            assert!(size.is_finite() && size > 0.0, "{scope}: {name}: gradient norm {size}");
        }
        assert!(result.log_scale_gradient.is_finite() && result.log_scale_gradient != 0.0);
    };
    for family in ["gem_tiny", "families/llama_bias", "families/gemma3", "families/qwen3"] {
        let mut decoder = decoder(&golden(family), "config.json");
        let lora = adapter(&decoder, true, 3);
        for scope in ["all", "embed", "special"] {
            trained(&decoder, &lora, &adapter_vars(&lora), scope);
        }
        let plain = adapter(&decoder, false, 3);
        let mut vars = decoder.make_trainable().unwrap();
        vars.extend(adapter_vars(&plain));
        trained(&decoder, &plain, &vars, "all");
    }
}

/// Scope `special` and `embed`: a row without special tokens is not touched, whatever the adapter holds and whatever
/// runs beside it.
#[test]
fn chat_is_the_base_models_bit_for_bit() {
    let base = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap();
    let decoder = &base.decoder;
    let with_lora = adapter(decoder, true, 6);
    // The same special rows without any update.
    let special = with_lora.special_var().unwrap().to_vec2::<f32>().unwrap();
    let without = Adapter::new(decoder, None::<LoraConfig>, &special, &mut Rng::seed_from_u64(0)).unwrap();
    let chat = base
        .tokenizer
        .encode_with_special("<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n")
        .unwrap();
    let chat = plain_row(&chat, false);
    let text = base.tokenizer.encode("A man plays a guitar on the stage.").unwrap();
    let d = decoder.config().hidden_size;
    let logits = |hidden: &[f32]| {
        let hidden = Tensor::from_vec(hidden.to_vec(), (hidden.len() / d, d), &kernels::Device::Cpu).unwrap();
        bits(&values(&decoder.logits(&hidden).unwrap()))
    };
    let plain = hidden(decoder, &[&chat], None);
    assert_eq!(logits(&plain), logits(&hidden(decoder, &[&chat], Some(&with_lora))), "alone");
    for scope in ["special", "embed"] {
        let method = build_method(&base, "gem", json!({ "scope": scope })).unwrap();
        let embedding = method.embed_plan(&text).unwrap().rows.remove(0);
        let packed = |adapter: &Adapter| hidden(decoder, &[&chat, &embedding, &chat], Some(adapter));
        let (found, want) = (packed(&with_lora), packed(&without));
        let (first, last) = (chat.num_tokens() * d, found.len() - chat.num_tokens() * d);
        assert_eq!(logits(&found[..first]), logits(&want[..first]), "{scope}: first");
        assert_eq!(logits(&found[last..]), logits(&want[last..]), "{scope}: last");
        assert_ne!(bits(&found[first..last]), bits(&want[first..last]), "{scope}: the adapter does nothing");
        close_to_each_other(&found[..first], &plain, 1e-4, scope);
    }
}

#[test]
fn vectors_are_standardised_before_they_are_normalised() {
    let base = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap();
    let method = build_method(&base, "mean", serde_json::Value::Null).unwrap();
    let d = base.decoder.config().hidden_size;
    let mean: Vec<f32> = (0..d).map(|i| 0.1 * (i as f32).sin()).collect();
    let std: Vec<f32> = (0..d).map(|i| 1.0 + 0.5 * (i as f32).cos()).collect();
    let standardisation = Standardisation::new(mean.clone(), std.clone()).unwrap();
    let embedder = Embedder {
        decoder: &base.decoder,
        tokenizer: &base.tokenizer,
        method: method.as_ref(),
        adapter: None,
        standardisation: Some(&standardisation),
    };
    let texts = ["A man plays a guitar.", "Rivers run to the sea, and the sea is not full."];
    let embed = |standardise, normalise| {
        let options = EmbedOptions { standardise, normalise, ..EmbedOptions::default() };
        embedder.embed(&texts, &options, &mut |_| {}).unwrap().vectors
    };
    let (raw, full, plain) = (embed(false, false), embed(true, true), embed(false, true));
    for ((raw, full), plain) in raw.iter().zip(&full).zip(&plain) {
        let shifted: Vec<f64> =
            raw.iter().zip(mean.iter().zip(&std)).map(|(x, (m, s))| f64::from(x - m) / f64::from(*s)).collect();
        let length = shifted.iter().map(|x| x * x).sum::<f64>().sqrt();
        close(full, &shifted.iter().map(|x| x / length).collect::<Vec<_>>(), 1e-6, "standardised");
        let length = norm(raw);
        close(plain, &widened(raw).iter().map(|x| x / length).collect::<Vec<_>>(), 1e-6, "normalised");
    }
    assert_eq!(method.embed_plan(&[1, 2]).unwrap().rows[0].pooled()[0].view, View::Query);
}
