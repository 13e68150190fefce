//! The draws of numpy's `Generator`, as `numpy.random.default_rng(seed)` makes it: PCG XSL RR 128/64 (O'Neill 2014),
//! its state spread from the seed by numpy's `SeedSequence`.

/// Multiplier of the 128-bit generator.
const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// A generator and the half of its last number that is not used yet.
#[derive(Debug)]
pub(crate) struct Generator {
    state: u128,
    increment: u128,
    upper_half: Option<u32>,
}

impl Generator {
    /// `numpy.random.default_rng(seed)`.
    pub(crate) fn seeded(seed: u32) -> Self {
        let words = spread(seed);
        let wide = |i: usize| u128::from(words[i]) << 64 | u128::from(words[i + 1]);
        let increment = wide(2) << 1 | 1;
        let mut generator = Self { state: 0, increment, upper_half: None };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// The lower half of a number, then its upper half.
    fn next_u32(&mut self) -> u32 {
        if let Some(upper) = self.upper_half.take() {
            return upper;
        }
        let number = self.next_u64();
        self.upper_half = Some((number >> 32) as u32);
        number as u32
    }

    /// A number in `0..=last`, by the multiplication of Lemire (arXiv 1805.10941).
    fn up_to(&mut self, last: u32) -> u32 {
        if last == 0 {
            return 0;
        }
        let Some(count) = last.checked_add(1) else { return self.next_u32() };
        let mut product = u64::from(self.next_u32()) * u64::from(count);
        if (product as u32) < count {
            let threshold = (u32::MAX - last) % count;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(count);
            }
        }
        (product >> 32) as u32
    }

    /// A number in `0..=last`, by rejection under the smallest bit mask that covers it.
    fn masked_up_to(&mut self, last: u32) -> u32 {
        if last == 0 {
            return 0;
        }
        let mask = u32::MAX >> last.leading_zeros();
        loop {
            let drawn = self.next_u32() & mask;
            if drawn <= last {
                return drawn;
            }
        }
    }

    /// What `Generator.permutation` makes of an array.
    pub(crate) fn permutation<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, self.masked_up_to(index(last)) as usize);
        }
        items
    }

    /// `Generator.choice(n, size=count, replace=False)`, for the sizes at which numpy takes Floyd's algorithm:
    /// at most 10,000 things, or at most a fiftieth of them.
    pub(crate) fn choice_without_replacement(&mut self, n: usize, count: usize) -> Vec<usize> {
        debug_assert!(count <= n && (n <= 10_000 || count <= n / 50), "{count} of {n}");
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        for last in n - count..n {
            let drawn = self.up_to(index(last)) as usize;
            chosen.push(if chosen.contains(&drawn) { last } else { drawn });
        }
        for last in (1..count).rev() {
            chosen.swap(last, self.up_to(index(last)) as usize);
        }
        chosen
    }
}

fn index(last: usize) -> u32 {
    u32::try_from(last).expect("lists of texts are shorter than 2^32")
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn spread(seed: u32) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let mix = |a: u32, b: u32| {
        let mixed = a.wrapping_mul(0xca01_f9dd).wrapping_sub(b.wrapping_mul(0x4973_f715));
        mixed ^ mixed >> 16
    };
    let mut pool = [seed, 0, 0, 0].map(&mut hash);
    for source in 0..pool.len() {
        for target in (0..pool.len()).filter(|target| *target != source) {
            pool[target] = mix(pool[target], hash(pool[source]));
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut word = |i: usize| {
        let value = pool[i % pool.len()] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        u64::from(value ^ value >> 16)
    };
    let words: Vec<u64> = (0..8).map(&mut word).collect();
    [0, 2, 4, 6].map(|i| words[i] | words[i + 1] << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_equal_numpy() {
        // numpy 2.4: default_rng(42).permutation(12); then, of one generator, choices without replacement and
        // permutations in turn; the ends of a long permutation.
        let twelve = Generator::seeded(42).permutation((0..12).collect::<Vec<usize>>());
        assert_eq!(twelve, [0, 7, 6, 9, 11, 3, 5, 2, 4, 10, 1, 8]);
        let mut rng = Generator::seeded(42);
        assert_eq!(rng.choice_without_replacement(20, 6), [11, 12, 8, 17, 7, 1]);
        assert_eq!(rng.permutation(vec![0, 1, 2, 3, 4]), [2, 4, 0, 3, 1]);
        assert_eq!(rng.choice_without_replacement(9, 9), [8, 0, 3, 1, 6, 4, 2, 5, 7]);
        assert_eq!(rng.permutation(vec![7, 8, 9]), [7, 8, 9]);
        let long = Generator::seeded(7).permutation((0..100_000).collect::<Vec<usize>>());
        assert_eq!(long[..4], [45070, 71435, 99538, 45453]);
        assert_eq!(long[99_997..], [27285, 16809, 84619]);
    }
}
