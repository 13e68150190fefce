//! All layers for a few tokens in one launch against the operations that it stands for, one by one in f32.

use crate::support::*;
use half::bf16;
use kernels::ops::few_rows::{Layer, Spec, can_run, run};
use kernels::ops::{self, Activation, AttentionMask, AttentionSpec, RopeTable, Weight};
use kernels::{KvLayer, Matrix, Tensor};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::sync::Arc;

const NUM_LAYERS: usize = 3;

struct Sizes {
    d: usize,
    f: usize,
    heads: (usize, usize, usize),
}

/// Weights that bf16 holds exactly, packed as bf16 and as f32.
struct Weights {
    packed: [Weight; 7],
    plain: [Weight; 7],
    norms: [Tensor; 2],
}

impl Weights {
    fn new(rng: &mut ChaCha8Rng, Sizes { d, f, heads: (n, k, h) }: &Sizes) -> Self {
        let shapes = [(n * h, *d), (k * h, *d), (k * h, *d), (*d, n * h), (*f, *d), (*f, *d), (*d, *f)];
        let matrices = shapes.map(|(out, input)| {
            // Outputs about as large as inputs: scores of hundreds would turn roundings into differences.
            let scale = (3.0 / input as f32).sqrt();
            let numbers = uniform(rng, out * input).into_iter().map(|x| bf16::from_f32(scale * x).to_f32()).collect();
            Matrix::from_f32(numbers, out, input).unwrap()
        });
        let norms = [(); 2].map(|()| {
            let numbers: Vec<f32> = uniform(rng, *d).into_iter().map(|x| 1.0 + 0.2 * x).collect();
            tensor(&numbers, [*d])
        });
        let packed = matrices.each_ref().map(|matrix| Weight::Frozen(Arc::new(matrix.to_bf16())));
        Self { packed, plain: matrices.map(|matrix| Weight::Frozen(Arc::new(matrix))), norms }
    }
}

/// Angles, where a layer has any, and mask of each layer.
type Kinds = [(Option<Arc<RopeTable>>, Arc<AttentionMask>); NUM_LAYERS];

/// The layers' operations one by one.
fn by_operations(
    x: &Tensor,
    spec: &Spec,
    layers: &[Weights],
    kinds: &Kinds,
    (kept, places): (&mut [KvLayer], &[Range<usize>]),
) -> Tensor {
    let (t, (_, kv_heads, h)) = (x.dims()[0], spec.heads);
    let mut x = x.clone();
    for ((weights, (table, mask)), kv) in layers.iter().zip(kinds).zip(kept) {
        let attention = AttentionSpec { mask: Arc::clone(mask), scale: spec.scale, softcap: spec.softcap, bf16: false };
        let linear = |x: &Tensor, map: usize| ops::linear(x, &weights.plain[map], None, None).unwrap();
        let normed = ops::rms_norm(&x, &weights.norms[0], spec.eps, spec.offset).unwrap();
        let heads = |map| linear(&normed, map).reshape((t, (), h)).unwrap();
        let turned = |x: Tensor| table.as_ref().map_or(x.clone(), |table| ops::rope(&x, table).unwrap());
        let (q, k) = (turned(heads(0)), turned(heads(1)));
        kv.write(places, &k, &heads(2)).unwrap();
        let found = ops::attention_cached(&q, kv, kv_heads, &attention).unwrap().reshape((t, ())).unwrap();
        x = ops::add(&x, &linear(&found, 3)).unwrap();
        let normed = ops::rms_norm(&x, &weights.norms[1], spec.eps, spec.offset).unwrap();
        let hidden = ops::gated(&linear(&normed, 4), &linear(&normed, 5), spec.activation).unwrap();
        x = ops::add(&x, &linear(&hidden, 6)).unwrap();
    }
    x
}

/// Behind so many keys: a mask of pages in another order than theirs, the own key behind or among them, and one of the last
/// pages alone; angles of two frequencies, and a layer without any.
fn kinds(places: &[Range<usize>], num_keys: u32, h: usize) -> Kinds {
    let (mut all, mut near) = (AttentionMask::new(), AttentionMask::new());
    for place in places.iter().cloned().flatten() {
        let own = (place as u32, place as u32 + 1);
        all.push([(num_keys / 2, num_keys), (2, num_keys / 2), own]).unwrap();
        near.push([(num_keys - 2, num_keys), own]).unwrap();
    }
    let positions: Vec<u32> = (0..all.num_queries() as u32).map(|i| 40 + 3 * i).collect();
    let table = |base: f64| {
        let frequencies: Vec<f64> = (0..h / 2).map(|i| base.powi(i as i32)).collect();
        Some(Arc::new(RopeTable::new(&positions, &frequencies)))
    };
    let all = Arc::new(all);
    [(table(0.7), Arc::clone(&all)), (None, Arc::new(near)), (table(0.9), all)]
}

