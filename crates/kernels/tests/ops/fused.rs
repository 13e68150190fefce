//! Parts of a layer in one piece against the operations that they stand for, bit for bit.

use crate::support::*;
use kernels::ops::fused::{Map, Norm, add_linear, can_fuse, feed_forward, norm_linears};
use kernels::ops::{self, Activation, LowRank, Weight};
use kernels::{Matrix, Tensor};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const EPS: f32 = 1e-5;

fn weight(rng: &mut ChaCha8Rng, int8: bool, out: usize, input: usize) -> Weight {
    let matrix = Matrix::from_f32(uniform(rng, out * input), out, input).unwrap();
    Weight::Frozen(Arc::new(if int8 { matrix.to_int8().unwrap() } else { matrix.to_bf16() }))
}

fn update(rng: &mut ChaCha8Rng, (out, input, rank): (usize, usize, usize), rows: &[u32]) -> LowRank {
    LowRank {
        a: tensor(&uniform(rng, rank * input), [rank, input]),
        b: tensor(&uniform(rng, out * rank), [out, rank]),
        scale: 0.7,
        rows: Arc::new(rows.to_vec().into()),
    }
}

/// Whether there are units for the format; where there are none nothing is fused.
fn has_units(int8: bool) -> bool {
    if device().is_cuda() {
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    let has = if int8 {
        std::arch::is_x86_feature_detected!("avx512vnni")
    } else {
        std::arch::is_x86_feature_detected!("avx512bf16")
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has = false && int8;
    has
}

#[test]
fn parts_have_the_bits_of_their_operations() {
    parts_of(false);
}

#[test]
fn parts_of_eight_bits_have_the_bits_of_their_operations() {
    // There are such products on the CPU alone.
    if !device().is_cuda() {
        parts_of(true);
    }
}

fn parts_of(int8: bool) {
    let mut rng = generator(71);
    let enough = 32 * rayon::current_num_threads();
    for (t, d, f) in [(enough, 64, 96), (enough + 45, 40, 70), (enough * 5 + 1, 96, 160)] {
        let [gate, up] = [(); 2].map(|()| weight(&mut rng, int8, f, d));
        let [q, o] = [(); 2].map(|()| weight(&mut rng, int8, d, d));
        let (k, down) = (weight(&mut rng, int8, 33, d), weight(&mut rng, int8, d, f));
        let (x, norm) = (tensor(&uniform(&mut rng, t * d), [t, d]), tensor(&uniform(&mut rng, d), [d]));
        let all: Vec<u32> = (0..t as u32).collect();
        let some: Vec<u32> = all.iter().copied().filter(|row| row % 7 == 3 || *row + 2 > t as u32).collect();
        for (rows, rank) in [(&[][..], 4), (&some, 8), (&all, 6)] {
            let updates = [(f, d), (f, d), (d, f), (d, d), (33, d)]
                .map(|(out, input)| update(&mut rng, (out, input, rank), rows));
            let [on_gate, on_up, on_down, on_q, on_k] = updates.each_ref().map(Some);
            let map = |weight, update| Map { weight, update };
            let normed = ops::rms_norm(&x, &norm, EPS, 1.0).unwrap();
            let linear = |x: &Tensor, weight, update| ops::linear(x, weight, None, update).unwrap();
            let of_norm = Norm { weight: &norm, eps: EPS, offset: 1.0 };
            let maps = [map(&gate, on_gate), map(&up, on_up), map(&down, on_down)];
            assert_eq!(can_fuse(&x, &maps), has_units(int8));
            if !has_units(int8) {
                continue;
            }
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let (g, u) = (linear(&normed, &gate, on_gate), linear(&normed, &up, on_up));
                let hidden = ops::gated(&g, &u, activation).unwrap();
                let want = ops::add(&x, &linear(&hidden, &down, on_down)).unwrap();
                let found = feed_forward(x.copy().unwrap(), of_norm, maps, activation).unwrap();
                let what = format!("{t} {d} {f} {activation:?}, {} adapted", rows.len());
                // On a GPU the updates' operands are rounded to ten bits, in an order of sums that depends on the shape.
                assert_same_or_within(0.5f32.powi(10), &values(&found), &values(&want), &what);
            }
            // Without an update on one of the maps.
            let [found_q, found_k] = norm_linears(&x, of_norm, [map(&q, None), map(&k, on_k)]).unwrap();
            assert_same_or_within(0.5f32.powi(10), &values(&found_q), &values(&linear(&normed, &q, None)), "q");
            assert_same_or_within(0.5f32.powi(10), &values(&found_k), &values(&linear(&normed, &k, on_k)), "k");
            let want = ops::add(&normed, &linear(&x, &o, on_q)).unwrap();
            assert_same_or_within(
                0.5f32.powi(10),
                &values(&add_linear(normed.copy().unwrap(), &x, map(&o, on_q)).unwrap()),
                &values(&want),
                "o",
            );
        }
    }
}

#[test]
fn what_cannot_be_fused_is_refused() {
    let mut rng = generator(72);
    let t = 32 * rayon::current_num_threads();
    let [weight, eight_bits] = [false, true].map(|int8| weight(&mut rng, int8, 32, 32));
    let map = Map { weight: &weight, update: None };
    let numbers = uniform(&mut rng, t * 32);
    let (few, x) = (tensor(&numbers[..31 * 32], [31, 32]), tensor(&numbers, [t, 32]));
    let plain = Weight::Frozen(Arc::new(Matrix::from_f32(numbers[..1024].to_vec(), 32, 32).unwrap()));
    // A GPU takes few rows too.
    assert!(can_fuse(&few, &[map]) == device().is_cuda() && !can_fuse(&var(&numbers, [t, 32]), &[map]));
    assert!(!can_fuse(&x, &[Map { weight: &plain, update: None }]));
    assert!(!can_fuse(&x, &[map, Map { weight: &eight_bits, update: None }]));
    assert!(add_linear(few.clone(), &few.copy().unwrap(), map).is_ok() == device().is_cuda());
    assert!(add_linear(few.clone(), &x, map).is_err());
    let norm = Norm { weight: &few, eps: EPS, offset: 0.0 };
    assert!(norm_linears(&x, norm, [map]).is_err());
}
