//! GEM against an independent PyTorch implementation: masks, forward passes, and one whole training step.
//!
//! `golden/gem_tiny` is a random Llama of two layers, `golden/gem_smollm2` the dequantised default model; each
//! `golden.json` names the conventions. The rows here are built position by position from the golden tensors, so that
//! nothing is taken on trust from the method that is tested elsewhere.

use std::path::Path;

use kernels::{AdamW, Tensor, Var};
use lapidary::model::{Adapter, BaseModel, Decoder, LoraConfig, ModelFiles};
use lapidary::train::optimizer::{self, Group, Param};
use lapidary::train::step::{LossWeights, StepResult};
use layout::{Cut, Input, Layout, LayoutParts, Plan, Pooled, Rng, Role, TokenId, View, Visibility};
use rand::SeedableRng as _;
use serde_json::Value;

use crate::common::{
    Golden, WHOLE, adapter_vars, close, close_to_largest, decoder, golden, hidden, norm, real_model, run_step,
    scalar_close, values,
};

const CASES: [&str; 5] = ["raw", "gem_k1", "gem_k5", "emb_k3", "gem_k3_ecausal"];
const MODULES: [(&str, &str); 7] = [
    ("q", "self_attn.q_proj"),
    ("k", "self_attn.k_proj"),
    ("v", "self_attn.v_proj"),
    ("o", "self_attn.o_proj"),
    ("gate", "mlp.gate_proj"),
    ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
];

/// Golden values and how near they must be met, as shares of the largest number of each tensor.
struct Reference {
    tensors: Golden,
    meta: Value,
    forward: f64,
    gradient: f64,
}

impl Reference {
    fn read(folder: &Path, forward: f64, gradient: f64) -> Self {
        let meta = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let tensors = Golden::read(&folder.join("golden.safetensors"));
        Self { tensors, meta: serde_json::from_str(&meta).unwrap(), forward, gradient }
    }

    fn ids(&self, field: &str) -> Vec<Vec<TokenId>> {
        serde_json::from_value(self.meta[field].clone()).unwrap()
    }

    /// The special rows, `[5, D]`, from the formula; the stored ones were written by it in f32.
    fn special(&self, decoder: &Decoder) -> Vec<Vec<f32>> {
        let mean = decoder.mean_token_embedding().unwrap();
        let row = |j: usize| (0..mean.len()).map(move |i| 0.01 * (0.1 * ((i + 1) * (j + 1)) as f32).sin());
        let special: Vec<Vec<f32>> =
            (0..5).map(|j| row(j).zip(&mean).map(|(wave, mean)| mean + wave).collect()).collect();
        close(&special.concat(), self.tensors.get("E"), 1e-6, "E");
        let d = mean.len();
        self.tensors.get("E").chunks(d).map(|row| row.iter().map(|x| *x as f32).collect()).collect()
    }

    fn norm(&self, pointer: &str) -> f64 {
        self.meta.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer}"))
    }
}

/// `[prefix] [E] * k [suffix]`; the last `[E]` predicts the suffix.
struct Row<'a> {
    prefix: &'a [TokenId],
    k: u32,
    suffix: &'a [TokenId],
    special_sees_special: bool,
    view: Option<View>,
    labels: bool,
}

impl Row<'_> {
    fn layout(&self) -> Layout {
        let n = self.prefix.len() as u32;
        let len = n + self.k + self.suffix.len() as u32;
        let token = |id: &TokenId| Input::Token(*id);
        let inputs: Vec<Input> = (self.prefix.iter().map(token))
            .chain((0..self.k).map(Input::Special))
            .chain(self.suffix.iter().map(token))
            .collect();
        let role = |t: u32| {
            if t < n {
                Role::Prefix
            } else if t < n + self.k {
                Role::Special
            } else {
                Role::Suffix
            }
        };
        let label = |next: Option<&Input>| match next {
            Some(Input::Token(id)) if self.labels => Some(*id),
            _ => None,
        };
        let mut cuts = Vec::new();
        if !self.special_sees_special {
            cuts.extend((n + 1..n + self.k).map(|query| Cut { queries: query..query + 1, keys: n..query }));
        }
        if !self.suffix.is_empty() && n > 0 && self.k > 0 {
            cuts.push(Cut { queries: n + self.k..len, keys: 0..n });
        }
        Layout::new(LayoutParts {
            labels: (1..=inputs.len()).map(|next| label(inputs.get(next))).collect(),
            inputs,
            roles: (0..len).map(role).collect(),
            positions: (0..len).collect(),
            adapted: vec![true; len as usize],
            visibility: Visibility { cuts, ..Visibility::default() },
            pooled: self.view.map(|view| Pooled::mean(view, n..n + self.k)).into_iter().collect(),
        })
        .unwrap()
    }
}

