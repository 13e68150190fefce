//! Masks against sets of keys.

use kernels::ops::AttentionMask;
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    /// Pushed intervals hold the same keys in the same order, with neighbours merged; a refused push leaves no trace.
    #[test]
    fn push_keeps_the_keys_and_merges_neighbours(
        queries in prop::collection::vec(prop::collection::vec((0u32..20, 0u32..4), 0..8), 0..6)
    ) {
        let mut mask = AttentionMask::new();
        let mut kept = Vec::new();
        for query in queries {
            let intervals: Vec<(u32, u32)> = query.into_iter().map(|(from, length)| (from, from + length)).collect();
            let filled: Vec<(u32, u32)> = intervals.iter().copied().filter(|(from, to)| from < to).collect();
            let keys: Vec<u32> = filled.into_iter().flat_map(|(from, to)| from..to).collect();
            let is_disjoint = keys.iter().collect::<BTreeSet<_>>().len() == keys.len();
            let pushed = mask.push(intervals);
            prop_assert_eq!(pushed.is_ok(), is_disjoint && !keys.is_empty());
            if pushed.is_ok() {
                kept.push(keys);
            }
        }
        prop_assert_eq!(mask.num_queries(), kept.len());
        for (query, keys) in kept.iter().enumerate() {
            let intervals = mask.intervals(query);
            prop_assert!(intervals.windows(2).all(|pair| pair[0].1 != pair[1].0));
            let found: Vec<u32> = intervals.iter().flat_map(|(from, to)| *from..*to).collect();
            prop_assert_eq!(&found, keys);
        }
    }
}

#[test]
fn the_default_mask_has_no_queries() {
    assert_eq!(AttentionMask::default(), AttentionMask::new());
    assert_eq!(AttentionMask::default().num_queries(), 0);
}
