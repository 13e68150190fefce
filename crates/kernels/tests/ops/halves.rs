//! Halves of a layer against the operations that they stand for, in the graph.

use crate::support::*;
use kernels::ops::fused::{Map, Norm};
use kernels::ops::halves::{Halves, Heads, ParameterGradients, can_halve};
use kernels::ops::{self, Activation, AttentionSpec, LowRank, RopeTable, Weight};
use kernels::{Matrix, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const EPS: f32 = 1e-5;
const T: usize = 9;
const D: usize = 12;
const HEAD_DIM: usize = 6;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A frozen map with an update of rank 2 at these rows.
struct Adapted {
    weight: Weight,
    a: Var,
    b: Var,
    rows: Arc<ops::Rows>,
}

impl Adapted {
    fn new(rng: &mut ChaCha8Rng, (out, input): (usize, usize), rows: &[u32], packed: bool) -> Self {
        let weight = Matrix::from_f32(uniform(rng, out * input), out, input).unwrap();
        let weight = if packed { weight.to_bf16() } else { weight };
        let (a, b) = (var(&uniform(rng, 2 * input), [2, input]), var(&uniform(rng, 2 * out), [out, 2]));
        Self { weight: Weight::Frozen(Arc::new(weight)), a, b, rows: Arc::new(rows.to_vec().into()) }
    }

    fn update(&self) -> LowRank {
        let (a, b) = (self.a.as_tensor().clone(), self.b.as_tensor().clone());
        LowRank { a, b, scale: 0.5, rows: Arc::clone(&self.rows) }
    }

    fn linear(&self, x: &Tensor) -> Tensor {
        ops::linear(x, &self.weight, None, Some(&self.update())).unwrap()
    }
}

/// Gradients by `x` and by every A and B: those of the plain graph, and those through a half. Sums are taken in other
/// orders: some roundings of numbers of about their magnitude. Where products are of bf16 numbers, a sum that is rounded to
/// eight bits behind may go to the other side, in both passes.
fn compare(x: &Var, maps: &[Adapted], plain: &Tensor, half: &Tensor, gradients: &ParameterGradients) {
    let share = if maps[0].weight.is_packed() { 2e-2 } else { 1e-5 };
    let close = |found: &Tensor, expected: &Tensor, what: &str| {
        let expected = values(expected);
        let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (found, expected) in values(found).iter().zip(&expected) {
            assert!((found - expected).abs() <= share * largest, "{what}: {found}, expected {expected}, of {largest}");
        }
    };
    close(half, plain, "the sum");
    let r = uniform(&mut generator(99), T * D);
    let (wanted, found) = (backward(plain, &r), backward(half, &r));
    close(found.get(x).unwrap(), wanted.get(x).unwrap(), "d x");
    for (i, map) in maps.iter().enumerate() {
        for (name, var) in [("A", &map.a), ("B", &map.b)] {
            assert!(found.get(var).is_none(), "a gradient of {name} in the graph");
            match (gradients.take(var), wanted.get(var)) {
                (Some(found), Some(wanted)) => close(&found, wanted, &format!("d {name} of map {i}")),
                (found, wanted) => assert!(found.is_none() && wanted.is_none(), "d {name} of map {i} on one way only"),
            }
            assert!(gradients.take(var).is_none(), "a gradient twice");
        }
    }
}

fn rows() -> [Vec<u32>; 3] {
    [(0..T as u32).collect(), vec![1, 4, 8], vec![]]
}

#[test]
fn the_attention_half_is_its_operations() {
    let mut rng = generator(81);
    let table = Arc::new(RopeTable::new(&[3, 4, 5, 6, 7, 8, 0, 1, 2], &[1.0, 0.1, 0.01]));
    for (rows, past, softcap, packed) in rows().into_iter().zip([0, 7, 4]).flat_map(|(r, p)| {
        [(None, false), (Some(2.0), false), (None, true)].map(|(cap, packed)| (r.clone(), p, cap, packed))
    }) {
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let maps = [(q, D), (kv, D), (kv, D), (D, q)].map(|size| Adapted::new(&mut rng, size, &rows, packed));
        let (x, w) = (var(&uniform(&mut rng, T * D), [T, D]), tensor(&uniform(&mut rng, D), [D]));
        let numbers = |rng: &mut ChaCha8Rng| uniform(rng, past * kv);
        let cache = Arc::new(layer(&numbers(&mut rng), &numbers(&mut rng), [KV_HEADS, HEAD_DIM]));
        let past = (past > 0).then_some(&cache);
        let mask = causal_mask(&mut rng, past.map_or(0, |past| past.num_tokens()), T, true);
        let spec: AttentionSpec = spec(mask, HEAD_DIM, softcap);
        for rope in [None, Some(&table)] {
            let normed = ops::rms_norm(&x, &w, EPS, 1.0).unwrap();
            let of_heads = |map: &Adapted| map.linear(&normed).reshape((T, (), HEAD_DIM)).unwrap();
            let turned = |x: Tensor| rope.map_or_else(|| x.clone(), |table| ops::rope(&x, table).unwrap());
            let (q, k, v) = (turned(of_heads(&maps[0])), turned(of_heads(&maps[1])), of_heads(&maps[2]));
            let found = ops::attention(&q, &k, &v, past, &spec).unwrap().reshape((T, ())).unwrap();
            let plain = ops::add(&x, &maps[3].linear(&found)).unwrap();
            let updates = maps.each_ref().map(Adapted::update);
            let map = |i: usize| Map { weight: &maps[i].weight, update: Some(&updates[i]) };
            let (norm, gradients) =
                (Norm { weight: &w, eps: EPS, offset: 1.0 }, Arc::new(ParameterGradients::default()));
            let four = std::array::from_fn(map);
            assert!(can_halve(&x, norm, &four) && !can_halve(&x.detach(), norm, &four));
            let heads = Heads { head_dim: HEAD_DIM, rope, past, spec: &spec };
            let mut half = Halves::new(&x, &gradients).unwrap();
            half.attention(norm, &four, heads).unwrap();
            compare(&x, &maps, &plain, &half.end().unwrap(), &gradients);
        }
    }
}

#[test]
fn the_feed_forward_half_is_its_operations() {
    let mut rng = generator(82);
    for (rows, packed) in rows().into_iter().flat_map(|rows| [(rows.clone(), false), (rows, true)]) {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let maps = [(20, D), (20, D), (D, 20)].map(|size| Adapted::new(&mut rng, size, &rows, packed));
            let (x, w) = (var(&uniform(&mut rng, T * D), [T, D]), tensor(&uniform(&mut rng, D), [D]));
            let normed = ops::rms_norm(&x, &w, EPS, 0.0).unwrap();
            let hidden = ops::gated(&maps[0].linear(&normed), &maps[1].linear(&normed), activation).unwrap();
            let plain = ops::add(&x, &maps[2].linear(&hidden)).unwrap();
            let updates = maps.each_ref().map(Adapted::update);
            let three = std::array::from_fn(|i| Map { weight: &maps[i].weight, update: Some(&updates[i]) });
            let (norm, gradients) =
                (Norm { weight: &w, eps: EPS, offset: 0.0 }, Arc::new(ParameterGradients::default()));
            let mut half = Halves::new(&x, &gradients).unwrap();
            half.feed_forward(norm, &three, activation).unwrap();
            compare(&x, &maps, &plain, &half.end().unwrap(), &gradients);
        }
    }
}

