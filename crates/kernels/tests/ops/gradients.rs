//! Backward passes against central differences of the definitions, and the absence of gradients of frozen arguments.

use crate::support::*;
use kernels::ops::{self, Activation, Head, LowRank, RopeTable, Weight, reference};
use kernels::{Matrix, StorageType, Tensor};
use std::sync::Arc;

#[test]
fn rms_norm_gradients() {
    let mut rng = generator(11);
    let (t, d, eps) = (3, 13, 1e-3);
    let (x, w, r) = (uniform(&mut rng, t * d), uniform(&mut rng, d), uniform(&mut rng, t * d));
    let (x_var, w_var) = (var(&x, [t, d]), var(&w, [d]));
    let grads = backward(&ops::rms_norm(&x_var, &w_var, eps, 1.0).unwrap(), &r);
    let loss = |x: &[f64], w: &[f64]| weighted(&reference::rms_norm(x, w, f64::from(eps), 1.0), &r);
    check_gradient(&grads, &x_var, |x| loss(x, &wide(&w)));
    check_gradient(&grads, &w_var, |w| loss(&wide(&x), w));
}

#[test]
fn rope_gradient() {
    let mut rng = generator(12);
    let (positions, frequencies) = ([3, 0, 900], [1.0, 0.1, 0.01]);
    let (x, r) = (uniform(&mut rng, 36), uniform(&mut rng, 36));
    let x = var(&x, [3, 2, 6]);
    let y = ops::rope(&x, &Arc::new(RopeTable::new(&positions, &frequencies))).unwrap();
    check_gradient(&backward(&y, &r), &x, |x| weighted(&reference::rope(x, 2, &positions, &frequencies), &r));
}

/// Weights of 3 and of 11 tokens, on either side of the path for few rows; updates at some tokens.
#[test]
fn linear_gradients_of_input_bias_and_update() {
    let mut rng = generator(13);
    for (t, storage_type) in [(3, StorageType::Q4_1), (11, StorageType::BF16), (5, StorageType::Q8_0)] {
        let (out, input, rank, scale) = (9, 32, 2, 2.0);
        let matrix = Arc::new(matrix(&mut rng, storage_type, out, input));
        let w = wide(&matrix.to_f32());
        let rows: Vec<u32> = (0..t as u32).filter(|row| row % 2 == 0).collect();
        let (x, bias, r) = (uniform(&mut rng, t * input), uniform(&mut rng, out), uniform(&mut rng, t * out));
        let (a, b) = (uniform(&mut rng, rank * input), uniform(&mut rng, out * rank));
        let (x_var, bias_var) = (var(&x, [t, input]), var(&bias, [out]));
        let (a_var, b_var) = (var(&a, [rank, input]), var(&b, [out, rank]));
        let update = LowRank {
            a: a_var.as_tensor().clone(),
            b: b_var.as_tensor().clone(),
            scale: scale as f32,
            rows: Arc::new(rows.clone().into()),
        };
        let grads =
            backward(&ops::linear(&x_var, &Weight::Frozen(matrix), Some(&bias_var), Some(&update)).unwrap(), &r);
        let loss = |x: &[f64], bias: &[f64], a: &[f64], b: &[f64]| {
            let update = reference::LowRank { a, b, scale, rows: &rows };
            weighted(&reference::linear(x, &w, input, Some(bias), Some(update)), &r)
        };
        let (x, bias, a, b) = (wide(&x), wide(&bias), wide(&a), wide(&b));
        check_gradient(&grads, &x_var, |x| loss(x, &bias, &a, &b));
        check_gradient(&grads, &bias_var, |bias| loss(&x, bias, &a, &b));
        check_gradient(&grads, &a_var, |a| loss(&x, &bias, a, &b));
        check_gradient(&grads, &b_var, |b| loss(&x, &bias, &a, b));
    }
}

#[test]
fn linear_gradients_of_dense_weights_and_through_several_blocks() {
    let mut rng = generator(14);
    let (t, input, out) = (6, 10, 7);
    let (x, w, r) = (uniform(&mut rng, t * input), uniform(&mut rng, out * input), uniform(&mut rng, t * out));
    let (x_var, w_var) = (var(&x, [t, input]), var(&w, [out, input]));
    let weight = Weight::Dense(w_var.as_tensor().clone());
    let grads = backward(&ops::linear(&x_var, &weight, None, None).unwrap(), &r);
    check_gradient(&grads, &x_var, |x| weighted(&reference::linear(x, &wide(&w), input, None, None), &r));
    check_gradient(&grads, &w_var, |w| weighted(&reference::linear(&wide(&x), w, input, None, None), &r));

    let (t, input, out) = (2, 512, 1100);
    let (x, w, r) = (uniform(&mut rng, t * input), uniform(&mut rng, out * input), uniform(&mut rng, t * out));
    let x_var = var(&x, [t, input]);
    let matrix = Matrix::from_f32(w.clone(), out, input).unwrap();
    let grads = backward(&ops::linear(&x_var, &Weight::Frozen(Arc::new(matrix)), None, None).unwrap(), &r);
    let w = wide(&w);
    check_gradient(&grads, &x_var, |x| weighted(&reference::linear(x, &w, input, None, None), &r));
}