/// The row of a forward case, and a check that its parts say what the golden tensors say.
fn case_row(tensors: &Golden, name: &str) -> Layout {
    let get = |part: &str| tensors.get(&format!("{name}.{part}"));
    let ids: Vec<i64> = get("ids").iter().map(|id| *id as i64).collect();
    let of_segment = |segment: f64| -> Vec<TokenId> {
        get("seg").iter().zip(&ids).filter(|(s, _)| **s == segment).map(|(_, id)| *id as TokenId).collect()
    };
    let k = get("seg").iter().filter(|s| **s == 1.0).count() as u32;
    let (prefix, suffix) = (of_segment(0.0), of_segment(2.0));
    let row = Row {
        prefix: &prefix,
        k,
        suffix: &suffix,
        special_sees_special: name.ends_with("ecausal"),
        view: (k > 0).then_some(View::Query),
        labels: true,
    };
    let layout = row.layout();
    let n = layout.num_tokens() as u32;
    let input = |input: &Input| match input {
        Input::Token(id) => i64::from(*id),
        Input::Special(j) => -1 - i64::from(*j),
        Input::Soft { .. } => panic!("the reference has no soft inputs"),
    };
    assert_eq!(layout.inputs().iter().map(input).collect::<Vec<_>>(), ids);
    assert_eq!(layout.positions().iter().map(|p| f64::from(*p)).collect::<Vec<_>>(), get("pos"));
    assert_eq!(layout.labels().iter().map(|l| l.map_or(-100.0, f64::from)).collect::<Vec<_>>(), get("tgt"));
    let allowed = (0..n).flat_map(|query| (0..n).map(move |key| (query, key)));
    let mask: Vec<f64> =
        allowed.map(|(query, key)| f64::from(u8::from(layout.visibility().allows(query, key)))).collect();
    assert_eq!(mask, get("mask"), "{name}: mask");
    layout
}

fn forward_cases(decoder: &Decoder, reference: &Reference) {
    let special = reference.special(decoder);
    let adapter = Adapter::new(decoder, None, &special, &mut Rng::seed_from_u64(0)).unwrap();
    let d = decoder.config().hidden_size;
    for name in CASES {
        let tensors = &reference.tensors;
        let get = |part: &str| tensors.get(&format!("{name}.{part}"));
        let check = |found: &[f32], part: &str| {
            close_to_largest(found, get(part), reference.forward, &format!("{name}.{part}"))
        };
        let row = case_row(tensors, name);
        let states = hidden(decoder, &[&row], Some(&adapter));
        let rows: Vec<&[f32]> = states.chunks(d).collect();
        let at: Vec<usize> = get("logit_pos").iter().map(|at| *at as usize).collect();
        check(&at.iter().flat_map(|t| rows[*t].to_vec()).collect::<Vec<_>>(), "hidden_at");
        let hidden = Tensor::from_vec(states.clone(), (rows.len(), d), decoder.device()).unwrap();
        let logits: Vec<Vec<f32>> = decoder.logits(&hidden).unwrap().to_vec2().unwrap();
        let first = |t: &usize| logits[*t][..512.min(logits[*t].len())].to_vec();
        check(&at.iter().flat_map(first).collect::<Vec<_>>(), "logits_first512");
        let logsumexp = |logits: &Vec<f32>| logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
        check(&logits.iter().map(logsumexp).collect::<Vec<_>>(), "logsumexp");
        let labelled: Vec<usize> = (0..rows.len()).filter(|t| row.labels()[*t].is_some()).collect();
        let labels: Vec<TokenId> = row.labels().iter().flatten().copied().collect();
        let chosen = Tensor::from_vec(
            labelled.iter().flat_map(|t| rows[*t].to_vec()).collect::<Vec<_>>(),
            (labels.len(), d),
            decoder.device(),
        )
        .unwrap();
        let nll = values(&decoder.cross_entropy(&chosen, &labels).unwrap());
        check(&nll, "token_nll");
        scalar_close(
            nll.iter().map(|x| f64::from(*x)).sum::<f64>() / nll.len() as f64,
            get("ntp")[0],
            reference.forward,
            &format!("{name}.ntp"),
        );
        if !row.pooled().is_empty() {
            let special: Vec<&[f32]> =
                (0..rows.len()).filter(|t| row.roles()[*t] == Role::Special).map(|t| rows[t]).collect();
            check(&special.concat(), "E_hidden");
            let mean: Vec<f32> =
                (0..d).map(|i| special.iter().map(|row| row[i]).sum::<f32>() / special.len() as f32).collect();
            check(&mean, "embedding");
        }
    }
}

