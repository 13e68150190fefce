//! The edges of f32: no input of a healthy or saturated model gives NaN or infinity.

use crate::support::*;
use kernels::Matrix;
use kernels::ops::{self, Activation, AttentionMask, Head, Weight};
use std::sync::Arc;

#[track_caller]
fn assert_finite(tensor: &kernels::Tensor) {
    assert!(values(tensor).iter().all(|x| x.is_finite()), "{:?}", values(tensor));
}

#[test]
fn rms_norm_of_zeros_is_zero() {
    let (x, w) = (var(&[0.0; 8], [2, 4]), var(&[1.0; 4], [4]));
    let y = ops::rms_norm(&x, &w, 1e-6, 0.0).unwrap();
    assert_eq!(values(&y), [0.0; 8]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    // 1 / sqrt(eps), as x = 0 leaves the root alone.
    values(grads.get(&x).unwrap()).iter().for_each(|g| assert!((g - 1000.0).abs() < 1e-2));
    assert_eq!(values(grads.get(&w).unwrap()), [0.0; 4]);
}

#[test]
fn attention_to_one_key_is_its_value() {
    let mut rng = generator(51);
    let (q, k, v) = (uniform(&mut rng, 8), uniform(&mut rng, 8), uniform(&mut rng, 8));
    let (q, k, v_var) = (var(&q, [2, 2, 2]), var(&k, [2, 2, 2]), var(&v, [2, 2, 2]));
    let mut mask = AttentionMask::new();
    mask.push([(1, 2)]).unwrap();
    mask.push([(0, 1)]).unwrap();
    let y = ops::attention(&q, &k, &v_var, None, &spec(mask, 2, None)).unwrap();
    assert_eq!(values(&y), [&v[4..], &v[..4]].concat());
    let grads = backward(&y, &uniform(&mut rng, 8));
    // Nothing at all on the CPU; on a GPU the two sums that cancel are taken in different orders.
    let tolerance = if device().is_cuda() { 1e-6 } else { 0.0 };
    [&q, &k].iter().for_each(|x| assert_close(grads.get(x).unwrap(), &[0.0; 8], |_| tolerance));
}

/// Scores of 1e4 and -1e4 leave one key.
#[test]
fn attention_with_huge_scores_chooses() {
    for softcap in [None, Some(50.0)] {
        let q = var(&[100.0, 0.0, -100.0, 0.0], [2, 1, 2]);
        let (k, v) = (var(&[100.0, 1.0, -100.0, 1.0], [2, 1, 2]), var(&[1.0, 2.0, 3.0, 4.0], [2, 1, 2]));
        let mut mask = AttentionMask::new();
        (0..2).for_each(|_| mask.push([(0, 2)]).unwrap());
        let mut spec = spec(mask, 2, softcap);
        spec.scale = 1.0;
        let y = ops::attention(&q, &k, &v, None, &spec).unwrap();
        assert_eq!(values(&y), [1.0, 2.0, 3.0, 4.0]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        [&q, &k, &v].iter().for_each(|x| assert_finite(grads.get(x).unwrap()));
    }
}

#[test]
fn saturated_gates_have_finite_gradients() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let (gate, up) = (var(&[100.0, -100.0, 1e4, -1e4, 0.0], [1, 5]), var(&[2.0; 5], [1, 5]));
        let y = ops::gated(&gate, &up, activation).unwrap();
        assert_eq!(values(&y), [200.0, 0.0, 2e4, 0.0, 0.0]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&gate).unwrap()), [2.0, 0.0, 2.0, 0.0, 1.0]);
        assert_eq!(values(grads.get(&up).unwrap()), [100.0, 0.0, 1e4, 0.0, 0.0]);
    }
}

/// Logits of 1e4, -1e4 and 0: the loss is the distance to the largest, the gradient that of a certain choice.
#[test]
fn cross_entropy_with_huge_logits_is_finite() {
    let (x, w) = (var(&[100.0, 100.0], [2, 1]), [100.0, -100.0, 0.0]);
    let frozen = Weight::Frozen(Arc::new(Matrix::from_f32(w.to_vec(), 3, 1).unwrap()));
    for weight in [frozen, Weight::Dense(tensor(&w, [3, 1]))] {
        let nll = ops::cross_entropy(&x, &Head { weight: weight.clone(), softcap: None }, &[0, 1]).unwrap();
        assert_eq!(values(&nll), [0.0, 2e4]);
        let grads = nll.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [0.0, 200.0]);
        let capped = ops::cross_entropy(&x, &Head { weight, softcap: Some(30.0) }, &[0, 1]).unwrap();
        assert_finite(&capped);
        let grads = capped.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [0.0, 0.0]);
    }
}

/// 200,000 logits of 0 beside one of 10: each adds 5e-5 to a sum that starts at 1.
#[test]
fn small_terms_of_a_large_vocabulary_are_not_lost() {
    const REST: usize = 200_000;
    let mut weights = vec![0f32; REST + 1];
    weights[0] = 10.0;
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let frozen = Weight::Frozen(Arc::new(Matrix::new(kernels::StorageType::F32, REST + 1, 1, &bytes).unwrap()));
    let sum = 10f64.exp() + REST as f64;
    for weight in [frozen, Weight::Dense(tensor(&weights, [REST + 1, 1]))] {
        let x = var(&[1.0], [1, 1]);
        let nll = ops::cross_entropy(&x, &Head { weight, softcap: None }, &[0]).unwrap();
        assert!((f64::from(values(&nll)[0]) - (sum.ln() - 10.0)).abs() < 1e-6);
        let gradient = values(nll.sum_all().unwrap().backward().unwrap().get(&x).unwrap())[0];
        assert!((f64::from(gradient) + 10.0 * REST as f64 / sum).abs() < 1e-5, "{gradient}");
    }
}
