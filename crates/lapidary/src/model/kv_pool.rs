//! Keys and values of many rows in pages of one pool: rows come and go, and those that begin the same share pages.
//!
//! As in PagedAttention (arXiv 2309.06180): a row holds whole pages, which lie anywhere on the pool's key axis, so that a
//! row that ends leaves no gap that has to be closed. A full page of plain tokens can be found again by what it holds and
//! by the page before it; it stays, when its last row has ended, until its place is needed.

mod compressed;

pub use compressed::Compressed;

use super::kv_cache::{Piece, pieces_mask};
use super::segment::{Segment, Stretch};
use crate::Error;
use kernels::KvLayer;
use kernels::ops::AttentionMask;
use layout::TokenId;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 32;

/// What a full page holds, and the page of the same row before it.
type Contents = (Option<u32>, Vec<TokenId>);

#[derive(Debug, Default)]
struct Page {
    /// Rows that hold it.
    rows: usize,
    /// Pages that are found through it.
    followers: usize,
    /// Under what it is found.
    contents: Option<Contents>,
    /// When a row last let go of it.
    used: u64,
}

/// Pages of keys and values of all layers.
#[derive(Debug)]
pub struct KvPool {
    pub(crate) layers: Vec<Arc<KvLayer>>,
    /// RoPE position of each place.
    positions: Vec<u32>,
    pages: Vec<Page>,
    free: BTreeSet<u32>,
    found: HashMap<Contents, u32>,
    clock: u64,
}

/// The pages of one row. It is given back by [`KvPool::release`]; dropped without, its pages stay taken.
#[derive(Debug, Default)]
pub struct KvRow {
    pages: Vec<u32>,
    num_tokens: u32,
    /// Pages that can be found by their contents.
    num_shared: usize,
}

impl KvRow {
    /// Positions that have run.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens as usize
    }

    /// Its positions from `0` to `end` on the key axis.
    fn pieces(&self, end: u32) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for (i, page) in self.pages.iter().enumerate() {
            let first = (i * PAGE_TOKENS) as u32;
            let local = first..end.min(first + PAGE_TOKENS as u32);
            if local.is_empty() {
                break;
            }
            let at = page * PAGE_TOKENS as u32;
            match pieces.last_mut() {
                Some(last) if last.at + last.local.len() as u32 == at => last.local.end = local.end,
                _ => pieces.push(Piece { local, at }),
            }
        }
        pieces
    }
}

impl KvPool {
    /// A pool of so many pages, for `num_layers` layers of `width = num_key_value_heads * head_dim` numbers a token. Memory
    /// is taken as pages are first used.
    pub fn new(num_pages: usize, num_layers: usize, width: usize) -> Self {
        Self {
            layers: (0..num_layers).map(|_| Arc::new(KvLayer::new(width))).collect(),
            positions: vec![0; num_pages * PAGE_TOKENS],
            pages: (0..num_pages).map(|_| Page::default()).collect(),
            free: (0..num_pages as u32).collect(),
            found: HashMap::new(),
            clock: 0,
        }
    }

    /// Pages in all.
    pub fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that rows hold.
    pub fn num_held(&self) -> usize {
        self.pages.iter().filter(|page| page.rows > 0).count()
    }

    /// Pages that a new row could have: free ones, and those that no row holds any more.
    pub fn num_available(&self) -> usize {
        self.num_pages() - self.num_held()
    }

