//! A seeded shuffle of a stream within a window of bounded memory.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Shuffles a stream of results: holds up to `capacity` items, gives out one of them at random and
/// puts the next in its place. With a capacity of at least the number of items, every order is
/// equally likely. Errors pass through at once.
///
/// The order is a function of the seed, the epoch, the capacity and the source alone, so passing
/// over the first n items continues a run that has consumed n.
pub struct ShuffleBuffer<I, T> {
    source: I,
    buffer: Vec<T>,
    capacity: usize,
    rng: ChaCha8Rng,
}

impl<I, T, E> ShuffleBuffer<I, T>
where
    I: Iterator<Item = Result<T, E>>,
{
    /// A shuffle of `source`; each epoch draws from its own stream of the generator. A capacity of
    /// 0 or 1 keeps the order.
    pub fn new(source: I, capacity: usize, seed: u64, epoch: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        Self { source, buffer: Vec::new(), capacity: capacity.max(1), rng }
    }

    /// The stream being shuffled.
    pub fn source(&self) -> &I {
        &self.source
    }

    /// A number below `bound`, at most 2^-64 from uniform (Lemire 2019, equation 1 without
    /// rejection); the same on every platform.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.rng.next_u64()) * bound as u128) >> 64) as usize
    }
}

impl<I, T, E> Iterator for ShuffleBuffer<I, T>
where
    I: Iterator<Item = Result<T, E>>,
{
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.buffer.len() < self.capacity {
            match self.source.next() {
                Some(Ok(item)) => self.buffer.push(item),
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        if self.buffer.is_empty() {
            return None;
        }
        let chosen = self.below(self.buffer.len());
        Some(Ok(self.buffer.swap_remove(chosen)))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn shuffled(num: usize, capacity: usize, seed: u64, epoch: u64) -> Vec<usize> {
        let source = (0..num).map(Ok::<_, Infallible>);
        ShuffleBuffer::new(source, capacity, seed, epoch)
            .map(|item| match item {
                Ok(item) => item,
                Err(never) => match never {},
            })
            .collect()
    }

    proptest! {
        #[test]
        fn is_a_permutation_within_the_window(
            num in 0..200usize, capacity in 0..50usize, seed: u64, epoch in 0..9u64,
        ) {
            let order = shuffled(num, capacity, seed, epoch);
            for (position, &item) in order.iter().enumerate() {
                prop_assert!(item < position + capacity.max(1));
            }
            prop_assert_eq!(&order, &shuffled(num, capacity, seed, epoch));
            let mut sorted = order;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..num).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let one = shuffled(100, 100, 1, 0);
        assert_ne!(one, shuffled(100, 100, 2, 0));
        assert_ne!(one, shuffled(100, 100, 1, 1));
        assert_ne!(one, shuffled(100, 99, 1, 0));
        assert_eq!(shuffled(5, 1, 1, 0), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_full_window_gives_every_order_equally_often() {
        let mut counts = std::collections::HashMap::new();
        let num_draws = 6000;
        for seed in 0..num_draws {
            *counts.entry(shuffled(3, 3, seed, 0)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 6);
        // chi-squared with 5 degrees of freedom: above 25.7 with probability 1e-4
        let chi: f64 = counts.values().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 25.7, "{chi}: {counts:?}");
    }

    #[test]
    fn errors_pass_at_once() {
        let source = vec![Ok(1), Err("bad"), Ok(2)].into_iter();
        let items: Vec<_> = ShuffleBuffer::new(source, 10, 0, 0).collect();
        assert_eq!(items[0], Err("bad"));
        assert_eq!(items.len(), 3);
    }
}
