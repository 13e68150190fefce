//! The shuffle of numpy's `RandomState`, so that seeded draws equal those of Python evaluations.

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