/// Three next-token rows; four texts, each with its positive: the text without every fourth token.
fn step_plans(reference: &Reference) -> Vec<Plan> {
    let (ids, dropped) = (reference.ids("ids"), reference.ids("step.drop_ids"));
    let row = |prefix: &[TokenId], k, suffix: &[TokenId], view: Option<View>| {
        Row { prefix, k, suffix, special_sees_special: false, view, labels: view.is_none() }.layout()
    };
    let mut plans = vec![
        Plan { rows: vec![row(&ids[0], 0, &[], None)] },
        Plan { rows: vec![row(&ids[1][..8], 3, &ids[1][8..], None)] },
        Plan { rows: vec![row(&ids[2][..9], 3, &ids[2][9..], None)] },
    ];
    plans.extend(ids.iter().zip(&dropped).map(|(text, positive)| Plan {
        rows: vec![row(text, 3, &[], Some(View::Query)), row(positive, 3, &[], Some(View::Positive))],
    }));
    plans
}

fn weights(alpha: f64) -> LossWeights<'static> {
    LossWeights { next_token: 1.0 - alpha, contrastive: alpha, alignment: 0.0, scale: 20.0, similarity: None }
}

/// Numbers of the variable called `name`.
fn gradient(result: &StepResult, vars: &[(String, Var)], name: &str) -> Vec<f32> {
    let at = vars.iter().position(|(found, _)| found == name).unwrap_or_else(|| panic!("no variable {name}"));
    values(result.gradients[at].as_ref().unwrap_or_else(|| panic!("{name} has no gradient")))
}

fn check_losses(result: &StepResult, [next_token, contrastive, loss]: [f64; 3], reference: &Reference) {
    scalar_close(result.next_token, next_token, reference.forward, "ntp");
    // Similarities near 1 are multiplied by 20: an error of theirs is that much larger in the loss.
    assert!(
        (result.contrastive - contrastive).abs() < 20.0 * reference.forward,
        "cl: {} against {contrastive}",
        result.contrastive
    );
    let found = 0.7 * result.next_token + 0.3 * result.contrastive;
    assert!((found - loss).abs() < 6.0 * reference.forward * (1.0 + loss), "loss: {found} against {loss}");
}

