//! Attention over tiles of rows and keys, at every width of heads: values and gradients against their formulas in f64.

use crate::support::*;
use kernels::ops::{self, AttentionMask, AttentionSpec};
use std::sync::Arc;

struct Case {
    /// Queries, past keys, N, K, H.
    sizes: [usize; 5],
    softcap: Option<f32>,
    holes: bool,
}

/// What comes out, and its gradients by queries, new keys and new values for the gradient `r` of what comes out.
struct Exact {
    y: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn exact(case: &Case, mask: &AttentionMask, scale: f64, [q, k, v, r]: [&[f64]; 4]) -> Exact {
    let [t, past, heads, kv_heads, h] = case.sizes;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let axpy = |a: f64, x: &[f64], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
    let mut found =
        Exact { y: vec![0.0; q.len()], dq: vec![0.0; q.len()], dk: vec![0.0; k.len()], dv: vec![0.0; v.len()] };
    for (i, head) in (0..t).flat_map(|i| (0..heads).map(move |head| (i, head))) {
        let row = (i * heads + head) * h;
        let keys: Vec<usize> = mask.intervals(i).iter().flat_map(|(from, to)| *from as usize..*to as usize).collect();
        let at = |key: usize| (key * kv_heads + head / (heads / kv_heads)) * h;
        let plain = |key: &usize| scale * dot(&q[row..row + h], &k[at(*key)..at(*key) + h]);
        let tanh = |score: f64| case.softcap.map_or(0.0, |cap| (score / f64::from(cap)).tanh());
        let capped = |score: f64| case.softcap.map_or(score, |cap| f64::from(cap) * tanh(score));
        let scores: Vec<f64> = keys.iter().map(plain).collect();
        let max = scores.iter().map(|s| capped(*s)).fold(f64::NEG_INFINITY, f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (capped(*s) - max).exp()).collect();
        let sum: f64 = p.iter().sum();
        let p: Vec<f64> = p.iter().map(|p| p / sum).collect();
        let dp: Vec<f64> = keys.iter().map(|key| dot(&r[row..row + h], &v[at(*key)..at(*key) + h])).collect();
        let mean = dot(&p, &dp);
        for (((key, p), dp), score) in keys.iter().zip(&p).zip(&dp).zip(&scores) {
            let key = at(*key);
            axpy(*p, &v[key..key + h], &mut found.y[row..row + h]);
            axpy(*p, &r[row..row + h], &mut found.dv[key..key + h]);
            let slope = p * (dp - mean) * scale * (1.0 - tanh(*score) * tanh(*score));
            axpy(slope, &k[key..key + h], &mut found.dq[row..row + h]);
            axpy(slope, &q[row..row + h], &mut found.dk[key..key + h]);
        }
    }
    let old = past * kv_heads * h;
    found.dk.drain(..old);
    found.dv.drain(..old);
    found
}

/// Sums of some hundred terms below one, whose largest error is some roundings of the largest; `share` where operands are
/// rounded to bf16.
fn close(found: &kernels::Tensor, expected: &[f64], share: f64, what: &str) {
    let largest = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (found, expected)) in values(found).iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= share * largest, "{what}, number {i}: {found}, expected {expected}, largest {largest}");
    }
}

/// What may be off: of values, and of gradients, as a share of the largest; and whether products are of bf16 numbers.
struct Precision {
    values: f64,
    gradients: f64,
    bf16: bool,
}

fn values_and_gradients(case: &Case, precision: &Precision, seed: u64) {
    let mut rng = generator(seed);
    let [t, past, heads, kv_heads, h] = case.sizes;
    let (width, s) = (kv_heads * h, past + t);
    let (q, r) = (uniform(&mut rng, t * heads * h), uniform(&mut rng, t * heads * h));
    let (k, v) = (uniform(&mut rng, s * width), uniform(&mut rng, s * width));
    let plain = spec(causal_mask(&mut rng, past, t, case.holes), h, case.softcap);
    let [q64, k64, v64, r64] = [&q, &k, &v, &r].map(|x| wide(x));
    let exact = exact(case, &plain.mask, f64::from(plain.scale), [&q64, &k64, &v64, &r64]);
    let cache = Arc::new(layer(&k[..past * width], &v[..past * width], [kv_heads, h]));
    let new = |x: &[f32]| var(&x[past * width..], [t, kv_heads, h]);
    let (q, k, v) = (var(&q, [t, heads, h]), new(&k), new(&v));
    let y = ops::attention(&q, &k, &v, Some(&cache), &AttentionSpec { bf16: precision.bf16, ..plain }).unwrap();
    let grads = backward(&y, &r);
    close(&y, &exact.y, precision.values, &format!("y, {h} wide"));
    for (x, expected, name) in [(&q, &exact.dq, "dq"), (&k, &exact.dk, "dk"), (&v, &exact.dv, "dv")] {
        close(grads.get(x).unwrap(), expected, precision.gradients, &format!("{name}, {h} wide"));
    }
}

