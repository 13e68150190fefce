//! What several tests share: golden tensors, a tiny model, rows, comparisons.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kernels::{Device, Tensor, Var};
use lapidary::model::hf::config_from_json;
use lapidary::model::{Adapter, Decoder, ForwardOptions, Kv, LoraConfig, SafetensorsDir, Segment};
use lapidary::train::step::{LossWeights, StepModel, StepOptions, StepResult, step};
use layout::{Input, Layout, LayoutParts, Method, MethodContext, Plan, Rng, Role, TokenId, Visibility};
use rand::{Rng as _, SeedableRng as _};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

pub(crate) use crate::models::real_model;

/// A file or folder under `tests/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// The tensors of a golden file; every type is widened to f64, which holds all of them exactly.
pub(crate) struct Golden(HashMap<String, Vec<f64>>);

impl Golden {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let widen = |dtype, data: &[u8]| -> Vec<f64> {
            match dtype {
                Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                Dtype::I32 => data.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
                Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
                Dtype::I8 => data.iter().map(|b| f64::from(*b as i8)).collect(),
                other => panic!("{other:?}"),
            }
        };
        Self(tensors.iter().map(|(name, view)| (name.to_owned(), widen(view.dtype(), view.data()))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> &[f64] {
        self.0.get(name).unwrap_or_else(|| panic!("no golden tensor {name}"))
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<TokenId> {
        self.get(name).iter().map(|id| *id as TokenId).collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Every number within `tolerance`.
pub(crate) fn close(found: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), want.len(), "{what}: count");
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        let error = (f64::from(*found) - want).abs();
        assert!(error <= tolerance, "{what}: number {i}: {found} against {want}, off by {error:.2e} > {tolerance:.2e}");
    }
}

/// Every number within `relative` times the largest magnitude of `want`.
pub(crate) fn close_to_largest(found: &[f32], want: &[f64], relative: f64, what: &str) {
    let largest = want.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    close(found, want, relative * largest, what);
}

pub(crate) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

pub(crate) fn close_to_each_other(found: &[f32], want: &[f32], relative: f64, what: &str) {
    close_to_largest(found, &widened(want), relative, what);
}

pub(crate) fn scalar_close(found: f64, want: f64, relative: f64, what: &str) {
    let error = (found - want).abs();
    assert!(error <= relative * want.abs(), "{what}: {found} against {want}, off by {error:.2e}");
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

/// What tiny models run on: the CPU, or with `LAPIDARY_TEST_DEVICE=cuda` the first GPU.
pub(crate) fn device() -> Device {
    match std::env::var("LAPIDARY_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => lapidary::cuda_device(0).unwrap(),
        Ok(other) => panic!("LAPIDARY_TEST_DEVICE: expected cpu or cuda, found {other}"),
    }
}

/// The model of a folder with `config.json` and weights.
pub(crate) fn decoder(folder: &Path, config: &str) -> Decoder {
    let config = config_from_json(&std::fs::read_to_string(folder.join(config)).unwrap()).unwrap();
    let mut decoder = Decoder::load(config, &SafetensorsDir::open(folder).unwrap()).unwrap();
    decoder.to_device(&device()).unwrap();
    decoder
}

/// A random Llama of two layers and 97 tokens.
pub(crate) fn tiny() -> Decoder {
    decoder(&golden("gem_tiny"), "config.json")
}

/// Settings of GEM for tests: `changes` over three special tokens.
pub(crate) fn gem(changes: Value) -> Box<dyn Method + Send + Sync> {
    let mut settings = serde_json::json!({ "num_special_tokens": 3 });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    let context = MethodContext { encode: &|_| vec![5, 6, 7], bos: Some(1) };
    layout::build("gem", settings, &context).unwrap()
}

/// A causal row without special tokens; with `labels` every position predicts the next token.
pub(crate) fn plain_row(ids: &[TokenId], labels: bool) -> Layout {
    let next = ids.iter().skip(1).map(|id| labels.then_some(*id)).chain([None]);
    Layout::new(LayoutParts {
        inputs: ids.iter().map(|id| Input::Token(*id)).collect(),
        roles: vec![Role::Plain; ids.len()],
        positions: (0..ids.len() as u32).collect(),
        labels: next.collect(),
        adapted: vec![false; ids.len()],
        visibility: Visibility::default(),
        pooled: Vec::new(),
    })
    .unwrap()
}

/// Token ids of 4 to 96.
pub(crate) fn random_ids(count: usize, seed: u64) -> Vec<TokenId> {
    let mut rng = Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(4..97)).collect()
}

/// Special rows, and (with `lora`) an update whose B is not zero, so that every gradient has a way.
pub(crate) fn adapter(decoder: &Decoder, lora: bool, num_special: usize) -> Adapter {
    let mut rng = Rng::seed_from_u64(3);
    let d = decoder.config().hidden_size;
    let special: Vec<Vec<f32>> =
        (0..num_special).map(|_| (0..d).map(|_| rng.random_range(-0.5..0.5)).collect()).collect();
    let config = lora.then(|| LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() });
    let adapter = Adapter::new(decoder, config, &special, &mut rng).unwrap();
    for (name, var) in adapter.lora_vars().iter().filter(|(name, _)| name.ends_with("lora_B.weight")) {
        let numbers: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-0.05..0.05)).collect();
        assert!(!name.is_empty());
        var.set(&Tensor::from_vec(numbers, var.dims(), var.device()).unwrap()).unwrap();
    }
    adapter
}

/// The variables of an adapter with their names, special rows last.
pub(crate) fn adapter_vars(adapter: &Adapter) -> Vec<(String, Var)> {
    let special = adapter.special_var().map(|var| ("special_tokens".to_owned(), var.clone()));
    adapter.lora_vars().into_iter().chain(special).collect()
}

/// Hidden states of rows packed in one segment, `[T, D]` row by row.
pub(crate) fn hidden(decoder: &Decoder, rows: &[&Layout], adapter: Option<&Adapter>) -> Vec<f32> {
    let view = adapter.map(|adapter| adapter.view(false));
    let options = ForwardOptions { adapter: view.as_ref(), ..ForwardOptions::default() };
    values(&decoder.forward(&Segment::whole(rows.iter().copied()), Kv::None, options).unwrap())
}

/// A step over plans with the variables `vars`.
pub(crate) fn run_step(
    decoder: &Decoder,
    adapter: &Adapter,
    vars: &[(String, Var)],
    plans: &[Plan],
    (weights, options): (LossWeights, StepOptions),
) -> StepResult {
    let vars: Vec<Var> = vars.iter().map(|(_, var)| var.clone()).collect();
    step(&StepModel { decoder, prefix: decoder, adapter, vars: &vars }, plans, &weights, &options).unwrap()
}

/// Everything with a graph, in one go.
pub(crate) const WHOLE: StepOptions =
    StepOptions { micro_batch_tokens: usize::MAX, split_frozen: false, hidden_dropout: 0.0, dropout_seed: 0 };