/// Vectors, similarities, losses, and the gradient of the special rows; then AdamW on them.
fn special_rows_step(decoder: &Decoder, reference: &Reference) {
    let adapter = Adapter::new(decoder, None, &reference.special(decoder), &mut Rng::seed_from_u64(0)).unwrap();
    let (plans, vars) = (step_plans(reference), adapter_vars(&adapter));
    let get = |name: &str| reference.tensors.get(name);
    let d = decoder.config().hidden_size;
    let vectors = |view: usize| -> Vec<f32> {
        let row = |plan: &Plan| {
            let states = hidden(decoder, &[&plan.rows[view]], Some(&adapter));
            (0..d).map(|i| states.chunks(d).rev().take(3).map(|row| row[i]).sum::<f32>() / 3.0).collect::<Vec<f32>>()
        };
        plans[3..].iter().flat_map(row).collect()
    };
    let (za, zp) = (vectors(0), vectors(1));
    close_to_largest(&za, get("step.za"), reference.forward, "za");
    close_to_largest(&zp, get("step.zp"), reference.forward, "zp");
    let cosine =
        |a: &[f32], b: &[f32]| (a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / norm(a) / norm(b)) as f32;
    let similarities: Vec<f32> = za.chunks(d).flat_map(|a| zp.chunks(d).map(move |p| cosine(a, p))).collect();
    close(&similarities, get("step.sim"), reference.forward, "sim");
    for (alpha, name) in [(0.0, "step.grad_E.ntp_only"), (1.0, "step.grad_E.cl_only"), (0.3, "step.grad_E")] {
        let result = run_step(decoder, &adapter, &vars, &plans, (weights(alpha), WHOLE));
        let losses = ["step.ntp", "step.cl", "step.loss"].map(|name| get(name)[0]);
        if alpha == 0.0 {
            // A contrastive loss without weight is not computed.
            assert!(result.contrastive.is_nan());
            scalar_close(result.next_token, losses[0], reference.forward, "ntp");
        } else if alpha == 1.0 {
            // Nor do rows run that carry nothing but labels of a next-token loss without weight.
            assert!(result.next_token.is_nan());
            scalar_close(result.contrastive, losses[1], reference.forward, "cl");
        } else {
            check_losses(&result, losses, reference);
        }
        let found = gradient(&result, &vars, "special_tokens");
        close_to_largest(&found, get(name), reference.gradient, name);
        if alpha == 0.3 {
            let mut params = [Param::new("special_tokens".into(), Group::Special, vars[0].1.clone())];
            let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
            optimizer::step(&mut params, &result.gradients, (1, 0.0, f64::INFINITY), |_| (adamw, 1e-3)).unwrap();
            // The first step moves a number by the rate times g / (|g| + eps): up to 2e-3 apart where g is near 0.
            let (want, moved) = (get("step.E_after_adamw"), values(&vars[0].1));
            let large = |i: &usize| {
                get(name)[*i].abs() > 1e-3 * found.iter().fold(0.0, |a: f64, b| a.max(f64::from(b.abs())))
                    || get(name)[*i] == 0.0
            };
            let at: Vec<usize> = (0..want.len()).filter(large).collect();
            assert!(at.len() * 10 > want.len() * 9, "{} of {} numbers are compared", at.len(), want.len());
            let pick = |values: &[f32]| at.iter().map(|i| values[*i]).collect::<Vec<_>>();
            close(&pick(&moved), &at.iter().map(|i| want[*i]).collect::<Vec<_>>(), 2e-6, "E after AdamW");
        }
    }
}

fn lora_step(decoder: &Decoder, reference: &Reference, probes: &[usize]) {
    let config = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let adapter = Adapter::new(decoder, Some(config), &reference.special(decoder), &mut Rng::seed_from_u64(0)).unwrap();
    for (name, var) in adapter.lora_vars() {
        let (rows, cols) = (var.dims()[0], var.dims()[1]);
        let number = |i: usize| {
            let (row, col) = ((i / cols) as f32, (i % cols) as f32);
            if name.ends_with("lora_A.weight") {
                0.02 * (row + 1.0 + 0.37 * col).sin()
            } else {
                0.01 * (0.11 * row + col).cos()
            }
        };
        var.set(
            &Tensor::from_vec((0..rows * cols).map(number).collect::<Vec<f32>>(), (rows, cols), var.device()).unwrap(),
        )
        .unwrap();
    }
    let (plans, vars) = (step_plans(reference), adapter_vars(&adapter));
    let result = run_step(decoder, &adapter, &vars, &plans, (weights(0.3), WHOLE));
    check_losses(&result, ["/lora/ntp", "/lora/cl", "/lora/loss"].map(|at| reference.norm(at)), reference);
    let d = decoder.config().hidden_size;
    let vector = |plan: &Plan| {
        let states = hidden(decoder, &[&plan.rows[0]], Some(&adapter));
        (0..d).map(|i| states.chunks(d).rev().take(3).map(|row| row[i]).sum::<f32>() / 3.0).collect::<Vec<f32>>()
    };
    close_to_largest(
        &plans[3..].iter().flat_map(vector).collect::<Vec<_>>(),
        reference.tensors.get("lora.za"),
        reference.forward,
        "lora.za",
    );
    for layer in probes {
        for (short, module) in MODULES {
            for part in ["A", "B"] {
                let found = norm(&gradient(
                    &result,
                    &vars,
                    &format!("base_model.model.model.layers.{layer}.{module}.lora_{part}.weight"),
                ));
                let want = reference.norm(&format!("/lora/grad_norms/{layer}.{short}.{part}"));
                scalar_close(found, want, reference.gradient, &format!("LoRA {layer}.{short}.{part}"));
            }
        }
    }
    scalar_close(
        norm(&gradient(&result, &vars, "special_tokens")),
        reference.norm("/lora/grad_norms/E"),
        reference.gradient,
        "LoRA E",
    );
}

