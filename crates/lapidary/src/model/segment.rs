//! The positions that run in one forward pass: stretches of one or more rows, packed end to end.

use kernels::ops::Rows;
use layout::{Anchors, Input, Layout, TokenId};
use std::ops::Range;
use std::sync::Arc;

/// One stretch of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Number of the row in the batch and in the KV cache.
    pub(crate) row: usize,
    /// Place of the first position within its row.
    pub(crate) start: u32,
    /// Number of positions.
    pub(crate) len: u32,
    /// The row, of an earlier stretch, whose first `start` positions are those of this row too.
    pub(crate) like: Option<usize>,
}

/// The keys of their row that positions may see: ranges of all positions one after the other, in one piece of memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed {
    ranges: Vec<Range<u32>>,
    /// Of each position where its ranges end.
    ends: Vec<usize>,
}

impl Allowed {
    /// Adds the next position.
    fn push(&mut self, ranges: impl IntoIterator<Item = Range<u32>>) {
        self.ranges.extend(ranges);
        self.ends.push(self.ranges.len());
    }

    /// Those of each position.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Range<u32>]> {
        let ends = self.ends.iter().copied();
        std::iter::once(0).chain(ends.clone()).zip(ends).map(|(from, to)| &self.ranges[from..to])
    }
}

impl<R: IntoIterator<Item = Range<u32>>> FromIterator<R> for Allowed {
    fn from_iter<I: IntoIterator<Item = R>>(positions: I) -> Self {
        let mut all = Self::default();
        positions.into_iter().for_each(|ranges| all.push(ranges));
        all
    }
}

/// How many of the first positions, `most` at the most, are the same in both rows: tokens that see what lies before them.
fn num_alike(a: &Layout, b: &Layout, most: usize) -> usize {
    let seen = |row: &Layout, t: u32| row.visibility().allowed_keys(t, row.num_tokens() as u32);
    let is_alike = |t: &usize| {
        let is_token = matches!(a.inputs()[*t], Input::Token(_)) && a.inputs()[*t] == b.inputs()[*t];
        let is_placed_alike = a.positions()[*t] == b.positions()[*t] && a.adapted()[*t] == b.adapted()[*t];
        is_token && is_placed_alike && {
            let seen_of_a = seen(a, *t as u32);
            seen_of_a.last().is_none_or(|last| last.end as usize <= t + 1) && seen_of_a == seen(b, *t as u32)
        }
    };
    (0..most).take_while(is_alike).count()
}

/// Positions ready to run: inputs, RoPE positions, adapter gate, and the keys (of their own row) that each may see.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub(crate) inputs: Vec<Input>,
    pub(crate) positions: Vec<u32>,
    pub(crate) adapted: Arc<Rows>,
    pub(crate) stretches: Vec<Stretch>,
    pub(crate) allowed: Allowed,
}

