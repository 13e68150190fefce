//! Frozen weights packed for products in bf16: the operations on them against the same with f32 products.

use crate::support::*;
use half::bf16;
use kernels::ops::{self, AttentionMask, AttentionSpec, Head, LowRank, Weight, reference};
use kernels::{Matrix, Tensor};
use std::sync::Arc;

/// Random numbers that bf16 holds exactly: products of them have no error but that of their sums.
fn representable(rng: &mut rand_chacha::ChaCha8Rng, count: usize) -> Vec<f32> {
    uniform(rng, count).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

#[test]
fn linear_and_its_gradient() {
    let mut rng = generator(61);
    for (t, input, out) in [(1, 64, 96), (5, 40, 33), (70, 576, 192)] {
        let mut numbers = |count| representable(&mut rng, count);
        let (x, w, r) = (numbers(t * input), numbers(out * input), numbers(t * out));
        let weight = Weight::Frozen(Arc::new(Matrix::from_f32(w.clone(), out, input).unwrap().to_bf16()));
        let x_var = var(&x, [t, input]);
        let y = ops::linear(&x_var, &weight, None, None).unwrap();
        let (x, w) = (wide(&x), wide(&w));
        let sums = |terms: usize| terms as f64 * ROUNDING * terms as f64;
        assert_close(&y, &reference::linear(&x, &w, input, None, None), |_| sums(input));
        let dx: Vec<f64> = (0..t * input)
            .map(|i| (0..out).map(|o| f64::from(r[i / input * out + o]) * w[o * input + i % input]).sum())
            .collect();
        assert_close(backward(&y, &r).get(&x_var).unwrap(), &dx, |_| sums(out));
    }
}

/// In a graph the products of an update are of bf16 numbers too. Of small integers and a rank of few, all that is rounded is
/// a number of eight bits and every sum is exact: outputs and all gradients are those of the definition, at any rows.
#[test]
fn a_low_rank_update_in_a_graph() {
    let mut rng = generator(63);
    for (t, input, out, rank) in [(1, 40, 33, 1), (7, 64, 96, 4), (70, 100, 70, 16), (300, 64, 40, 33)] {
        let mut signs = |count| uniform(&mut rng, count).into_iter().map(f32::round).collect::<Vec<f32>>();
        let (x, w, r) = (signs(t * input), signs(out * input), signs(t * out));
        let (a, b) = (signs(rank * input), signs(out * rank));
        let every = |nth: usize| (0..t as u32).filter(|row| (*row as usize).is_multiple_of(nth)).collect::<Vec<u32>>();
        for rows in [every(1), every(3)] {
            let weight = Weight::Frozen(Arc::new(Matrix::from_f32(w.clone(), out, input).unwrap().to_bf16()));
            let (x_var, a_var, b_var) = (var(&x, [t, input]), var(&a, [rank, input]), var(&b, [out, rank]));
            let (a_tensor, b_tensor) = (a_var.as_tensor().clone(), b_var.as_tensor().clone());
            let update = LowRank { a: a_tensor, b: b_tensor, scale: 2.0, rows: Arc::new(rows.clone().into()) };
            let y = ops::linear(&x_var, &weight, None, Some(&update)).unwrap();
            let (x, w, r, a, b) = (wide(&x), wide(&w), wide(&r), wide(&a), wide(&b));
            let of_update = reference::LowRank { a: &a, b: &b, scale: 2.0, rows: &rows };
            assert_close(&y, &reference::linear(&x, &w, input, None, Some(of_update)), |_| 0.0);
            let grads = backward(&y, &r.iter().map(|r| *r as f32).collect::<Vec<f32>>());
            let found = |var| grads.get(var).unwrap();
            let (mut dx, mut da, mut db) = (vec![0.0; t * input], vec![0.0; rank * input], vec![0.0; out * rank]);
            for row in 0..t {
                let (x, r) = (&x[row * input..(row + 1) * input], &r[row * out..(row + 1) * out]);
                let dx = &mut dx[row * input..(row + 1) * input];
                (0..input).for_each(|i| dx[i] += (0..out).map(|o| r[o] * w[o * input + i]).sum::<f64>());
                for s in (0..rank).filter(|_| rows.contains(&(row as u32))) {
                    let down = 2.0 * (0..input).map(|i| a[s * input + i] * x[i]).sum::<f64>();
                    let back = 2.0 * (0..out).map(|o| b[o * rank + s] * r[o]).sum::<f64>();
                    (0..input).for_each(|i| dx[i] += back * a[s * input + i]);
                    (0..input).for_each(|i| da[s * input + i] += back * x[i]);
                    (0..out).for_each(|o| db[o * rank + s] += r[o] * down);
                }
            }
            assert_close(found(&x_var), &dx, |_| 0.0);
            assert_close(found(&a_var), &da, |_| 0.0);
            assert_close(found(&b_var), &db, |_| 0.0);
        }
    }
}

/// The probabilities are rounded on their way back: 2^-9 of the mean row, whose numbers are below 1.
#[test]
fn cross_entropy_and_its_gradient() {
    let mut rng = generator(62);
    for (m, d, v) in [(3, 32, 70), (40, 64, 9000)] {
        let (x, w) = (representable(&mut rng, m * d), representable(&mut rng, v * d));
        let labels: Vec<u32> = (0..m).map(|i| (i * 1021 % v) as u32).collect();
        let run = |matrix: Matrix| {
            let x = var(&x, [m, d]);
            let head = Head { weight: Weight::Frozen(Arc::new(matrix)), softcap: None };
            let nll = ops::cross_entropy(&x, &head, &labels).unwrap();
            let gradient = backward(&nll, &vec![1.0; m]).get(&x).unwrap().clone();
            (wide(&values(&nll)), wide(&values(&gradient)), nll, gradient)
        };
        let exact = Matrix::from_f32(w.clone(), v, d).unwrap();
        let (_, _, nll, gradient) = run(exact.to_bf16());
        let (want_nll, want_gradient, ..) = run(exact);
        assert_close(&nll, &want_nll, |i| 1e-5 * want_nll[i].abs());
        assert_close(&gradient, &want_gradient, |_| 1.0 / 512.0);
    }
}

/// (T, past, N, K, H)
const MANY_KEYS: [[usize; 5]; 4] = [[200, 0, 6, 2, 64], [150, 140, 4, 4, 48], [70, 100, 3, 1, 16], [9, 2100, 9, 3, 80]];

#[test]
fn attention_over_many_keys_is_its_definition() {
    let mut rng = generator(61);
    for [t, past, heads, kv_heads, h] in MANY_KEYS {
        let (s, width) = (past + t, kv_heads * h);
        let (q, k, v) = (
            representable(&mut rng, t * heads * h),
            representable(&mut rng, s * width),
            representable(&mut rng, s * width),
        );
        // A power of two: scaled queries are numbers that bf16 has.
        let plain = AttentionSpec { scale: 0.25, ..spec(causal_mask(&mut rng, past, t, false), h, None) };
        let rounded = AttentionSpec { bf16: true, ..plain.clone() };
        let definition = reference::AttentionSpec {
            mask: &plain.mask,
            heads,
            kv_heads,
            scale: f64::from(plain.scale),
            softcap: None,
        };
        let expected = reference::attention(&wide(&q), &wide(&k), &wide(&v), &definition);
        // Weights are rounded to eight bits, in a mean of numbers below one; scores are sums of H products in f32.
        let tolerance = 0.5f64.powi(9) + (2.0 * (h as f64 + 2.0) * h as f64 * 0.25 + s as f64) * ROUNDING;
        let q = tensor(&q, [t, heads, h]);
        let (old, new) = (past * width, [t, kv_heads, h]);
        let cache = Arc::new(layer(&k[..old], &v[..old], [kv_heads, h]));
        let (new_k, new_v) = (tensor(&k[old..], new), tensor(&v[old..], new));
        let y = ops::attention(&q, &new_k, &new_v, Some(&cache), &rounded).unwrap();
        assert_close(&y, &expected, |_| tolerance);
        let cached = ops::attention_cached(&q, &layer(&k, &v, [kv_heads, h]), kv_heads, &rounded).unwrap();
        assert_eq!(values(&cached), values(&y));
        // Within a graph nothing is rounded on a CPU.
        let q = var(&values(&q), [t, heads, h]);
        let attend = |spec| ops::attention(&q, &new_k, &new_v, Some(&cache), spec).unwrap();
        if device().is_cpu() {
            assert_eq!(values(&attend(&rounded)), values(&attend(&plain)));
        } else {
            assert_close(&attend(&rounded), &expected, |_| tolerance);
        }
    }
}

#[test]
fn attention_over_many_keys_is_the_same_alone_packed_and_in_chunks() {
    let mut rng = generator(62);
    let (heads, kv_heads, h, lengths) = (6, 2, 64, [37usize, 150, 300, 128, 138, 140]);
    let total: usize = lengths.iter().sum();
    let q = tensor(&uniform(&mut rng, total * heads * h), [total, heads, h]);
    let k = tensor(&uniform(&mut rng, total * kv_heads * h), [total, kv_heads, h]);
    let v = tensor(&uniform(&mut rng, total * kv_heads * h), [total, kv_heads, h]);
    let mut packed = AttentionMask::new();
    let mut first = 0;
    for length in lengths {
        (0..length).for_each(|i| packed.push([(first, first + i as u32 + 1)]).unwrap());
        first += length as u32;
    }
    let rounded = |mask| AttentionSpec { bf16: true, ..spec(mask, h, None) };
    let together = ops::attention(&q, &k, &v, None, &rounded(packed)).unwrap();
    let mut first = 0;
    for length in lengths {
        let part = |x: &Tensor| x.narrow(0, first, length).unwrap();
        let of_row = values(&part(&together));
        let mask = || causal_mask(&mut generator(0), 0, length, false);
        let alone = ops::attention(&part(&q), &part(&k), &part(&v), None, &rounded(mask())).unwrap();
        assert_same_or_within(0.5f32.powi(7), &values(&alone), &of_row, &format!("{length} tokens"));
        let cache = layer(&values(&part(&k)), &values(&part(&v)), [kv_heads, h]);
        for chunk in (0..length).collect::<Vec<_>>().chunks(64) {
            let mask = causal_mask(&mut rng, chunk[0], chunk.len(), false);
            let q = part(&q).narrow(0, chunk[0], chunk.len()).unwrap();
            let found = values(&ops::attention_cached(&q, &cache, kv_heads, &rounded(mask)).unwrap());
            assert_same_or_within(
                0.5f32.powi(7),
                &found,
                &of_row[chunk[0] * heads * h..][..found.len()],
                &format!("{chunk:?}"),
            );
        }
        // Queries that see few keys are not rounded, on the CPU.
        let plain = values(&ops::attention(&part(&q), &part(&k), &part(&v), None, &spec(mask(), h, None)).unwrap());
        let few = length.min(128) * heads * h;
        assert_same_or_within(0.5f32.powi(7), &plain[..few], &of_row[..few], "few keys");
        first += length;
    }
}
