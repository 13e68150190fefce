//! Who may attend to whom in one row: a base rule minus cuts.

use std::ops::Range;

/// The rule before any cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Base {
    /// A query sees itself and every earlier key.
    #[default]
    Causal,
    /// A query sees every key of the row.
    Full,
    /// A query sees itself, the `window - 1` keys before it, and every earlier anchor.
    Anchored {
        /// The number of neighbours, the query among them; at least 1.
        window: u32,
    },
}

/// A block of keys hidden from a block of queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The positions that lose sight.
    pub queries: Range<u32>,
    /// The positions they no longer see.
    pub keys: Range<u32>,
}

/// The attention rule of a row. Cuts only ever take visibility away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visibility {
    /// The rule before any cut.
    pub base: Base,
    /// Keys that [`Base::Anchored`] shows to every later query: sorted, disjoint; empty for every other base.
    pub anchors: Vec<Range<u32>>,
    /// What is hidden from whom; cuts may overlap.
    pub cuts: Vec<Cut>,
}

impl Visibility {
    /// Whether the position `query` may attend to the position `key`.
    #[must_use]
    pub fn allows(&self, query: u32, key: u32) -> bool {
        let shown = match self.base {
            Base::Causal => key <= query,
            Base::Full => true,
            Base::Anchored { window } => {
                key <= query && (query - key < window || self.anchors.iter().any(|anchor| anchor.contains(&key)))
            }
        };
        shown && !(self.cuts.iter()).any(|cut| cut.queries.contains(&query) && cut.keys.contains(&key))
    }

    /// The keys below `num_tokens` that `query` may attend to, as sorted, disjoint, maximal ranges.
    ///
    /// The cost depends on the number of cuts and anchors, not on the number of keys.
    #[must_use]
    pub fn allowed_keys(&self, query: u32, num_tokens: u32) -> Vec<Range<u32>> {
        let causal = num_tokens.min(query.saturating_add(1));
        let end = match self.base {
            Base::Full => num_tokens,
            Base::Causal | Base::Anchored { .. } => causal,
        };
        let Base::Anchored { window } = self.base else { return self.uncut(query, 0..end) };
        let near = query.saturating_add(1).saturating_sub(window).min(end)..end;
        let mut allowed: Vec<Range<u32>> = Vec::new();
        let far = self.anchors.iter().map(|anchor| anchor.start..anchor.end.min(near.start));
        for keys in far.chain([near.clone()]).flat_map(|keys| self.uncut(query, keys)) {
            match allowed.last_mut() {
                Some(last) if last.end == keys.start => last.end = keys.end,
                _ => allowed.push(keys),
            }
        }
        allowed
    }

    /// What the cuts leave of `keys` for `query`, as sorted, disjoint, maximal ranges.
    fn uncut(&self, query: u32, keys: Range<u32>) -> Vec<Range<u32>> {
        let Range { mut start, end } = keys;
        let mut hidden: Vec<&Range<u32>> = (self.cuts.iter())
            .filter(|cut| cut.queries.contains(&query) && !cut.keys.is_empty())
            .map(|cut| &cut.keys)
            .collect();
        hidden.sort_unstable_by_key(|keys| keys.start);
        let mut allowed = Vec::with_capacity(hidden.len() + 1);
        for keys in hidden {
            if start < keys.start.min(end) {
                allowed.push(start..keys.start.min(end));
            }
            start = start.max(keys.end);
        }
        if start < end {
            allowed.push(start..end);
        }
        allowed
    }

    /// The same rule for the first `num_tokens` positions only.
    pub(crate) fn truncated(&self, num_tokens: u32) -> Self {
        let clip = |range: &Range<u32>| range.start..range.end.min(num_tokens);
        let cuts = (self.cuts.iter())
            .map(|cut| Cut { queries: clip(&cut.queries), keys: clip(&cut.keys) })
            .filter(|cut| !cut.queries.is_empty() && !cut.keys.is_empty())
            .collect();
        let anchors = self.anchors.iter().map(clip).filter(|anchor| !anchor.is_empty()).collect();
        Self { base: self.base, anchors, cuts }
    }

    /// The mask of one query over `num_tokens` keys: `#` may attend, `.` may not.
    pub(crate) fn draw_query(&self, query: u32, num_tokens: u32) -> String {
        (0..num_tokens).map(|key| if self.allows(query, key) { '#' } else { '.' }).collect()
    }

    /// The mask over `num_tokens` positions, one line per query: `#` may attend, `.` may not.
    #[must_use]
    pub fn draw(&self, num_tokens: u32) -> String {
        let lines: Vec<String> = (0..num_tokens).map(|query| self.draw_query(query, num_tokens)).collect();
        lines.join("\n")
    }
}