impl Segment {
    /// The given part of each row; row i of the batch is item i, and parts may be empty.
    pub fn of_rows<'a>(rows: impl IntoIterator<Item = (&'a Layout, Range<usize>)>) -> Self {
        let parts = rows.into_iter().enumerate().filter(|(_, (_, part))| !part.is_empty());
        Self::of_parts(parts.map(|(row, (layout, part))| (row, layout, part, None)))
    }

    /// The first positions of each row, so many, of which those that rows begin with alike run once: no more of a row
    /// than its third number.
    ///
    /// What a row shares has the keys and values that it would have by itself. Stretches are in another order than rows.
    pub fn sharing(rows: &[(&Layout, usize, usize)]) -> Self {
        let tokens = |row: usize| {
            let (layout, len, _) = rows[row];
            layout.inputs()[..len].iter().map(|input| if let Input::Token(id) = input { Some(*id) } else { None })
        };
        // Of all rows, a neighbour in the order of their tokens begins alike for longest.
        let mut order: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].1 > 0).collect();
        order.sort_by(|a, b| tokens(*a).cmp(tokens(*b)));
        let mut before: Option<usize> = None;
        Self::of_parts(order.into_iter().map(|row| {
            let (layout, len, most) = rows[row];
            let alike = |like: &usize| num_alike(rows[*like].0, layout, len.min(most).min(rows[*like].1));
            let start = before.as_ref().map_or(0, alike);
            let like = before.replace(row).filter(|_| start > 0);
            (row, layout, start..len, like)
        }))
    }

    fn of_parts<'a>(parts: impl Iterator<Item = (usize, &'a Layout, Range<usize>, Option<usize>)>) -> Self {
        let mut segment = Self::default();
        let mut adapted = Vec::new();
        for (row, layout, part, like) in parts {
            let first = segment.num_tokens();
            segment.inputs.extend(&layout.inputs()[part.clone()]);
            segment.positions.extend(&layout.positions()[part.clone()]);
            adapted.extend(part.clone().filter(|t| layout.adapted()[*t]).map(|t| (first + t - part.start) as u32));
            let len = layout.num_tokens() as u32;
            part.clone().for_each(|t| segment.allowed.push(layout.visibility().allowed_keys(t as u32, len)));
            segment.stretches.push(Stretch { row, start: part.start as u32, len: part.len() as u32, like });
        }
        segment.adapted = Arc::new(adapted.into());
        segment
    }

    /// All positions of each row.
    pub fn whole<'a>(rows: impl IntoIterator<Item = &'a Layout>) -> Self {
        Self::of_rows(rows.into_iter().map(|row| (row, 0..row.num_tokens())))
    }

    /// The next tokens of one plain causal row, which sees all of its past; `past` positions of it have run.
    pub fn next_tokens(row: usize, tokens: &[TokenId], past: u32, first_position: u32) -> Self {
        let len = tokens.len() as u32;
        Self {
            inputs: tokens.iter().map(|t| Input::Token(*t)).collect(),
            positions: (first_position..first_position + len).collect(),
            adapted: Arc::default(),
            stretches: vec![Stretch { row, start: past, len, like: None }],
            allowed: (0..len).map(|t| std::iter::once(0..past + t + 1)).collect(),
        }
    }

    /// Whole plain causal rows, packed end to end.
    pub fn plain_rows<'a>(rows: impl IntoIterator<Item = &'a [TokenId]>) -> Self {
        Self::next_of_rows(rows.into_iter().map(|tokens| (tokens, 0)))
    }

    /// The next tokens of plain causal rows, packed end to end; of each, this many positions have run.
    pub fn next_of_rows<'a>(rows: impl IntoIterator<Item = (&'a [TokenId], u32)>) -> Self {
        let mut all = Self::default();
        for (row, (tokens, past)) in rows.into_iter().enumerate() {
            let next = Self::next_tokens(row, tokens, past, past);
            all.inputs.extend(next.inputs);
            all.positions.extend(next.positions);
            all.stretches.extend(next.stretches);
            next.allowed.iter().for_each(|ranges| all.allowed.push(ranges.iter().cloned()));
        }
        all
    }

    /// Of each stretch its row, the place of its first position within the row, and that within the segment.
    pub fn starts(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        self.stretches.iter().scan(0, |place, Stretch { row, start, len, .. }| {
            let first = *place;
            *place += len;
            Some((*row, *start, first))
        })
    }

    /// Adds the positions of a segment of one row, which is row `row` from now on.
    pub fn push(&mut self, row: usize, one: Self) {
        let first = self.num_tokens() as u32;
        let adapted = self.adapted.iter().copied().chain(one.adapted.iter().map(|at| at + first));
        self.adapted = Arc::new(adapted.collect::<Vec<u32>>().into());
        self.inputs.extend(one.inputs);
        self.positions.extend(one.positions);
        self.stretches.extend(one.stretches.into_iter().map(|stretch| Stretch { row, ..stretch }));
        one.allowed.iter().for_each(|ranges| self.allowed.push(ranges.iter().cloned()));
    }

    /// The same positions behind `num_before` others of their rows, which have run and which each of them sees.
    #[must_use]
    pub fn behind(mut self, num_before: u32) -> Self {
        if num_before == 0 {
            return self;
        }
        self.positions.iter_mut().for_each(|position| *position += num_before);
        self.stretches.iter_mut().for_each(|stretch| stretch.start += num_before);
        let moved = |keys: &Range<u32>| keys.start + num_before..keys.end + num_before;
        let all = self.allowed.iter();
        self.allowed = all.map(|ranges| std::iter::once(0..num_before).chain(ranges.iter().map(moved))).collect();
        self
    }

    /// The same positions with the adapter acting on every one of them.
    #[must_use]
    pub fn adapt_all(mut self) -> Self {
        self.adapted = Arc::new((0..self.num_tokens() as u32).collect::<Vec<u32>>().into());
        self
    }

    /// The same plain rows, of whose past no more is seen than `anchors` keep in view; `rows` holds all tokens of each
    /// row up to the end of its stretch.
    #[must_use]
    pub fn in_view(mut self, anchors: Option<&Anchors>, rows: &[&[TokenId]]) -> Self {
        let Some(anchors) = anchors else { return self };
        let visibilities: Vec<_> = rows.iter().map(|ids| anchors.visibility(ids)).collect();
        let of_stretch = |Stretch { row, start, len, .. }: &Stretch| {
            let (visibility, end) = (&visibilities[*row], start + len);
            (*start..end).map(move |query| visibility.allowed_keys(query, end))
        };
        self.allowed = self.stretches.iter().flat_map(of_stretch).collect();
        self
    }

    /// Number of positions, T.
    pub fn num_tokens(&self) -> usize {
        self.inputs.len()
    }
}
