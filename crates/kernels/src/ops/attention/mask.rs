//! Visibility as intervals of keys.

use super::blocks::Block;
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{Result, bail};

/// Which keys each query may attend to, as disjoint intervals, in the order in which they are summed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionMask {
    offsets: Vec<u32>,
    intervals: Vec<(u32, u32)>,
    pub(super) blocks: Vec<Block>,
    #[cfg(feature = "cuda")]
    on_gpu: cuda::Beside<cuda::DeviceMask>,
}

impl Default for AttentionMask {
    fn default() -> Self {
        Self::new()
    }
}

impl AttentionMask {
    /// A mask without queries.
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            intervals: Vec::new(),
            blocks: Vec::new(),
            #[cfg(feature = "cuda")]
            on_gpu: cuda::Beside::default(),
        }
    }

    /// Adds the next query: it may attend to the keys of these intervals `from..to`.
    ///
    /// # Errors
    /// When no key is allowed (the softmax of nothing is not a number), or the intervals overlap;
    /// the mask is then unchanged.
    pub fn push(&mut self, intervals: impl IntoIterator<Item = (u32, u32)>) -> Result<()> {
        let query = self.num_queries();
        let first = self.intervals.len();
        #[cfg(feature = "cuda")]
        {
            self.on_gpu = cuda::Beside::default();
        }
        let mut end = 0;
        for (from, to) in intervals.into_iter().filter(|(from, to)| from < to) {
            // Those behind all others overlap none.
            if from < end && self.intervals[first..].iter().any(|other| from < other.1 && other.0 < to) {
                self.intervals.truncate(first);
                bail!("mask: query {query} has overlapping intervals");
            }
            match self.intervals[first..].last_mut() {
                Some(last) if from == last.1 => last.1 = to,
                _ => self.intervals.push((from, to)),
            }
            end = end.max(to);
        }
        if self.intervals.len() == first {
            bail!("mask: query {query} may attend to no key");
        }
        self.offsets.push(self.intervals.len() as u32);
        let added = &self.intervals[first..];
        if !self.blocks.last_mut().is_some_and(|block| block.try_push(added)) {
            self.blocks.push(Block::new(query, added));
        }
        Ok(())
    }

    /// Number of queries, T.
    pub fn num_queries(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The intervals of one query.
    pub fn intervals(&self, query: usize) -> &[(u32, u32)] {
        &self.intervals[self.offsets[query] as usize..self.offsets[query + 1] as usize]
    }

    /// Where the intervals of each query begin, and where the last one's end.
    #[cfg(feature = "cuda")]
    pub(crate) fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> &cuda::DeviceMask {
        &self.on_gpu.0
    }

    pub(in crate::ops) fn end(&self) -> usize {
        self.intervals.iter().map(|(_, to)| *to as usize).max().unwrap_or(0)
    }
}
