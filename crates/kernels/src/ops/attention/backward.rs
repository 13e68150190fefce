//! The backward pass of attention on the CPU, a query at a time: a stretch of its head stays in registers over all keys.

use super::{AttentionSpec, Keys};
use crate::cpu::exp_of;
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

/// Over the keys that a query sees, in their order, filled up to whole vectors.
#[derive(Default)]
struct Scratch {
    /// Products with keys, then the gradients of those.
    scores: Vec<[f32; LANES]>,
    /// Probabilities, zero behind the last key.
    p: Vec<[f32; LANES]>,
    /// Products of the gradient with values.
    dp: Vec<[f32; LANES]>,
}

/// Adds to `sums` the products of a stretch with those of `sums.len()` keys or values, `stride` numbers apart.
#[inline(always)]
fn add_products(stretch: &Stretch, (x, stride, width): (&[f32], usize, usize), sums: &mut [f32]) {
    let product = |key: usize| {
        let other = load(&x[key * stride..key * stride + width]);
        let terms = stretch.iter().zip(&other);
        terms.fold(Vector::splat(0.0), |sum, (a, b)| sum.plus_product(*a, *b))
    };
    let (fours, rest) = sums.as_chunks_mut::<4>();
    let num_whole = 4 * fours.len();
    for (i, sums) in fours.iter_mut().enumerate() {
        let added = Vector::sums(std::array::from_fn(|n| product(4 * i + n)));
        sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
    }
    rest.iter_mut().enumerate().for_each(|(i, sum)| *sum += product(num_whole + i).sum());
}

/// The sum over both of the products of their numbers.
fn dot(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    let pairs = a.iter().zip(b).map(|(a, b)| (Vector::load(a), Vector::load(b)));
    pairs.fold(Vector::splat(0.0), |sum, (a, b)| sum.plus_product(a, b)).sum()
}

impl Query<'_> {
    fn runs(&self) -> impl Iterator<Item = (usize, [&[f32]; 2], usize)> {
        self.keys.runs(self.spec.mask.intervals(self.query), self.head)
    }

    /// Numbers from a key to the next.
    fn stride(&self) -> usize {
        self.keys.kv_heads * self.keys.head_dim
    }

    /// Where the stretches of a head begin and end.
    fn stretches(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let h = self.keys.head_dim;
        (0..h).step_by(WIDTH * LANES).map(move |at| at..h.min(at + WIDTH * LANES))
    }

    /// Probabilities, and gradients of the products with keys.
    fn weigh(&self, scratch: &mut Scratch) {
        let Scratch { scores, p, dp } = scratch;
        let num_keys: usize = self.runs().map(|(_, _, count)| count).sum();
        for numbers in [&mut *scores, &mut *p, &mut *dp] {
            numbers.clear();
            numbers.resize(num_keys.div_ceil(LANES), [0.0; LANES]);
        }
        for at in self.stretches() {
            let (q, dy) = (load(&self.q[at.clone()]), load(&self.dy[at.clone()]));
            let mut first = 0;
            for (_, [k, v], count) in self.runs() {
                let of_run = first..first + count;
                let place = |x| (x, self.stride(), at.len());
                add_products(&q, place(&k[at.start..]), &mut scores.as_flattened_mut()[of_run.clone()]);
                add_products(&dy, place(&v[at.start..]), &mut dp.as_flattened_mut()[of_run]);
                first += count;
            }
        }
        let numbers = &mut scores.as_flattened_mut()[..num_keys];
        numbers.iter_mut().for_each(|score| *score *= self.spec.scale);
        if let Some(cap) = self.spec.softcap {
            numbers.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        let max = Vector::splat(numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        p.iter_mut().zip(&*scores).for_each(|(p, score)| exp_of(Vector::load(score).minus(max)).store(p));
        p.as_flattened_mut()[num_keys..].fill(0.0);
        let inverse = 1.0 / p.iter().map(|p| Vector::load(p).sum()).sum::<f32>();
        p.as_flattened_mut().iter_mut().for_each(|p| *p *= inverse);
        let mean = dot(p, dp);
        for ((score, p), dp) in scores.as_flattened_mut().iter_mut().zip(p.as_flattened()).zip(dp.as_flattened()) {
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
            let mut weights = scratch.scores.as_flattened().iter().zip(scratch.p.as_flattened());
            for (first, [k, _], count) in self.runs() {
                for ((key, k), (ds, p)) in (first..).zip(k.chunks(self.stride())).zip(weights.by_ref().take(count)) {
                    sum = plus(sum, *ds, &load(&k[at.clone()]));
                    if key >= self.keys.num_past {
                        let new = (key - self.keys.num_past) * h;
                        let new = new + at.start..new + at.end;
                        let (dk, dv) = (&mut dk[new.clone()], &mut dv[new]);
                        store(plus(load(dk), *ds, &q), dk);
                        store(plus(load(dv), *p, &dy), dv);
                    }
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
