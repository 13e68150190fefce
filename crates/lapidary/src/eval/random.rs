//! The draws of numpy's `RandomState`, so that seeded draws equal those of Python evaluations.

use rand_mt::Mt;

/// Mersenne Twister in the state that `numpy.random.seed(seed)` gives.
pub(crate) fn seeded(seed: u32) -> Mt {
    Mt::new(seed)
}

/// What `numpy.random.shuffle` does to an array: Fisher-Yates from the end, each index drawn by
/// rejection under the smallest bit mask that covers it.
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut Mt) {
    for last in (1..items.len()).rev() {
        items.swap(last, index_up_to(last, rng));
    }
}

fn index_up_to(last: usize, rng: &mut Mt) -> usize {
    let last = u64::try_from(last).expect("usize is at most 64 bits");
    let mask = u64::MAX >> last.leading_zeros();
    loop {
        let drawn = if mask <= u64::from(u32::MAX) {
            u64::from(rng.next_u32())
        } else {
            u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32())
        };
        if drawn & mask <= last {
            return usize::try_from(drawn & mask).expect("not above `last`, which was a usize");
        }
    }
}

/// `RandomState.randint(0, n, count)`.
pub(crate) fn integers(n: usize, count: usize, rng: &mut Mt) -> Vec<usize> {
    (0..count).map(|_| if n == 1 { 0 } else { index_up_to(n - 1, rng) }).collect()
}

/// `RandomState.random_sample()`: 53 random bits, in 0..1.
pub(crate) fn uniform(rng: &mut Mt) -> f64 {
    let (high, low) = (f64::from(rng.next_u32() >> 5), f64::from(rng.next_u32() >> 6));
    (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
}

/// `RandomState.choice(n, p=equal shares)`: the share that a uniform number falls into.
pub(crate) fn choice(n: usize, rng: &mut Mt) -> usize {
    ((uniform(rng) * n as f64) as usize).min(n - 1)
}

/// `RandomState.choice(n, size=count, replace=False)`.
pub(crate) fn choice_without_replacement(n: usize, count: usize, rng: &mut Mt) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    shuffle(&mut all, rng);
    all.truncate(count);
    all
}