    /// Memory of keys and values, bytes.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.num_bytes()).sum()
    }

    /// A row that begins with the pages that hold the beginning of `ids`, all but its last token at most.
    pub fn begin(&mut self, ids: &[TokenId]) -> KvRow {
        let mut row = KvRow::default();
        let most = ids.len().saturating_sub(1) / PAGE_TOKENS;
        for tokens in ids.chunks_exact(PAGE_TOKENS).take(most) {
            let Some(page) = self.found.get(&(row.pages.last().copied(), tokens.to_vec())) else { break };
            row.pages.push(*page);
        }
        row.pages.iter().for_each(|page| self.pages[*page as usize].rows += 1);
        (row.num_shared, row.num_tokens) = (row.pages.len(), (row.pages.len() * PAGE_TOKENS) as u32);
        row
    }

    /// Pages that a row lacks for `num_tokens` positions more.
    pub fn num_lacking(&self, row: &KvRow, num_tokens: usize) -> usize {
        (row.num_tokens() + num_tokens).div_ceil(PAGE_TOKENS).saturating_sub(row.pages.len())
    }

    /// Positions that a row could have more.
    pub fn room(&self, row: &KvRow) -> usize {
        (row.pages.len() + self.num_available()) * PAGE_TOKENS - row.num_tokens()
    }

    /// Gives a row the pages for `num_tokens` positions more; false, and nothing given, where there are too few.
    pub fn reserve(&mut self, row: &mut KvRow, num_tokens: usize) -> bool {
        let lacking = self.num_lacking(row, num_tokens);
        if self.num_available() < lacking {
            return false;
        }
        while self.free.len() < lacking {
            if !self.evict() {
                return false;
            }
        }
        let next = row.pages.last().map_or(0, |last| last + 1);
        for page in self.neighbours(lacking, next) {
            self.free.remove(&page);
            self.pages[page as usize].rows = 1;
            row.pages.push(page);
        }
        true
    }

    /// So many free pages, of which there are enough: those from `next` on if they are free, else the first that lie side by
    /// side, else the first. Pages side by side are one stretch of keys, which is read faster.
    fn neighbours(&self, count: usize, next: u32) -> Vec<u32> {
        if (next..next + count as u32).all(|page| self.free.contains(&page)) {
            return (next..next + count as u32).collect();
        }
        let mut run: Vec<u32> = Vec::new();
        for page in &self.free {
            if run.last().is_some_and(|last| last + 1 != *page) {
                run.clear();
            }
            run.push(*page);
            if run.len() == count {
                return run;
            }
        }
        self.free.iter().take(count).copied().collect()
    }

    /// Frees the page that has longest been held by no row, of those through which none is found.
    fn evict(&mut self) -> bool {
        let idle = (0u32..).zip(&self.pages).filter(|(_, page)| page.rows == 0 && page.contents.is_some());
        let oldest = idle.filter(|(_, page)| page.followers == 0).min_by_key(|(_, page)| page.used);
        let Some((oldest, _)) = oldest else { return false };
        self.forget(oldest);
        self.free.insert(oldest);
        true
    }

    fn forget(&mut self, page: u32) {
        let Some(contents) = self.pages[page as usize].contents.take() else { return };
        if let Some(before) = contents.0 {
            self.pages[before as usize].followers -= 1;
        }
        self.found.remove(&contents);
    }

    /// Lets the full pages of a row be found by its tokens; `ids` are those of all its positions so far, which are plain ones.
    ///
    /// # Panics
    /// When there are fewer ids than positions.
    pub fn share(&mut self, row: &mut KvRow, ids: &[TokenId]) {
        assert!(ids.len() >= row.num_tokens(), "share: {} ids of {} positions", ids.len(), row.num_tokens());
        for at in row.num_shared..row.num_tokens() / PAGE_TOKENS {
            let before = at.checked_sub(1).map(|before| row.pages[before]);
            let contents = (before, ids[at * PAGE_TOKENS..(at + 1) * PAGE_TOKENS].to_vec());
            // Another row came first, or the page before this one is not found any more: this one stays the row's own.
            let is_reachable = before.is_none_or(|before| self.pages[before as usize].contents.is_some());
            if self.found.contains_key(&contents) || !is_reachable {
                return;
            }
            if let Some(before) = before {
                self.pages[before as usize].followers += 1;
            }
            self.pages[row.pages[at] as usize].contents = Some(contents.clone());
            self.found.insert(contents, row.pages[at]);
            row.num_shared = at + 1;
        }
    }

    /// Takes back what a row holds.
    pub fn release(&mut self, row: KvRow) {
        self.clock += 1;
        for page in row.pages.into_iter().rev() {
            let state = &mut self.pages[page as usize];
            state.rows -= 1;
            state.used = self.clock;
            if state.rows == 0 && state.contents.is_none() {
                self.free.insert(page);
            }
        }
    }

    /// Forgets what no row holds: pages are found again only if they are filled again.
    pub fn clear(&mut self) {
        while self.evict() {}
    }
}

/// The masks of a pass, one for each window, and the places of its positions.
type Begun = (Vec<Arc<AttentionMask>>, Vec<Range<usize>>);

/// A forward pass over rows of a pool: the row of each stretch, by its number.
#[derive(Debug)]
pub struct PoolPass<'a> {
    /// Holds the rows' pages.
    pub pool: &'a mut KvPool,
    /// Rows with pages for what runs; their positions are counted when the pass begins.
    pub rows: &'a mut [KvRow],
}

impl PoolPass<'_> {
    /// The mask of a segment for each window, and the places of its positions; the rows have run them from now on.
    ///
    /// # Errors
    /// When a row has no pages for its positions, or they do not follow those that have run.
    pub(crate) fn begin(&mut self, segment: &Segment, windows: &[Option<usize>]) -> Result<Begun, Error> {
        let mut places: Vec<Range<usize>> = Vec::new();
        let mut rest = segment.positions.as_slice();
        for Stretch { row: number, start, len, .. } in &segment.stretches {
            let num_rows = self.rows.len();
            let row = self
                .rows
                .get_mut(*number)
                .ok_or_else(|| Error::Internal(format!("kv_pool: a stretch of row {number} of {num_rows}")))?;
            let end = start + len;
            if *start != row.num_tokens || end as usize > row.pages.len() * PAGE_TOKENS {
                return Err(Error::Internal(format!(
                    "kv_pool: positions {start} to {end} of a row of {} with {} pages",
                    row.num_tokens,
                    row.pages.len()
                )));
            }
            for piece in row.pieces(end) {
                let local = piece.local.start.max(*start)..piece.local.end;
                if local.is_empty() {
                    continue;
                }
                let first = (piece.at + local.start - piece.local.start) as usize;
                let (now, later) = rest.split_at(local.len());
                self.pool.positions[first..first + local.len()].copy_from_slice(now);
                rest = later;
                places.push(first..first + local.len());
            }
            row.num_tokens = end;
        }
        let pieces: Vec<Vec<Piece>> = self.rows.iter().map(|row| row.pieces(row.num_tokens)).collect();
        let mask =
            |window: &Option<usize>| pieces_mask((&pieces, &self.pool.positions), segment, *window).map(Arc::new);
        Ok((windows.iter().map(mask).collect::<Result<_, _>>()?, places))
    }
}