/// A layer as one operation, some of whose maps have no update, and updates of several ranks.
#[test]
fn a_layer_of_two_halves_is_its_operations() {
    let mut rng = generator(84);
    for packed in [false, true] {
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let sizes = [(q, D), (kv, D), (kv, D), (D, q), (20, D), (20, D), (D, 20)];
        let mut maps = sizes.map(|size| Adapted::new(&mut rng, size, &[1, 4, 8], packed));
        let (a, b) = (uniform(&mut rng, 3 * D), uniform(&mut rng, 3 * kv));
        (maps[2].a, maps[2].b) = (var(&a, [3, D]), var(&b, [kv, 3]));
        // Keys and the inner map's gate are as they were.
        let updates: Vec<_> = maps.iter().map(Adapted::update).collect();
        let update = |i: usize| if [1, 4].contains(&i) { None } else { Some(&updates[i]) };
        let (x, w) = (var(&uniform(&mut rng, T * D), [T, D]), tensor(&uniform(&mut rng, D), [D]));
        let spec: AttentionSpec = spec(causal_mask(&mut rng, 0, T, true), HEAD_DIM, None);
        let linear = |i: usize, x: &Tensor| ops::linear(x, &maps[i].weight, None, update(i)).unwrap();
        let normed = ops::rms_norm(&x, &w, EPS, 0.0).unwrap();
        let heads = |i: usize| linear(i, &normed).reshape((T, (), HEAD_DIM)).unwrap();
        let found = ops::attention(&heads(0), &heads(1), &heads(2), None, &spec).unwrap().reshape((T, ())).unwrap();
        let between = ops::add(&x, &linear(3, &found)).unwrap();
        let normed = ops::rms_norm(&between, &w, EPS, 0.0).unwrap();
        let hidden = ops::gated(&linear(4, &normed), &linear(5, &normed), Activation::Silu).unwrap();
        let plain = ops::add(&between, &linear(6, &hidden)).unwrap();

        let map = |i: usize| Map { weight: &maps[i].weight, update: update(i) };
        let (norm, gradients) = (Norm { weight: &w, eps: EPS, offset: 0.0 }, Arc::new(ParameterGradients::default()));
        let mut halves = Halves::new(&x, &gradients).unwrap();
        let heads = Heads { head_dim: HEAD_DIM, rope: None, past: None, spec: &spec };
        halves.attention(norm, &std::array::from_fn(map), heads).unwrap();
        halves.feed_forward(norm, &std::array::from_fn(|i| map(4 + i)), Activation::Silu).unwrap();
        compare(&x, &maps, &plain, &halves.end().unwrap(), &gradients);
    }
}

