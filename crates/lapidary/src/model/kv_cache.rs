//! Keys and values of the positions that have run, and where each row's lie.

use super::kv_pool::PoolPass;
use super::segment::{Segment, Stretch};
use crate::Error;
use kernels::KvLayer;
use kernels::ops::AttentionMask;
use std::ops::Range;
use std::sync::Arc;

/// A stretch of one row's positions that lie together on the key axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) local: Range<u32>,
    pub(crate) at: u32,
}

/// The cache of one batch: all layers, all rows, in the order in which tokens were run.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    pub(crate) layers: Vec<Arc<KvLayer>>,
    rows: Vec<Vec<Piece>>,
    positions: Vec<u32>,
}

/// Keys and values of a forward pass.
pub enum Kv<'a> {
    /// The segment holds whole rows; nothing is kept.
    None,
    /// Continue the rows of this cache and add to it. No gradient flows through it.
    Append(&'a mut KvCache),
    /// Continue the rows of this cache and leave it as it is; gradients flow within the segment alone.
    Past(&'a KvCache),
    /// Continue rows of a pool and add to them. No gradient flows through it.
    Pool(PoolPass<'a>),
}

impl Kv<'_> {
    /// The same for one pass of several.
    pub(crate) fn reborrow(&mut self) -> Kv<'_> {
        match self {
            Kv::None => Kv::None,
            Kv::Append(cache) => Kv::Append(cache),
            Kv::Past(cache) => Kv::Past(cache),
            Kv::Pool(PoolPass { pool, rows }) => Kv::Pool(PoolPass { pool, rows }),
        }
    }
}

impl KvCache {
    /// An empty cache for `num_layers` layers of `width = num_key_value_heads * head_dim` numbers a token.
    pub fn new(num_layers: usize, width: usize) -> Self {
        Self {
            layers: (0..num_layers).map(|_| Arc::new(KvLayer::new(width))).collect(),
            rows: Vec::new(),
            positions: Vec::new(),
        }
    }

    /// Number of tokens held, all rows together.
    pub fn num_tokens(&self) -> usize {
        self.positions.len()
    }