#[test]
fn gated_gradients() {
    let mut rng = generator(15);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate: Vec<f32> = (0..33).map(|i| (i - 16) as f32 / 3.0).collect();
        let (up, r) = (uniform(&mut rng, 33), uniform(&mut rng, 33));
        let (gate_var, up_var) = (var(&gate, [3, 11]), var(&up, [3, 11]));
        let grads = backward(&ops::gated(&gate_var, &up_var, activation).unwrap(), &r);
        check_gradient(&grads, &gate_var, |gate| weighted(&reference::gated(gate, &wide(&up), activation), &r));
        check_gradient(&grads, &up_var, |up| weighted(&reference::gated(&wide(&gate), up, activation), &r));
    }
}

#[test]
fn attention_gradients_with_a_past() {
    let mut rng = generator(16);
    let (t, h) = (6, 5);
    for (past, heads, kv_heads, softcap) in
        [(0, 2, 2, None), (4, 6, 2, None), (4, 3, 1, Some(0.7)), (1, 1, 1, Some(5.0))]
    {
        for holes in [false, true] {
            let (s, width) = (past + t, kv_heads * h);
            let (q, k, v) =
                (uniform(&mut rng, t * heads * h), uniform(&mut rng, s * width), uniform(&mut rng, s * width));
            let r = uniform(&mut rng, t * heads * h);
            let spec = spec(causal_mask(&mut rng, past, t, holes), h, softcap);
            let cut = past * width;
            let q_var = var(&q, [t, heads, h]);
            let (k_var, v_var) = (var(&k[cut..], [t, kv_heads, h]), var(&v[cut..], [t, kv_heads, h]));
            let cache = Arc::new(layer(&k[..cut], &v[..cut], [kv_heads, h]));
            let grads = backward(&ops::attention(&q_var, &k_var, &v_var, Some(&cache), &spec).unwrap(), &r);
            let (q, k, v) = (wide(&q), wide(&k), wide(&v));
            let scale = f64::from(spec.scale);
            let softcap = softcap.map(f64::from);
            let definition = reference::AttentionSpec { mask: &spec.mask, heads, kv_heads, scale, softcap };
            let loss = |q: &[f64], k: &[f64], v: &[f64]| weighted(&reference::attention(q, k, v, &definition), &r);
            let with_past = |past: &[f64], new: &[f64]| [&past[..cut], new].concat();
            check_gradient(&grads, &q_var, |q| loss(q, &k, &v));
            check_gradient(&grads, &k_var, |new| loss(&q, &with_past(&k, new), &v));
            check_gradient(&grads, &v_var, |new| loss(&q, &k, &with_past(&v, new)));
        }
    }
}

#[test]
fn cross_entropy_gradients() {
    let mut rng = generator(17);
    for (m, d, v) in [(1, 5, 3), (6, 11, 40), (2, 7, 1100), (2, 256, 2100)] {
        for softcap in [None, Some(2f32)] {
            let (x, w, r) = (uniform(&mut rng, m * d), uniform(&mut rng, v * d), uniform(&mut rng, m));
            let labels: Vec<u32> = (0..m).map(|i| (i * 1021 % v) as u32).collect();
            let (x_var, w_var) = (var(&x, [m, d]), var(&w, [v, d]));
            let frozen = Weight::Frozen(Arc::new(Matrix::from_f32(w.clone(), v, d).unwrap()));
            let (x, w) = (wide(&x), wide(&w));
            let loss =
                |x: &[f64], w: &[f64]| weighted(&reference::cross_entropy(x, w, &labels, softcap.map(f64::from)), &r);
            let nll = ops::cross_entropy(&x_var, &Head { weight: frozen, softcap }, &labels).unwrap();
            check_gradient(&backward(&nll, &r), &x_var, |x| loss(x, &w));
            if v * d > 1 << 17 {
                continue;
            }
            let dense = Weight::Dense(w_var.as_tensor().clone());
            let grads = backward(&ops::cross_entropy(&x_var, &Head { weight: dense, softcap }, &labels).unwrap(), &r);
            check_gradient(&grads, &x_var, |x| loss(x, &w));
            check_gradient(&grads, &w_var, |w| loss(&x, w));
        }
    }
}

#[test]
fn logits_gradient() {
    let mut rng = generator(18);
    let (m, d, v) = (3, 6, 9);
    let (x, w, r) = (uniform(&mut rng, m * d), uniform(&mut rng, v * d), uniform(&mut rng, m * v));
    let x_var = var(&x, [m, d]);
    let head = Head { weight: Weight::Dense(tensor(&w, [v, d])), softcap: Some(1.5) };
    let grads = backward(&ops::logits(&x_var, &head).unwrap(), &r);
    let w = wide(&w);
    check_gradient(&grads, &x_var, |x| {
        let capped: Vec<f64> = reference::linear(x, &w, d, None, None).iter().map(|l| 1.5 * (l / 1.5).tanh()).collect();
        weighted(&capped, &r)
    });
}

