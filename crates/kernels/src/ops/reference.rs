//! The definition of every operation: plain loops in f64, forward only. The fast paths are tested against these, and
//! their backward passes against finite differences of these.
//!
//! Arguments are row-major slices whose lengths agree; a wrong length panics or is cut to whole rows.

use super::{Activation, AttentionMask};

/// `x + y`, elementwise.
pub fn add(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// `y[t, i] = x[t, i] / sqrt(mean_j x[t, j]^2 + eps) * (w[i] + offset)`.
///
/// # Shapes
/// `x: [T, D]`, `w: [D]` -> `[T, D]`.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64, offset: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks(w.len()) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / w.len() as f64;
        y.extend(x.iter().zip(w).map(|(x, w)| x / (mean + eps).sqrt() * (w + offset)));
    }
    y
}

/// Rotates the pair `(x[t, n, i], x[t, n, i + H/2])` by the angle `positions[t] * frequencies[i]`.
///
/// # Shapes
/// `x: [T, heads, H]`, T positions, H/2 frequencies -> `[T, heads, H]`.
pub fn rope(x: &[f64], heads: usize, positions: &[u32], frequencies: &[f64]) -> Vec<f64> {
    let half = frequencies.len();
    let mut y = vec![0.0; x.len()];
    for (t, position) in positions.iter().enumerate() {
        for n in 0..heads {
            for (i, frequency) in frequencies.iter().enumerate() {
                let first = (t * heads + n) * 2 * half + i;
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                y[first] = x[first] * cos - x[first + half] * sin;
                y[first + half] = x[first + half] * cos + x[first] * sin;
            }
        }
    }
    y
}

/// The low-rank update of [`linear`].
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[r, in]`.
    pub a: &'a [f64],
    /// `[out, r]`.
    pub b: &'a [f64],
    /// `lora_alpha / r`.
    pub scale: f64,
    /// Adapted tokens.
    pub rows: &'a [u32],
}

/// `x W^T`: `[T, in]`, `[out, in]` -> `[T, out]`.
fn product(x: &[f64], w: &[f64], input: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks(input) {
        y.extend(w.chunks(input).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()));
    }
    y
}

/// `y[t] = W x[t] + bias`, plus `scale * B A x[t]` at the adapted tokens.
///
/// # Shapes
/// `x: [T, in]`, `w: [out, in]`, `bias: [out]` -> `[T, out]`.
pub fn linear(x: &[f64], w: &[f64], input: usize, bias: Option<&[f64]>, update: Option<LowRank<'_>>) -> Vec<f64> {
    let out = w.len() / input;
    let mut y = product(x, w, input);
    if let Some(bias) = bias {
        y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % out]);
    }
    if let Some(LowRank { a, b, scale, rows }) = update {
        for row in rows {
            let t = *row as usize;
            let up = product(&product(&x[t * input..(t + 1) * input], a, input), b, a.len() / input);
            y[t * out..(t + 1) * out].iter_mut().zip(up).for_each(|(y, up)| *y += scale * up);
        }
    }
    y
}

/// `act(gate) * up`, elementwise.
pub fn gated(gate: &[f64], up: &[f64], activation: Activation) -> Vec<f64> {
    let act = |x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    gate.iter().zip(up).map(|(gate, up)| act(*gate) * up).collect()
}

/// What [`attention`] needs beside its numbers.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpec<'a> {
    /// Who sees whom.
    pub mask: &'a AttentionMask,
    /// N.
    pub heads: usize,
    /// K; head n of the queries reads head `n / (N / K)` of the keys.
    pub kv_heads: usize,
    /// Scores are `scale * q.k`.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
}

fn cap(x: f64, softcap: Option<f64>) -> f64 {
    softcap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// Softmax of the scores of the allowed keys, times their values.
///
/// # Shapes
/// `q: [T, N, H]`, `k`, `v`: `[S, K, H]` with the past before the new keys -> `[T, N, H]`.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], spec: &AttentionSpec<'_>) -> Vec<f64> {
    let h = q.len() / (spec.mask.num_queries() * spec.heads);
    let mut y = vec![0.0; q.len()];
    for t in 0..spec.mask.num_queries() {
        for n in 0..spec.heads {
            let at = (t * spec.heads + n) * h;
            let row = |key: usize| (key * spec.kv_heads + n * spec.kv_heads / spec.heads) * h;
            let keys = || spec.mask.intervals(t).iter().flat_map(|(from, to)| *from as usize..*to as usize);
            let score = |key| (0..h).map(|i| q[at + i] * k[row(key) + i]).sum::<f64>() * spec.scale;
            let scores: Vec<f64> = keys().map(|key| cap(score(key), spec.softcap)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (key, score) in keys().zip(&scores) {
                for i in 0..h {
                    y[at + i] += (score - max).exp() / sum * v[row(key) + i];
                }
            }
        }
    }
    y
}

/// `-ln softmax(W x[m])[label[m]]`, the logits capped first.
///
/// # Shapes
/// `x: [M, D]`, `w: [V, D]`, M labels -> `[M]`, nats.
pub fn cross_entropy(x: &[f64], w: &[f64], labels: &[u32], softcap: Option<f64>) -> Vec<f64> {
    let d = x.len() / labels.len();
    let nll = |(x, label): (&[f64], &u32)| {
        let logits: Vec<f64> = product(x, w, d).into_iter().map(|logit| cap(logit, softcap)).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() - logits[*label as usize]
    };
    x.chunks(d).zip(labels).map(nll).collect()
}

/// `z[b] = sum of weight * x[token]` over the pairs of row b.
///
/// # Shapes
/// `x: [T, D]`, B lists of (token, weight) -> `[B, D]`.
pub fn pool(x: &[f64], width: usize, rows: &[Vec<(u32, f32)>]) -> Vec<f64> {
    let mut z = vec![0.0; rows.len() * width];
    for (b, row) in rows.iter().enumerate() {
        for (token, weight) in row {
            for i in 0..width {
                z[b * width + i] += f64::from(*weight) * x[*token as usize * width + i];
            }
        }
    }
    z
}

/// `tokens`, with row t replaced by `special[j]` for every pair (t, j) in turn.
///
/// # Shapes
/// `tokens: [T, D]`, `special: [k, D]` -> `[T, D]`.
pub fn embed_inputs(tokens: &[f64], special: &[f64], width: usize, places: &[(u32, u32)]) -> Vec<f64> {
    let mut x = tokens.to_vec();
    for (t, j) in places {
        for i in 0..width {
            x[*t as usize * width + i] = special[*j as usize * width + i];
        }
    }
    x
}

/// `x * factors`, elementwise.
pub fn dropout(x: &[f64], factors: &[f32]) -> Vec<f64> {
    x.iter().zip(factors).map(|(x, factor)| x * f64::from(*factor)).collect()
}
