//! One row of GEM: `prefix [E]s [E']s suffix`, with its cuts, labels and gates.

use std::ops::Range;

use super::settings::{Pooling, Scope, Settings, SpecialVisibility};
use crate::methods::num_positions;
use crate::{Cut, Input, Layout, LayoutError, LayoutParts, Pooled, Role, TokenId, View, Visibility};

/// What a row carries; the prefix includes BOS.
pub(super) struct Row<'a> {
    pub(super) prefix: &'a [TokenId],
    /// `Some`: a second set of special tokens `[E']`, the positive view, from which these prefix tokens
    /// are hidden. One flag per prefix token.
    pub(super) hidden: Option<&'a [bool]>,
    pub(super) suffix: &'a [TokenId],
    /// The view that the `[E]`s are.
    pub(super) view: View,
    /// Prefix tokens that must be predicted; nothing comes before the first of the row.
    pub(super) labelled: Range<usize>,
}

/// Where the parts of a row lie.
struct Spans {
    prefix: Range<u32>,
    special: Range<u32>,
    twin: Range<u32>,
    suffix: Range<u32>,
}

impl Row<'_> {
    pub(super) fn layout(&self, settings: &Settings) -> Result<Layout, LayoutError> {
        let k = settings.num_special_tokens;
        let num_twin = if self.hidden.is_some() { k } else { 0 };
        let num_special = (k + num_twin) as usize;
        num_positions(self.prefix.len() + num_special + self.suffix.len())?;
        let n = self.prefix.len() as u32;
        let suffix_start = n + k + num_twin;
        let spans = Spans {
            prefix: 0..n,
            special: n..n + k,
            twin: n + k..suffix_start,
            suffix: suffix_start..suffix_start + self.suffix.len() as u32,
        };
        let mut parts = LayoutParts::default();
        let tokens = |ids: &[TokenId]| ids.iter().map(|&id| Input::Token(id)).collect::<Vec<_>>();
        let specials: Vec<Input> = (0..k).map(Input::Special).collect();
        extend(&mut parts, tokens(self.prefix), Role::Prefix, 0);
        extend(&mut parts, specials.clone(), Role::Special, n);
        if self.hidden.is_some() {
            extend(&mut parts, specials, Role::Special, n);
        }
        extend(&mut parts, tokens(self.suffix), Role::Suffix, n + k);
        parts.labels = self.labels(&spans);
        let adapted = |role: &Role| match settings.scope {
            Scope::All => true,
            Scope::Embed => *role != Role::Suffix,
            Scope::Special => *role == Role::Special,
        };
        parts.adapted = parts.roles.iter().map(adapted).collect();
        parts.visibility.cuts = self.cuts(&spans, settings.special_visibility);
        parts.pooled.push(pool(settings.pooling, self.view, spans.special));
        if self.hidden.is_some() {
            parts.pooled.push(pool(settings.pooling, View::Positive, spans.twin));
        }
        Layout::new(parts)
    }

    /// A position predicts the next input unless that is an `[E]`; the last `[E]` predicts the suffix.
    fn labels(&self, spans: &Spans) -> Vec<Option<TokenId>> {
        let mut labels = vec![None; spans.suffix.end as usize];
        for at in self.labelled.start.max(1)..self.labelled.end {
            labels[at - 1] = Some(self.prefix[at]);
        }
        if let Some((&first, rest)) = self.suffix.split_first() {
            labels[spans.special.end as usize - 1] = Some(first);
            for (label, &next) in labels[spans.suffix.start as usize..].iter_mut().zip(rest) {
                *label = Some(next);
            }
        }
        labels
    }

    fn cuts(&self, spans: &Spans, special_visibility: SpecialVisibility) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut cut = |queries: &Range<u32>, keys: &Range<u32>| {
            if !queries.is_empty() && !keys.is_empty() {
                cuts.push(Cut { queries: queries.clone(), keys: keys.clone() });
            }
        };
        if special_visibility == SpecialVisibility::Isolated {
            for span in [&spans.special, &spans.twin] {
                for query in span.clone() {
                    cut(&(query..query + 1), &(span.start..query));
                }
            }
        }
        cut(&spans.twin, &spans.special);
        for run in runs(self.hidden.unwrap_or_default()) {
            cut(&spans.twin, &run);
        }
        cut(&spans.suffix, &spans.prefix);
        cut(&spans.suffix, &spans.twin);
        cuts
    }
}

/// A row of ordinary text, every token of which trains next-token prediction with the adapter on.
pub(super) fn plain(text: &[TokenId]) -> Result<Layout, LayoutError> {
    let num_tokens = num_positions(text.len())?;
    let next = text.iter().skip(1).copied().map(Some);
    Layout::new(LayoutParts {
        inputs: text.iter().map(|&id| Input::Token(id)).collect(),
        roles: vec![Role::Plain; text.len()],
        positions: (0..num_tokens).collect(),
        labels: next.chain([None]).collect(),
        adapted: vec![true; text.len()],
        visibility: Visibility::default(),
        pooled: Vec::new(),
    })
}

fn extend(parts: &mut LayoutParts, inputs: Vec<Input>, role: Role, first_position: u32) {
    parts.roles.extend(inputs.iter().map(|_| role));
    parts.positions.extend((first_position..).take(inputs.len()));
    parts.inputs.extend(inputs);
}

fn pool(pooling: Pooling, view: View, span: Range<u32>) -> Pooled {
    match pooling {
        Pooling::Mean => Pooled::mean(view, span),
        Pooling::Last => Pooled::last(view, span),
    }
}

/// The maximal runs of set flags.
fn runs(flags: &[bool]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (at, _) in (0_u32..).zip(flags).filter(|(_, flag)| **flag) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}