/// Places of t tokens behind so many keys: past them, with a gap, and the last among them.
fn places(t: usize, num_keys: usize) -> Vec<Range<usize>> {
    if t == 1 { std::iter::once(num_keys..num_keys + 1).collect() } else { vec![num_keys + 3..num_keys + 2 + t, 1..2] }
}

fn compare(sizes: &Sizes, t: usize, num_keys: usize, (softcap, activation): (Option<f32>, Activation)) {
    let (mut rng, (n, k, h)) = (generator(91), sizes.heads);
    let spec =
        Spec { heads: sizes.heads, eps: 1e-5, offset: 0.25, scale: 1.0 / (h as f32).sqrt(), softcap, activation };
    let layers: Vec<Weights> = (0..NUM_LAYERS).map(|_| Weights::new(&mut rng, sizes)).collect();
    let x = tensor(&uniform(&mut rng, t * sizes.d), [t, sizes.d]);
    let places = places(t, num_keys);
    let kinds = kinds(&places, num_keys as u32, h);
    let mut expected_kv: Vec<KvLayer> = (0..NUM_LAYERS)
        .map(|_| layer(&uniform(&mut rng, num_keys * k * h), &uniform(&mut rng, num_keys * k * h), [k, h]))
        .collect();
    let mut kv = expected_kv.clone();
    let in_one = kv.iter_mut().zip(&layers).zip(&kinds).map(|((kv, weights), (table, mask))| Layer {
        norms: weights.norms.each_ref(),
        maps: weights.packed.each_ref(),
        rope: table.as_deref(),
        mask,
        kv,
    });
    let in_one: Vec<Layer<'_>> = in_one.collect();
    let can = can_run(&x, &spec, in_one.iter().map(|layer| layer.maps));
    assert_eq!(can, device().is_cuda(), "{t} tokens, {n} heads of {h}");
    let found = run(&x, &spec, in_one, &places);
    let expected = by_operations(&x, &spec, &layers, &kinds, (&mut expected_kv, &places));
    if !can {
        assert!(found.unwrap_err().to_string().contains("can_run"));
        return;
    }
    // Three layers of sums of hundreds of terms in two orders: a few hundred roundings of the largest.
    assert_same_or_within(5e-5, &values(&found.unwrap()), &values(&expected), &format!("{t} tokens of {}", sizes.d));
    for (kv, expected) in kv.iter().zip(&expected_kv) {
        let ((keys, values), expected) = (kv.numbers().unwrap(), expected.numbers().unwrap());
        assert_same_or_within(5e-5, &keys, &expected.0, "keys");
        assert_same_or_within(5e-5, &values, &expected.1, "values");
    }
}

#[test]
fn few_rows_are_what_their_operations_are() {
    let plain = (None, Activation::Silu);
    // As SmolLM2-135M; heads of several widths, and more of them than are scored together; wide layers.
    let small = Sizes { d: 576, f: 1536, heads: (9, 3, 64) };
    for (t, num_keys) in [(1, 5), (1, 700), (2, 64), (3, 130), (5, 600), (8, 333)] {
        compare(&small, t, num_keys, plain);
    }
    compare(&Sizes { d: 256, f: 520, heads: (12, 2, 32) }, 2, 200, (Some(3.0), Activation::GeluTanh));
    compare(&Sizes { d: 128, f: 256, heads: (4, 4, 128) }, 8, 100, plain);
    compare(&Sizes { d: 64, f: 96, heads: (8, 2, 8) }, 4, 300, plain);
    compare(&Sizes { d: 64, f: 96, heads: (4, 1, 16) }, 1, 40, plain);
    compare(&Sizes { d: 264, f: 264, heads: (2, 1, 256) }, 1, 70, plain);
    compare(&Sizes { d: 2048, f: 8192, heads: (32, 8, 64) }, 2, 90, plain);
}