fn full_step(decoder: &mut Decoder, reference: &Reference, probes: &[usize]) {
    let special = reference.special(decoder);
    let adapter = Adapter::new(decoder, None, &special, &mut Rng::seed_from_u64(0)).unwrap();
    let mut vars = decoder.make_trainable().unwrap();
    vars.extend(adapter_vars(&adapter));
    let result = run_step(decoder, &adapter, &vars, &step_plans(reference), (weights(0.3), WHOLE));
    let check = |name: &str, key: &str| {
        let found = gradient(&result, &vars, name);
        let want = reference.meta["step.grad_norms"][key].as_f64().unwrap();
        scalar_close(norm(&found), want, reference.gradient, key);
        found
    };
    check("special_tokens", "E");
    check("model.embed_tokens.weight", "emb(tied)");
    check("model.norm.weight", "final_norm");
    for layer in probes {
        check(&format!("model.layers.{layer}.input_layernorm.weight"), &format!("{layer}.norm1"));
        check(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &format!("{layer}.norm2"));
        for (short, module) in MODULES {
            let name = format!("model.layers.{layer}.{module}.weight");
            let found = check(&name, &format!("{layer}.{short}"));
            let cols = vars.iter().find(|(found, _)| *found == name).unwrap().1.dims()[1];
            let corner: Vec<f32> = found.chunks(cols).take(4).flat_map(|row| row[..8].to_vec()).collect();
            // The corner may hold small numbers only: its error is a share of the whole gradient's largest number.
            let largest = found.iter().fold(0.0, |a: f64, b| a.max(f64::from(b.abs())));
            let key = format!("step.grad.{layer}.{short}[:4,:8]");
            close(&corner, reference.tensors.get(&key), reference.gradient * largest, &key);
        }
    }
    let global = optimizer::global_norm(&result.gradients).unwrap();
    scalar_close(
        global,
        reference.meta["step.grad_norms"]["global"].as_f64().unwrap(),
        reference.gradient,
        "global norm",
    );
}

/// f32 on both sides, two layers.
fn tiny_reference() -> (Decoder, Reference) {
    let folder = golden("gem_tiny");
    (decoder(&folder, "config.json"), Reference::read(&folder, 1e-5, 5e-5))
}

/// Thirty layers add up rounding in f32; the weights are quantised here and widened beforehand there, which is exact.
fn real_reference() -> (Decoder, Reference) {
    let base = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap();
    (base.decoder, Reference::read(&golden("gem_smollm2"), 2e-5, 1e-3))
}

#[test]
fn tiny_forward() {
    let (decoder, reference) = tiny_reference();
    forward_cases(&decoder, &reference);
}

#[test]
fn tiny_step() {
    let (mut decoder, reference) = tiny_reference();
    special_rows_step(&decoder, &reference);
    lora_step(&decoder, &reference, &[0, 1]);
    full_step(&mut decoder, &reference, &[0, 1]);
}

#[test]
fn real_forward() {
    let (decoder, reference) = real_reference();
    forward_cases(&decoder, &reference);
}

#[test]
fn real_special_rows_step() {
    let (decoder, reference) = real_reference();
    special_rows_step(&decoder, &reference);
}

#[test]
fn real_lora_step() {
    let (decoder, reference) = real_reference();
    lora_step(&decoder, &reference, &[0, 14, 29]);
}

#[test]
fn real_full_step() {
    let (mut decoder, reference) = real_reference();
    full_step(&mut decoder, &reference, &[0, 14, 29]);
}