#[test]
fn pool_dropout_sum_and_embedding_gradients() {
    let mut rng = generator(19);
    let (t, d) = (5, 6);
    let (x, special, r) = (uniform(&mut rng, t * d), uniform(&mut rng, 2 * d), uniform(&mut rng, t * d));
    let (x_var, special_var) = (var(&x, [t, d]), var(&special, [2, d]));

    let rows = vec![vec![(4, 1.0)], vec![], vec![(0, 0.5), (1, 0.25), (0, 2.0)]];
    let grads = backward(&ops::pool(&x_var, rows.clone()).unwrap(), &r[..3 * d]);
    check_gradient(&grads, &x_var, |x| weighted(&reference::pool(x, d, &rows), &r));

    let factors: Vec<f32> = (0..t * d).map(|i| if i % 4 == 0 { 0.0 } else { 4.0 / 3.0 }).collect();
    let grads = backward(&ops::dropout(&x_var, Arc::new(factors.clone())).unwrap(), &r);
    check_gradient(&grads, &x_var, |x| weighted(&reference::dropout(x, &factors), &r));

    let other = uniform(&mut rng, t * d);
    let grads = backward(&ops::add(&tensor(&other, [t, d]), &ops::add(&x_var, &x_var).unwrap()).unwrap(), &r);
    check_gradient(&grads, &x_var, |x| weighted(&reference::add(&wide(&other), &reference::add(x, x)), &r));

    let places = vec![(1, 1), (3, 0), (4, 1), (3, 1), (1, 0)];
    let grads = backward(&ops::embed_inputs(&x_var, &special_var, places.clone()).unwrap(), &r);
    check_gradient(&grads, &x_var, |x| weighted(&reference::embed_inputs(x, &wide(&special), d, &places), &r));
    check_gradient(&grads, &special_var, |s| weighted(&reference::embed_inputs(&wide(&x), s, d, &places), &r));

    // Row 2 is taken twice: its gradient is the sum of both.
    let grads = backward(
        &ops::embed_tokens(&Weight::Dense(x_var.as_tensor().clone()), &[2, 0, 2], &device()).unwrap(),
        &r[..3 * d],
    );
    let found = values(grads.get(&x_var).unwrap());
    assert_eq!(found[2 * d..3 * d], std::array::from_fn::<f32, 6, _>(|i| r[i] + r[2 * d + i]));
    assert_eq!(found[..d], r[d..2 * d]);
}

/// Asserts that `build`, with one of its arguments a variable at a time, gives a gradient to that one alone.
fn only_variables_get_gradients<const N: usize>(shapes: [&[usize]; N], build: impl Fn(&[Tensor; N]) -> Tensor) {
    for trained in 0..N {
        let arguments: [Tensor; N] = std::array::from_fn(|i| {
            let mut rng = generator(i as u64);
            let values = uniform(&mut rng, shapes[i].iter().product());
            let constant = Tensor::from_vec(values, shapes[i], &device()).unwrap();
            if i == trained { kernels::Var::from_tensor(&constant).unwrap().into_inner() } else { constant }
        });
        let grads = build(&arguments).sum_all().unwrap().backward().unwrap();
        for (i, argument) in arguments.iter().enumerate() {
            assert_eq!(grads.get(argument).is_some(), i == trained, "argument {i}, variable {trained}");
        }
    }
}

#[test]
fn frozen_arguments_get_no_gradient() {
    let matrix = || Weight::Frozen(Arc::new(Matrix::from_f32(vec![0.5; 12], 3, 4).unwrap()));
    only_variables_get_gradients([&[2, 4], &[4]], |[x, w]| ops::rms_norm(x, w, 1e-6, 0.0).unwrap());
    only_variables_get_gradients([&[2, 4], &[3, 4]], |[x, w]| {
        ops::linear(x, &Weight::Dense(w.clone()), None, None).unwrap()
    });
    only_variables_get_gradients([&[2, 4], &[1, 4], &[3, 1]], |[x, a, b]| {
        let update = LowRank { a: a.clone(), b: b.clone(), scale: 1.0, rows: Arc::new(vec![1].into()) };
        ops::linear(x, &matrix(), None, Some(&update)).unwrap()
    });
    only_variables_get_gradients([&[2, 4], &[2, 4]], |[gate, up]| ops::gated(gate, up, Activation::Silu).unwrap());
    only_variables_get_gradients([&[2, 2, 4], &[2, 1, 4], &[2, 1, 4]], |[q, k, v]| {
        ops::attention(q, k, v, None, &spec(causal_mask(&mut generator(0), 0, 2, false), 4, None)).unwrap()
    });
    only_variables_get_gradients([&[2, 4], &[3, 4]], |[x, w]| {
        let head = Head { weight: Weight::Dense(w.clone()), softcap: None };
        ops::cross_entropy(x, &head, &[0, 2]).unwrap()
    });
    only_variables_get_gradients([&[2, 4], &[1, 4]], |[tokens, special]| {
        ops::embed_inputs(tokens, special, vec![(1, 0)]).unwrap()
    });
}