/// The gradient of an update that is used twice is the sum, and one that is computed from something has no place to go.
#[test]
fn updates_are_variables_and_may_be_used_twice() {
    let mut rng = generator(83);
    let maps = [(20, D), (20, D), (D, 20)].map(|size| Adapted::new(&mut rng, size, &[0, 3], false));
    let (x, w) = (var(&uniform(&mut rng, T * D), [T, D]), tensor(&[1.0; D], [D]));
    let updates = maps.each_ref().map(Adapted::update);
    let three: [Map<'_>; 3] = std::array::from_fn(|i| Map { weight: &maps[i].weight, update: Some(&updates[i]) });
    let norm = Norm { weight: &w, eps: EPS, offset: 0.0 };
    let run = |x: &Tensor, gradients: &Arc<ParameterGradients>, times: usize| {
        let mut halves = Halves::new(x, gradients).unwrap();
        (0..times).for_each(|_| halves.feed_forward(norm, &three, Activation::Silu).unwrap());
        halves.end().unwrap()
    };
    let (both, first, second) = (Arc::default(), Arc::default(), Arc::default());
    let r = uniform(&mut rng, T * D);
    let of_both = backward(&run(&x, &both, 2), &r);
    let of_each = backward(&run(&run(&x, &first, 1), &second, 1), &r);
    assert_eq!(values(of_both.get(&x).unwrap()), values(of_each.get(&x).unwrap()));
    for map in &maps {
        let sum = (first.take(&map.a).unwrap() + second.take(&map.a).unwrap()).unwrap();
        assert_close(&both.take(&map.a).unwrap(), &wide(&values(&sum)), |_| 1e-4);
    }
    let computed = LowRank { a: (&updates[0].a * 2.0).unwrap(), ..updates[0].clone() };
    assert!(!can_halve(&x, norm, &[Map { weight: &maps[0].weight, update: Some(&computed) }]));
    let trained = Weight::Dense(var(&uniform(&mut rng, D * D), [D, D]).as_tensor().clone());
    assert!(!can_halve(&x, norm, &[Map { weight: &trained, update: None }]));
}
