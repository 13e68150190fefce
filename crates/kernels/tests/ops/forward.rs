//! Fast paths against the definitions. Tolerances are the worst case of f32: a sum of n terms, however it is ordered,
//! is off by at most n roundings of the sum of the terms' magnitudes.

use crate::support::*;
use kernels::StorageType;
use kernels::ops::{self, Activation, Head, LowRank, RopeTable, Weight, reference};
use rand::Rng;
use std::sync::Arc;

fn magnitudes(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.abs())).collect()
}

#[test]
fn rms_norm_is_its_definition() {
    let mut rng = generator(1);
    for (t, d, offset) in [(1, 1, 0.0), (1, 37, 1.0), (3, 64, 0.0), (77, 35, 1.0)] {
        let (x, w) = (uniform(&mut rng, t * d), uniform(&mut rng, d));
        let y = ops::rms_norm(&tensor(&x, [t, d]), &tensor(&w, [d]), 1e-6, offset).unwrap();
        let expected = reference::rms_norm(&wide(&x), &wide(&w), f64::from(1e-6f32), f64::from(offset));
        // The mean square has positive terms; `w + offset` cancels, so that its error is one of 1, not of the sum.
        let factor = reference::rms_norm(&magnitudes(&x), &magnitudes(&w), f64::from(1e-6f32), f64::from(offset));
        assert_close(&y, &expected, |i| (d as f64 / 2.0 + 8.0) * ROUNDING * factor[i]);
    }
}

#[test]
fn rope_is_its_definition() {
    let mut rng = generator(2);
    for (positions, heads, half) in [(vec![0], 1, 1), (vec![100_000], 3, 5), ((7..84).collect::<Vec<u32>>(), 2, 8)] {
        let frequencies: Vec<f64> = (0..half).map(|i| 10_000f64.powf(-f64::from(i) / f64::from(half))).collect();
        let width = 2 * frequencies.len();
        let x = uniform(&mut rng, positions.len() * heads * width);
        let table = Arc::new(RopeTable::new(&positions, &frequencies));
        let x_in = tensor(&x, [positions.len(), heads, width]);
        let y = ops::rope(&x_in, &table).unwrap();
        // Two products, each of a rounded cosine.
        assert_close(&y, &reference::rope(&wide(&x), heads, &positions, &frequencies), |_| 6.0 * ROUNDING);
        let in_place = ops::rope_in_place(x_in.clone(), &table).unwrap();
        assert_eq!(values(&in_place), values(&y));
        assert!(!x_in.device().is_cpu() || values(&x_in) == values(&y), "a copy was made");
    }
}

/// Plain, with a bias, with an update at some rows, for T on both sides of the path for few rows.
#[test]
fn linear_is_its_definition_for_every_storage_type() {
    let mut rng = generator(3);
    for storage_type in STORAGE_TYPES {
        let (out, input, rank) = (37, if storage_type.block_size() == 1 { 45 } else { 256 }, 3);
        let matrix = Arc::new(matrix(&mut rng, storage_type, out, input));
        let w = matrix.to_f32();
        for t in [1, 2, 4, 5, 9, 48, 49] {
            let (x, bias) = (uniform(&mut rng, t * input), uniform(&mut rng, out));
            let (a, b) = (uniform(&mut rng, rank * input), uniform(&mut rng, out * rank));
            let rows: Vec<u32> = (0..t as u32).filter(|row| row % 3 == 0).collect();
            let update = LowRank {
                a: tensor(&a, [rank, input]),
                b: tensor(&b, [out, rank]),
                scale: 0.5,
                rows: Arc::new(rows.clone().into()),
            };
            let weight = Weight::Frozen(Arc::clone(&matrix));
            let y = ops::linear(&tensor(&x, [t, input]), &weight, Some(&tensor(&bias, [out])), Some(&update)).unwrap();
            let define = |of: fn(&[f32]) -> Vec<f64>| {
                let (a, b) = (of(&a), of(&b));
                let update = reference::LowRank { a: &a, b: &b, scale: 0.5, rows: &rows };
                reference::linear(&of(&x), &of(&w), input, Some(&of(&bias)), Some(update))
            };
            let magnitude = define(magnitudes);
            assert_close(&y, &define(wide), |i| (input + rank + 4) as f64 * ROUNDING * magnitude[i]);
        }
    }
}

