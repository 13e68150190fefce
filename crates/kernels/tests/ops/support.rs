//! Random cases and comparisons shared by the tests.

use half::{bf16, f16};
use kernels::ops::{AttentionMask, AttentionSpec};
use kernels::{Device, GradStore, KvLayer, Matrix, StorageType, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Half the distance from 1 to the next f32: the relative error of one rounding.
pub(crate) const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

pub(crate) const STORAGE_TYPES: [StorageType; 13] = [
    StorageType::F32,
    StorageType::F16,
    StorageType::BF16,
    StorageType::Q4_0,
    StorageType::Q4_1,
    StorageType::Q5_0,
    StorageType::Q5_1,
    StorageType::Q8_0,
    StorageType::Q2_K,
    StorageType::Q3_K,
    StorageType::Q4_K,
    StorageType::Q5_K,
    StorageType::Q6_K,
];

pub(crate) fn generator(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Numbers of -1..1.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1f32..1.0)).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// What the operations are tested on: the CPU, or with `LAPIDARY_TEST_DEVICE=cuda` the first GPU.
pub(crate) fn device() -> Device {
    match std::env::var("LAPIDARY_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => kernels::cuda_device(0).unwrap(),
        Ok(other) => panic!("LAPIDARY_TEST_DEVICE: expected cpu or cuda, found {other}"),
    }
}

pub(crate) fn tensor<const R: usize>(values: &[f32], shape: [usize; R]) -> Tensor {
    Tensor::from_slice(values, shape.as_slice(), &device()).unwrap()
}

/// The same bits on the CPU. On a GPU, where the order of sums depends on company, the rounding of some hundred terms.
#[track_caller]
pub(crate) fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_same_or_within(1e-5, found, expected, what);
}

/// The same bits on the CPU; on a GPU within a share of the largest number.
#[track_caller]
pub(crate) fn assert_same_or_within(share: f32, found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_same = match device() {
            Device::Cpu => found.to_bits() == expected.to_bits(),
            _ => (found - expected).abs() <= share * largest,
        };
        assert!(is_same, "{what}: number {i}: {found}, expected {expected}");
    }
}

pub(crate) fn var<const R: usize>(values: &[f32], shape: [usize; R]) -> Var {
    Var::from_tensor(&tensor(values, shape)).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A frozen matrix of random bytes, its scales about 0.01 so that numbers stay small.
pub(crate) fn matrix(rng: &mut ChaCha8Rng, storage_type: StorageType, rows: usize, cols: usize) -> Matrix {
    // Byte offsets of the f16 fields in a block.
    let scales: &[usize] = match storage_type {
        StorageType::Q4_0 | StorageType::Q5_0 | StorageType::Q8_0 => &[0],
        StorageType::Q4_1 | StorageType::Q5_1 | StorageType::Q4_K | StorageType::Q5_K => &[0, 2],
        StorageType::Q2_K => &[80, 82],
        StorageType::Q3_K => &[108],
        StorageType::Q6_K => &[208],
        StorageType::F32 | StorageType::F16 | StorageType::BF16 => &[],
    };
    let numbers = uniform(rng, rows * cols);
    let bytes: Vec<u8> = match storage_type {
        StorageType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        StorageType::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        StorageType::BF16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => {
            let mut bytes = vec![0; rows * cols / storage_type.block_size() * storage_type.type_size()];
            rng.fill(bytes.as_mut_slice());
            for block in bytes.chunks_mut(storage_type.type_size()) {
                for at in scales {
                    let scale = f16::from_f32(rng.random_range(-0.01..0.01));
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            bytes
        }
    };
    Matrix::new(storage_type, rows, cols, &bytes).unwrap()
}

/// T queries over `past + T` keys: every query sees its own key and, of those before, all of them or a random half.
pub(crate) fn causal_mask(rng: &mut ChaCha8Rng, past: usize, t: usize, holes: bool) -> AttentionMask {
    let mut mask = AttentionMask::new();
    for query in 0..t {
        let own = (past + query) as u32;
        let keys = (0..own).filter(|_| !holes || rng.random_bool(0.5)).chain([own]);
        mask.push(keys.map(|key| (key, key + 1)).collect::<Vec<_>>()).unwrap();
    }
    mask
}

pub(crate) fn spec(mask: AttentionMask, head_dim: usize, softcap: Option<f32>) -> AttentionSpec {
    AttentionSpec { mask: Arc::new(mask), scale: 1.0 / (head_dim as f32).sqrt(), softcap, bf16: false }
}

/// A layer of `[S, K, H]` keys and values.
pub(crate) fn layer(keys: &[f32], values: &[f32], [kv_heads, head_dim]: [usize; 2]) -> KvLayer {
    let mut layer = KvLayer::new(kv_heads * head_dim);
    let shape = [keys.len() / (kv_heads * head_dim), kv_heads, head_dim];
    layer.append(&tensor(keys, shape), &tensor(values, shape)).unwrap();
    layer
}

/// Every number within its own tolerance.
#[track_caller]
pub(crate) fn assert_close(found: &Tensor, expected: &[f64], tolerance: impl Fn(usize) -> f64) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= tolerance(i), "number {i}: {found}, expected {expected}, tolerance {:e}", tolerance(i));
    }
}

/// Gradients of `sum(y * weights)`.
pub(crate) fn backward(y: &Tensor, weights: &[f32]) -> GradStore {
    let weights = Tensor::from_slice(weights, y.shape(), y.device()).unwrap();
    (y * weights).unwrap().sum_all().unwrap().backward().unwrap()
}

/// `sum(y * weights)`.
pub(crate) fn weighted(y: &[f64], weights: &[f32]) -> f64 {
    y.iter().zip(weights).map(|(y, w)| y * f64::from(*w)).sum()
}

/// The gradient of `var` against central differences of `loss`, for all numbers or some 60 spread ones.
///
/// In f64 the differences are exact to about 1e-9 (step 1e-5: truncation 1e-10, cancellation 1e-11 of the loss), so
/// that what differs is the rounding of f32. A backward is at most three chained sums of some hundred terms, whose
/// errors of 6e-8 per term and whose inner derivatives stay below 2e-5 of the largest gradient.
#[track_caller]
pub(crate) fn check_gradient(grads: &GradStore, var: &Var, loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    let found = values(grads.get(var).expect("a gradient"));
    let mut at = wide(&values(var));
    let stride = at.len().div_ceil(60);
    let mut pairs = Vec::new();
    for i in (0..at.len()).step_by(if stride > 4 { stride | 1 } else { 1 }) {
        let x = at[i];
        at[i] = x + STEP;
        let above = loss(&at);
        at[i] = x - STEP;
        let below = loss(&at);
        at[i] = x;
        pairs.push((i, f64::from(found[i]), (above - below) / (2.0 * STEP)));
    }
    let largest = pairs.iter().fold(0f64, |m, (_, _, expected)| m.max(expected.abs()));
    assert!(largest > 0.0, "the case has no gradient to test");
    for (i, found, expected) in pairs {
        assert!(
            (found - expected).abs() <= 2e-5 * largest,
            "number {i}: {found}, by differences {expected}, of up to {largest}"
        );
    }
}