#[test]
fn values_and_gradients_at_every_width() {
    for (i, (h, softcap, holes)) in [
        (20, None, true),
        (64, Some(3.0), false),
        (64, None, true),
        (80, None, false),
        (96, Some(2.0), true),
        (128, None, true),
        (250, None, false),
        (256, Some(4.0), true),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case { sizes: [75, 38, 6, 2, h], softcap, holes };
        values_and_gradients(&case, &Precision { values: 1e-5, gradients: 2e-5, bf16: false }, 910 + i as u64);
    }
}

/// On a GPU products are of numbers rounded to eight bits, and so are weights and slopes.
#[test]
fn bf16_values_and_gradients_at_every_width() {
    let rounded = Precision { values: 0.5f64.powi(7), gradients: 0.5f64.powi(6), bf16: true };
    for (i, (sizes, softcap, holes)) in [
        ([75, 38, 6, 2, 20], None, true),
        ([41, 0, 4, 4, 30], None, false),
        ([75, 38, 9, 3, 64], None, true),
        ([130, 5, 6, 2, 64], Some(3.0), false),
        ([16, 64, 3, 1, 64], None, false),
        ([75, 0, 6, 2, 80], None, true),
        ([75, 38, 6, 2, 96], Some(2.0), true),
        ([97, 38, 6, 2, 128], None, true),
        ([75, 38, 6, 2, 256], None, false),
    ]
    .into_iter()
    .enumerate()
    {
        values_and_gradients(&Case { sizes, softcap, holes }, &rounded, 930 + i as u64);
    }
}

/// Rows enough for tensor cores on a GPU. Operands are rounded to eight bits, weights to as many.
#[test]
fn bf16_values_at_every_width() {
    let mut rng = generator(92);
    for (h, past, softcap, holes) in [
        (20, 0, None, true),
        (30, 45, None, false),
        (64, 70, None, true),
        (80, 0, Some(3.0), false),
        (96, 33, None, true),
        (128, 64, Some(5.0), true),
        (256, 0, None, false),
        (256, 45, None, true),
    ] {
        let case = Case { sizes: [230, past, 10, 5, h], softcap, holes };
        let [t, _, heads, kv_heads, _] = case.sizes;
        let (width, s) = (kv_heads * h, past + t);
        let (q, zeros) = (uniform(&mut rng, t * heads * h), vec![0f32; t * heads * h]);
        let (k, v) = (uniform(&mut rng, s * width), uniform(&mut rng, s * width));
        let plain = spec(causal_mask(&mut rng, past, t, case.holes), h, softcap);
        let [q64, k64, v64, r64] = [&q, &k, &v, &zeros].map(|x| wide(x));
        let exact = exact(&case, &plain.mask, f64::from(plain.scale), [&q64, &k64, &v64, &r64]);
        let rounded = AttentionSpec { bf16: true, ..plain };
        let cache = Arc::new(layer(&k[..past * width], &v[..past * width], [kv_heads, h]));
        let new = |x: &[f32]| tensor(&x[past * width..], [t, kv_heads, h]);
        let q = tensor(&q, [t, heads, h]);
        let y = ops::attention(&q, &new(&k), &new(&v), Some(&cache), &rounded).unwrap();
        close(&y, &exact.y, 0.5f64.powi(7), &format!("y, {h} wide"));
        let cached = ops::attention_cached(&q, &layer(&k, &v, [kv_heads, h]), kv_heads, &rounded).unwrap();
        close(&cached, &exact.y, 0.5f64.powi(7), &format!("y from a cache, {h} wide"));
    }
}