#[test]
fn linear_with_a_dense_weight_and_over_several_blocks_is_its_definition() {
    let mut rng = generator(4);
    for (t, input, out) in [(1, 19, 1), (6, 19, 23), (2, 512, 1100), (7, 512, 1100)] {
        let (x, w) = (uniform(&mut rng, t * input), uniform(&mut rng, out * input));
        let expected = reference::linear(&wide(&x), &wide(&w), input, None, None);
        let magnitude = reference::linear(&magnitudes(&x), &magnitudes(&w), input, None, None);
        let frozen = Weight::Frozen(Arc::new(kernels::Matrix::from_f32(w.clone(), out, input).unwrap()));
        for weight in [Weight::Dense(tensor(&w, [out, input])), frozen] {
            let y = ops::linear(&tensor(&x, [t, input]), &weight, None, None).unwrap();
            assert_close(&y, &expected, |i| input as f64 * ROUNDING * magnitude[i]);
        }
    }
}

#[test]
fn gated_is_its_definition() {
    let mut rng = generator(5);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for shape in [[1, 1], [1, 5000], [3, 1367]] {
            let count = shape[0] * shape[1];
            let gate: Vec<f32> = (0..count).map(|_| rng.random_range(-8f32..8.0)).collect();
            let up = uniform(&mut rng, count);
            let y = ops::gated(&tensor(&gate, shape), &tensor(&up, shape), activation).unwrap();
            // Functions of a rounded argument up to 8 times as steep as 1, in a product of four factors.
            let tolerance = |i: usize| 16.0 * ROUNDING * f64::from(gate[i].abs()).max(1.0);
            assert_close(&y, &reference::gated(&wide(&gate), &wide(&up), activation), tolerance);
        }
    }
}

/// (T, past, N, K, H)
const ATTENTION_SIZES: [[usize; 5]; 5] =
    [[1, 0, 1, 1, 3], [1, 9, 4, 2, 6], [5, 0, 3, 1, 8], [11, 6, 4, 4, 16], [70, 3, 6, 2, 34]];

#[test]
fn attention_is_its_definition_with_and_without_a_cache() {
    let mut rng = generator(6);
    for [t, past, heads, kv_heads, h] in ATTENTION_SIZES {
        for (holes, softcap) in [(false, None), (true, None), (false, Some(0.5)), (true, Some(3.0))] {
            let (s, width) = (past + t, kv_heads * h);
            let (q, k, v) =
                (uniform(&mut rng, t * heads * h), uniform(&mut rng, s * width), uniform(&mut rng, s * width));
            let spec = spec(causal_mask(&mut rng, past, t, holes), h, softcap);
            let definition = reference::AttentionSpec {
                mask: &spec.mask,
                heads,
                kv_heads,
                scale: f64::from(spec.scale),
                softcap: softcap.map(f64::from),
            };
            let expected = reference::attention(&wide(&q), &wide(&k), &wide(&v), &definition);
            // A score is a sum of H products, scaled; its error enters a probability twice, once by the sum.
            let scores = (h as f64 + 2.0) * h as f64 * definition.scale;
            let tolerance = (2.0 * scores + s as f64 + 16.0) * ROUNDING;
            let q = tensor(&q, [t, heads, h]);
            let cut = past * width;
            let cache = Arc::new(layer(&k[..cut], &v[..cut], [kv_heads, h]));
            let (new_k, new_v) = (tensor(&k[cut..], [t, kv_heads, h]), tensor(&v[cut..], [t, kv_heads, h]));
            let y = ops::attention(&q, &new_k, &new_v, Some(&cache), &spec).unwrap();
            assert_close(&y, &expected, |_| tolerance);
            let y = ops::attention_cached(&q, &layer(&k, &v, [kv_heads, h]), kv_heads, &spec).unwrap();
            assert_close(&y, &expected, |_| tolerance);
        }
    }
}

