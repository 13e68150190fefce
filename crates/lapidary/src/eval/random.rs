//! The draws of numpy's `RandomState` and of Python's `random`, so that seeded draws equal those of Python evaluations.

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

/// `random.Random(seed)` of Python.
pub(crate) fn python(seed: u32) -> Mt {
    Mt::new_with_key([seed])
}

/// A number below `n`, of as many random bits as `n` has.
fn below(n: usize, rng: &mut Mt) -> usize {
    let n = u32::try_from(n).expect("lists of texts are shorter than 2^32");
    let unused = n.leading_zeros();
    loop {
        let drawn = if unused == u32::BITS { 0 } else { rng.next_u32() >> unused };
        if drawn < n {
            return drawn as usize;
        }
    }
}

/// `Random.sample(range(n), count)`, `count` at most `n`.
pub(crate) fn python_sample(n: usize, count: usize, rng: &mut Mt) -> Vec<usize> {
    // Python keeps a list of what is left, or a set of what is taken, whichever is smaller, and draws accordingly.
    let mut set_size = 21;
    if count > 5 {
        set_size += 4usize.pow(((3.0 * count as f64).ln() / 4f64.ln()).ceil() as u32);
    }
    if n <= set_size {
        let mut left: Vec<usize> = (0..n).collect();
        return (0..count).map(|_| left.swap_remove(below(left.len(), rng))).collect();
    }
    let mut taken = std::collections::HashSet::with_capacity(count);
    let mut draw = || loop {
        let drawn = below(n, rng);
        if taken.insert(drawn) {
            return drawn;
        }
    };
    (0..count).map(|_| draw()).collect()
}

/// `Random.choices(range(n), k=count)`: with replacement.
pub(crate) fn python_choices(n: usize, count: usize, rng: &mut Mt) -> Vec<usize> {
    (0..count).map(|_| (uniform(rng) * n as f64) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_equal_python() {
        let mut rng = python(42);
        assert_eq!(python_sample(30, 8, &mut rng), [20, 3, 0, 23, 8, 7, 24, 4]);
        assert_eq!(python_sample(1000, 6, &mut rng), [754, 104, 692, 758, 913, 558]);
        assert_eq!(python_choices(7, 5, &mut rng), [0, 2, 0, 1, 3]);
        assert_eq!(python_sample(3, 3, &mut rng), [0, 2, 1]);
        assert_eq!(python_sample(1, 1, &mut rng), [0]);
    }
}
