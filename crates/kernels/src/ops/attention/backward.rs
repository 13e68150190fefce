//! The backward pass of attention on the CPU, a query at a time: a stretch of its head stays in registers over all keys.

use super::{AttentionSpec, Keys};
use crate::cpu::exp;
use crate::vector::{LANES, Vector};

/// Vectors of a stretch.
const WIDTH: usize = 4;

type Stretch = [Vector; WIDTH];

/// Numbers of a stretch, or as many as there are and zeros.
#[inline(always)]
fn load(x: &[f32]) -> Stretch {
    if let Ok(whole) = <&[f32; WIDTH * LANES]>::try_from(x) {
        let (vectors, _) = whole.as_chunks::<LANES>();
        return std::array::from_fn(|i| Vector::load(&vectors[i]));
    }
    let mut padded = [[0f32; LANES]; WIDTH];
    padded.as_flattened_mut()[..x.len()].copy_from_slice(x);
    padded.each_ref().map(Vector::load)
}

#[inline(always)]
fn store(stretch: Stretch, x: &mut [f32]) {
    if let Ok(whole) = <&mut [f32; WIDTH * LANES]>::try_from(&mut *x) {
        let (vectors, _) = whole.as_chunks_mut::<LANES>();
        vectors.iter_mut().zip(stretch).for_each(|(to, from)| from.store(to));
        return;
    }
    let mut padded = [[0f32; LANES]; WIDTH];
    padded.iter_mut().zip(stretch).for_each(|(to, from)| from.store(to));
    x.copy_from_slice(&padded.as_flattened()[..x.len()]);
}

#[inline(always)]
fn dot(a: &Stretch, b: &Stretch) -> f32 {
    let mut sum = Vector::splat(0.0);
    a.iter().zip(b).for_each(|(a, b)| sum = sum.plus_product(*a, *b));
    sum.sum()
}

/// `sum + x * stretch`.
#[inline(always)]
fn plus(sum: Stretch, x: f32, stretch: &Stretch) -> Stretch {
    let x = Vector::splat(x);
    std::array::from_fn(|i| sum[i].plus_product(x, stretch[i]))
}

/// One query of one head on its way back.
struct Query<'a> {
    spec: &'a AttentionSpec,
    keys: &'a Keys<'a>,
    /// The key head.
    head: usize,
    query: usize,
    q: &'a [f32],
    dy: &'a [f32],
}

/// Over the keys that a query sees, in their order.
#[derive(Default)]
struct Scratch {
    /// Products with keys, then the gradients of those.
    scores: Vec<f32>,
    /// Probabilities.
    p: Vec<f32>,
    /// Products of the gradient with values.
    dp: Vec<f32>,
}

impl Query<'_> {
    fn seen(&self) -> impl Iterator<Item = usize> {
        self.spec.mask.intervals(self.query).iter().flat_map(|(from, to)| *from as usize..*to as usize)
    }

    /// Where the stretches of a head begin and end.
    fn stretches(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let h = self.keys.head_dim;
        (0..h).step_by(WIDTH * LANES).map(move |at| at..h.min(at + WIDTH * LANES))
    }

    /// Probabilities, and gradients of the products with keys.
    fn weigh(&self, scratch: &mut Scratch) {
        let Scratch { scores, p, dp } = scratch;
        let num_keys = self.seen().count();
        for numbers in [&mut *scores, &mut *dp] {
            numbers.clear();
            numbers.resize(num_keys, 0.0);
        }
        for at in self.stretches() {
            let (q, dy) = (load(&self.q[at.clone()]), load(&self.dy[at.clone()]));
            for (key, (score, dp)) in self.seen().zip(scores.iter_mut().zip(&mut *dp)) {
                let (k, v) = self.keys.at(key, self.head);
                *score += dot(&q, &load(&k[at.clone()]));
                *dp += dot(&dy, &load(&v[at.clone()]));
            }
        }
        scores.iter_mut().for_each(|score| *score *= self.spec.scale);
        if let Some(cap) = self.spec.softcap {
            scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.clear();
        p.extend(scores.iter().map(|score| exp(score - max)));
        let inverse = 1.0 / p.iter().sum::<f32>();
        p.iter_mut().for_each(|p| *p *= inverse);
        let mean: f32 = p.iter().zip(&*dp).map(|(p, dp)| p * dp).sum();
        for ((score, p), dp) in scores.iter_mut().zip(p).zip(dp) {
            let slope = self.spec.softcap.map_or(1.0, |cap| 1.0 - (*score / cap) * (*score / cap));
            *score = *p * (*dp - mean) * self.spec.scale * slope;
        }
    }

    /// Gradients by the query, and those by new keys and values `[S_new, H]` added to what is there.
    fn back(&self, scratch: &Scratch, dq: &mut [f32], [dk, dv]: [&mut [f32]; 2]) {
        let h = self.keys.head_dim;
        for at in self.stretches() {
            let (q, dy) = (load(&self.q[at.clone()]), load(&self.dy[at.clone()]));
            let mut sum = [Vector::splat(0.0); WIDTH];
            for (key, (ds, p)) in self.seen().zip(scratch.scores.iter().zip(&scratch.p)) {
                sum = plus(sum, *ds, &load(&self.keys.at(key, self.head).0[at.clone()]));
                if key >= self.keys.num_past {
                    let new = (key - self.keys.num_past) * h;
                    let new = new + at.start..new + at.end;
                    let (dk, dv) = (&mut dk[new.clone()], &mut dv[new]);
                    store(plus(load(dk), *ds, &q), dk);
                    store(plus(load(dv), *p, &dy), dv);
                }
            }
            store(sum, &mut dq[at]);
        }
    }
}

impl AttentionSpec {
    /// Gradients of queries (for the query heads of one key head, `[T, group, H]`), and of its new keys and
    /// values, `[S_new, H]` each.
    pub(super) fn backward_head(
        &self,
        q: &[f32],
        dy: &[f32],
        heads: usize,
        keys: &Keys<'_>,
        head: usize,
    ) -> [Vec<f32>; 3] {
        let (h, group, num_queries) = (keys.head_dim, heads / keys.kv_heads, self.mask.num_queries());
        let mut dq = vec![0f32; num_queries * group * h];
        let num_new = keys.new_keys.len() / (keys.kv_heads * h);
        let (mut dk, mut dv) = (vec![0f32; num_new * h], vec![0f32; num_new * h]);
        let mut scratch = Scratch::default();
        for (row, dq) in dq.chunks_exact_mut(h).enumerate() {
            let query = row / group;
            let at = (query * heads + head * group + row % group) * h;
            let query = Query { spec: self, keys, head, query, q: &q[at..at + h], dy: &dy[at..at + h] };
            query.weigh(&mut scratch);
            query.back(&scratch, dq, [&mut dk, &mut dv]);
        }
        [dq, dk, dv]
    }
}