#[test]
fn cross_entropy_is_its_definition() {
    let mut rng = generator(7);
    for (m, d, v, storage_type) in [
        (1, 5, 2, StorageType::F32),
        (7, 13, 1100, StorageType::F32),
        (3, 256, 2100, StorageType::Q4_K),
        (9, 64, 77, StorageType::Q8_0),
    ] {
        let matrix = Arc::new(matrix(&mut rng, storage_type, v, d));
        let (x, w) = (uniform(&mut rng, m * d), matrix.to_f32());
        let labels: Vec<u32> = (0..m).map(|_| rng.random_range(0..v as u32)).collect();
        let magnitude =
            reference::linear(&magnitudes(&x), &magnitudes(&w), d, None, None).into_iter().fold(0.0, f64::max);
        for softcap in [None, Some(2f32)] {
            let expected = reference::cross_entropy(&wide(&x), &wide(&w), &labels, softcap.map(f64::from));
            for weight in [Weight::Frozen(Arc::clone(&matrix)), Weight::Dense(tensor(&w, [v, d]))] {
                let head = Head { weight, softcap };
                let nll = ops::cross_entropy(&tensor(&x, [m, d]), &head, &labels).unwrap();
                // Two logits, sums of D, and the sum over V.
                assert_close(&nll, &expected, |_| (2.0 * (d + 2) as f64 * magnitude + v as f64 + 16.0) * ROUNDING);
                let all = values(&ops::logits(&tensor(&x, [m, d]), &head).unwrap());
                for (i, label) in labels.iter().enumerate() {
                    let row = &all[i * v..(i + 1) * v];
                    let from_logits =
                        row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() - f64::from(row[*label as usize]);
                    assert!((from_logits - expected[i]).abs() <= 2.0 * (d + 2) as f64 * magnitude * ROUNDING + 1e-6);
                }
            }
        }
    }
}

#[test]
fn pool_dropout_sums_and_embeddings_are_their_definitions() {
    let mut rng = generator(8);
    let (t, d) = (6, 7);
    let x = uniform(&mut rng, t * d);
    let rows =
        vec![vec![(5, 1.0)], vec![], (0..6).map(|token| (token, 1.0 / 6.0)).collect(), vec![(2, 0.25), (2, -0.5)]];
    let z = ops::pool(&tensor(&x, [t, d]), rows.clone()).unwrap();
    assert_eq!(z.dims(), [4, d]);
    assert_close(&z, &reference::pool(&wide(&x), d, &rows), |_| 6.0 * ROUNDING);

    let factors: Vec<f32> = (0..t * d).map(|i| if i % 3 == 0 { 0.0 } else { 1.5 }).collect();
    let y = ops::dropout(&tensor(&x, [t, d]), Arc::new(factors.clone())).unwrap();
    assert_close(&y, &reference::dropout(&wide(&x), &factors), |_| 2.0 * ROUNDING);

    let other = uniform(&mut rng, t * d);
    let y = ops::add(&tensor(&x, [t, d]), &tensor(&other, [t, d])).unwrap();
    assert_close(&y, &reference::add(&wide(&x), &wide(&other)), |_| 2.0 * ROUNDING);

    let special = uniform(&mut rng, 2 * d);
    // The last of several places counts.
    let places = vec![(4, 1), (0, 0), (4, 0)];
    let y = ops::embed_inputs(&tensor(&x, [t, d]), &tensor(&special, [2, d]), places.clone()).unwrap();
    assert_close(&y, &reference::embed_inputs(&wide(&x), &wide(&special), d, &places), |_| 0.0);
}

#[test]
fn embed_tokens_takes_rows() {
    let mut rng = generator(9);
    let ids = [4u32, 0, 4, 2];
    for storage_type in STORAGE_TYPES {
        let matrix = Arc::new(matrix(&mut rng, storage_type, 5, 256));
        let rows = matrix.to_f32();
        let expected: Vec<f32> = ids.iter().flat_map(|id| rows[*id as usize * 256..][..256].to_vec()).collect();
        for weight in [Weight::Dense(tensor(&rows, [5, 256])), Weight::Frozen(matrix)] {
            assert_eq!(values(&ops::embed_tokens(&weight, &ids, &device()).unwrap()), expected);
        }
    }
}