    /// Memory of keys and values, bytes.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.num_bytes()).sum()
    }

    /// Only the positions `local` of row `row`, as row 0 of a new cache, numbered from 0.
    ///
    /// # Errors
    /// When the row does not hold these positions in one piece.
    pub fn extract(&self, row: usize, local: Range<u32>) -> Result<Self, Error> {
        let pieces = self.rows.get(row).map_or(&[][..], Vec::as_slice);
        let piece = pieces.iter().find(|p| p.local.start <= local.start && local.end <= p.local.end);
        let Some(piece) = piece else {
            return Err(Error::Internal(format!("kv_cache: row {row} does not hold positions {local:?} together")));
        };
        let at = (piece.at + local.start - piece.local.start) as usize;
        let range = at..at + local.len();
        Ok(Self {
            layers: self
                .layers
                .iter()
                .map(|layer| layer.slice(range.clone()).map(Arc::new))
                .collect::<Result<_, _>>()?,
            rows: vec![vec![Piece { local: 0..local.len() as u32, at: 0 }]],
            positions: self.positions[range].to_vec(),
        })
    }

    /// The positions of row 0, its only one, that lie in `keep`, which is sorted; they keep their numbers.
    ///
    /// # Errors
    /// When there are other rows.
    pub fn retain(&self, keep: &[Range<u32>]) -> Result<Self, Error> {
        let [pieces] = self.rows.as_slice() else {
            return Err(Error::Internal(format!("kv_cache: expected one row, found {}", self.rows.len())));
        };
        let (mut kept, mut places, mut at): (Vec<Piece>, Vec<Range<usize>>, u32) = (Vec::new(), Vec::new(), 0);
        for (piece, keep) in pieces.iter().flat_map(|piece| keep.iter().map(move |keep| (piece, keep))) {
            let local = piece.local.start.max(keep.start)..piece.local.end.min(keep.end);
            if local.is_empty() {
                continue;
            }
            let first = (piece.at + local.start - piece.local.start) as usize;
            places.push(first..first + local.len());
            kept.push(Piece { at, local: local.clone() });
            at += local.len() as u32;
        }
        Ok(Self {
            layers: self.layers.iter().map(|layer| layer.select(&places).map(Arc::new)).collect::<Result<_, _>>()?,
            positions: places.iter().flat_map(|place| &self.positions[place.clone()]).copied().collect(),
            rows: vec![kept],
        })
    }

    /// Notes that the tokens of `segment` come next on the key axis.
    fn grow(&mut self, segment: &Segment) {
        let mut at = self.positions.len() as u32;
        for Stretch { row, start, len, like } in &segment.stretches {
            if self.rows.len() <= *row {
                self.rows.resize(row + 1, Vec::new());
            }
            if let Some(like) = like {
                self.rows[*row] = first_pieces(&self.rows[*like], *start);
            }
            match self.rows[*row].last_mut() {
                Some(last) if last.local.end == *start && last.at + last.local.len() as u32 == at => {
                    last.local.end += len
                }
                _ if *len == 0 => (),
                _ => self.rows[*row].push(Piece { local: *start..start + len, at }),
            }
            at += len;
        }
        self.positions.extend(&segment.positions);
    }

    /// The mask of `segment` over the key axis `[this cache | segment]`, for each window; a window hides keys
    /// `window` or more positions back.
    pub(crate) fn masks(&self, segment: &Segment, windows: &[Option<usize>]) -> Result<Vec<Arc<AttentionMask>>, Error> {
        let mut axis = Self { layers: Vec::new(), rows: self.rows.clone(), positions: self.positions.clone() };
        axis.append_masks(segment, windows)
    }

    /// As [`KvCache::masks`]; the tokens of `segment` are noted as held from now on.
    pub(crate) fn append_masks(
        &mut self,
        segment: &Segment,
        windows: &[Option<usize>],
    ) -> Result<Vec<Arc<AttentionMask>>, Error> {
        self.grow(segment);
        let mask = |window: &Option<usize>| pieces_mask((&self.rows, &self.positions), segment, *window).map(Arc::new);
        windows.iter().map(mask).collect()
    }
}

/// Where the first `count` positions of a row lie.
fn first_pieces(row: &[Piece], count: u32) -> Vec<Piece> {
    let cut = |piece: &Piece| Piece { local: piece.local.start..piece.local.end.min(count), at: piece.at };
    row.iter().take_while(|piece| piece.local.start < count).map(cut).collect()
}

/// The mask of a segment over the key axis on which the rows' positions lie as `pieces` say; `positions` are those of the
/// axis, for a window.
pub(crate) fn pieces_mask(
    (pieces, positions): (&[Vec<Piece>], &[u32]),
    segment: &Segment,
    window: Option<usize>,
) -> Result<AttentionMask, Error> {
    let mut mask = AttentionMask::new();
    let mut allowed = segment.allowed.iter().zip(&segment.positions);
    let mut intervals: Vec<(u32, u32)> = Vec::new();
    for stretch in &segment.stretches {
        for (ranges, position) in allowed.by_ref().take(stretch.len as usize) {
            intervals.clear();
            for allowed in ranges {
                for piece in &pieces[stretch.row] {
                    let (from, to) = (allowed.start.max(piece.local.start), allowed.end.min(piece.local.end));
                    if from < to {
                        intervals.push((piece.at + from - piece.local.start, piece.at + to - piece.local.start));
                    }
                }
            }
            match window {
                Some(window) => mask.push(inside_window(positions, &intervals, *position, window))?,
                None => mask.push(intervals.iter().copied())?,
            }
        }
    }
    Ok(mask)
}

fn inside_window(positions: &[u32], intervals: &[(u32, u32)], position: u32, window: usize) -> Vec<(u32, u32)> {
    let near = |key: &u32| (position as usize) < positions[*key as usize] as usize + window;
    let mut kept: Vec<(u32, u32)> = Vec::new();
    for key in intervals.iter().flat_map(|(from, to)| *from..*to).filter(near) {
        match kept.last_mut() {
            Some(last) if last.1 == key => last.1 += 1,
            _ => kept.push((key, key + 1)),
        }
    }
    kept
}
