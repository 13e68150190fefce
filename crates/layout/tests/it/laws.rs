//! Laws that hold for every rule, row, plan and batch.

use std::ops::Range;

use layout::{
    Base, Continuation, Cut, Example, Input, Layout, LayoutError, LayoutParts, Plan, Pooled, Role, View, Visibility,
    pack,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{method, seeded};

const NUM_TOKENS: u32 = 24;

fn range() -> impl Strategy<Value = Range<u32>> {
    (0..NUM_TOKENS, 0..NUM_TOKENS).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn visibility() -> impl Strategy<Value = Visibility> {
    let cut = (range(), range()).prop_map(|(queries, keys)| Cut { queries, keys });
    let base =
        prop_oneof![Just(Base::Causal), Just(Base::Full), (1..6_u32).prop_map(|window| Base::Anchored { window })];
    let bounds = prop::collection::btree_set(0..NUM_TOKENS, 0..8);
    (base, bounds, prop::collection::vec(cut, 0..12)).prop_map(|(base, bounds, cuts)| {
        let anchored = matches!(base, Base::Anchored { .. });
        let bounds: Vec<u32> = bounds.into_iter().filter(|_| anchored).collect();
        let anchors = bounds.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        Visibility { base, anchors, cuts }
    })
}

fn settings() -> impl Strategy<Value = Value> {
    let ratio = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    ((1..5_u32, 0..3_usize, 0..2_usize, 0..2_usize, 0..3_usize), (ratio(), ratio(), ratio(), ratio())).prop_map(
        |((k, scope, special, pooling, form), (plain, bottleneck, continuation, ratio))| {
            json!({
                "num_special_tokens": k,
                "scope": (["all", "embed", "special"][scope]),
                "special_visibility": (["isolated", "causal"][special]),
                "pooling": (["mean", "last"][pooling]),
                "plain_ratio": if scope == 0 { plain } else { 0.0 },
                "bottleneck_ratio": bottleneck,
                "continuation_ratio": continuation,
                "token_dropout": {"form": (["delete", "visibility", "none"][form]), "ratio": ratio},
            })
        },
    )
}

fn example() -> impl Strategy<Value = Example> {
    let text = || prop::collection::vec(10..99_u32, 1..12);
    (text(), prop::option::of(text()), prop::collection::vec(text(), 0..3))
        .prop_map(|(text, positive, negatives)| Example { text, positive, negatives })
}

/// The definition, by scanning every key.
fn frozen_len_by_scan(row: &Layout) -> usize {
    let num_tokens = row.num_tokens();
    let frozen = |end: usize| {
        (0..end).all(|query| {
            matches!(row.inputs()[query], Input::Token(_))
                && !row.adapted()[query]
                && row.labels()[query].is_none()
                && (end..num_tokens).all(|key| !row.visibility().allows(query as u32, key as u32))
        })
    };
    (0..=num_tokens).rev().find(|&end| frozen(end)).unwrap_or(0)
}

fn check_row(row: &Layout) {
    let num_tokens = row.num_tokens() as u32;
    for query in 0..num_tokens {
        assert!(row.visibility().allows(query, query));
    }
    assert_eq!(row.frozen_len(), frozen_len_by_scan(row));
    for (at, label) in row.labels().iter().enumerate().filter(|(_, label)| label.is_some()) {
        let next = (at + 1..row.inputs().len()).find(|&next| row.roles()[next] != Role::Special);
        assert_eq!(next.map(|next| row.inputs()[next]), label.map(Input::Token));
    }
}

/// The `[E]`s, and the suffix that sees them alone.
fn check_bottleneck(row: &Layout) {
    let num_tokens = row.num_tokens() as u32;
    let specials: Vec<u32> = (0..num_tokens).filter(|&at| row.roles()[at as usize] == Role::Special).collect();
    let input = |at: &u32| row.inputs()[*at as usize];
    let k = specials.iter().position(|at| *at != specials[0] && input(at) == Input::Special(0));
    let (first, twin) = specials.split_at(k.unwrap_or(specials.len()));
    for (query, key) in twin.iter().flat_map(|twin| first.iter().map(move |first| (*twin, *first))) {
        assert!(!row.visibility().allows(query, key) && !row.visibility().allows(key, query));
    }
    for (first, twin) in first.iter().zip(twin) {
        assert_eq!(input(first), input(twin));
        assert_eq!(row.positions()[*first as usize], row.positions()[*twin as usize]);
    }
    for (query, role) in (0..num_tokens).zip(row.roles()) {
        let mut hidden = (0..num_tokens).zip(row.roles()).filter(|(_, other)| **other == Role::Prefix);
        if *role == Role::Suffix {
            assert!(hidden.all(|(key, _)| !row.visibility().allows(query, key)));
            assert!(first.iter().all(|&key| row.visibility().allows(query, key)));
            assert!(twin.iter().all(|&key| !row.visibility().allows(query, key)));
        }
    }
}

proptest! {
    #[test]
    fn allowed_keys_are_what_allows_allows(rule in visibility(), query in 0..NUM_TOKENS, n in 0..=NUM_TOKENS) {
        let ranges = rule.allowed_keys(query, n);
        let listed: Vec<u32> = ranges.iter().cloned().flatten().collect();
        let scanned: Vec<u32> = (0..n).filter(|&key| rule.allows(query, key)).collect();
        prop_assert_eq!(listed, scanned);
        prop_assert!(ranges.iter().all(|range| !range.is_empty()));
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ranges);
    }

    #[test]
    fn cuts_never_add_visibility(rule in visibility(), queries in range(), keys in range()) {
        let mut cut = rule.clone();
        cut.cuts.push(Cut { queries: queries.clone(), keys: keys.clone() });
        for (query, key) in (0..NUM_TOKENS).flat_map(|q| (0..NUM_TOKENS).map(move |k| (q, k))) {
            let inside = queries.contains(&query) && keys.contains(&key);
            prop_assert_eq!(cut.allows(query, key), rule.allows(query, key) && !inside);
        }
    }

    #[test]
    fn rows_of_any_rule_are_checked_and_truncated(
        rule in visibility(),
        free in 0..NUM_TOKENS,
        labelled in prop::option::of(0..NUM_TOKENS as usize),
    ) {
        let blind = (0..NUM_TOKENS).find(|&q| (0..NUM_TOKENS).all(|k| !rule.allows(q, k)));
        let empty = rule.cuts.iter().any(|cut| cut.queries.is_empty() || cut.keys.is_empty());
        let mut parts = parts(rule.clone(), free);
        if let Some(at) = labelled {
            parts.labels[at] = Some(5);
        }
        let made = Layout::new(parts);
        prop_assert_eq!(made.is_err(), empty || blind.is_some());
        let Ok(row) = made else { return Ok(()) };
        prop_assert_eq!(row.frozen_len(), frozen_len_by_scan(&row));
        if rule.base == Base::Causal {
            let short = row.truncated(10);
            prop_assert_eq!(short.num_tokens(), 10);
            for (query, key) in (0..10).flat_map(|q| (0..10).map(move |k| (q, k))) {
                prop_assert_eq!(short.visibility().allows(query, key), rule.allows(query, key));
            }
            // The first pooled vector ends at 4, the second at the end of the row.
            prop_assert_eq!(row.last_pooled_end(), NUM_TOKENS as usize);
            prop_assert_eq!(short.last_pooled_end(), 4);
        }
    }

    #[test]
    fn gem_plans_are_sound(settings in settings(), example in example(), bos: bool, seed: u64) {
        let scope = settings["scope"].clone();
        let gem = method("gem", settings, bos.then_some(1));
        let plan = gem.train_plan(&example, &mut seeded(seed)).expect("a plan");
        prop_assert_eq!(&plan, &gem.train_plan(&example, &mut seeded(seed)).expect("a plan"));
        let pooled = |view| {
            let all = plan.rows.iter().flat_map(|row| row.pooled());
            all.filter(|pooled| pooled.view == view).count()
        };
        prop_assert_eq!(pooled(View::Query), 1);
        prop_assert_eq!(pooled(View::Positive), 1);
        prop_assert_eq!(pooled(View::Negative), example.negatives.len());
        for row in &plan.rows {
            check_row(row);
            check_bottleneck(row);
            let prefix = row.roles().iter().filter(|role| **role == Role::Prefix).count();
            prop_assert_eq!(row.frozen_len(), if scope == "special" { prefix } else { 0 });
            if bos {
                prop_assert_eq!(row.inputs()[0], Input::Token(1));
            }
        }
    }

    #[test]
    fn embedding_rows_pool_one_query_and_carry_no_label(text in prop::collection::vec(10..99_u32, 1..9)) {
        for name in layout::names() {
            let plan = method(name, Value::Null, Some(1)).embed_plan(&text).expect("a plan");
            prop_assert_eq!(plan.rows.len(), 1);
            let row = &plan.rows[0];
            check_row(row);
            prop_assert_eq!(row.pooled().len(), 1);
            prop_assert_eq!(row.pooled()[0].view, View::Query);
            prop_assert!(row.pooled()[0].weights.iter().all(|&(position, _)| position > 0));
            prop_assert!(row.labels().iter().all(Option::is_none));
        }
    }

    #[test]
    fn reading_plans_end_in_special_positions(text in prop::collection::vec(10..99_u32, 1..9), again: bool) {
        let continuation = if again { Continuation::Again } else { Continuation::Rest };
        for name in ["gem", "gist", "autocompressor", "icae", "llm2vec-gen"] {
            let plan = method(name, Value::Null, Some(1)).read_plan(&text, continuation).expect("a plan");
            prop_assert!(plan.passes().is_ok());
            let last = plan.rows.last().expect("a row");
            prop_assert_eq!(last.roles().last(), Some(&Role::Special));
            prop_assert!(last.labels().iter().all(Option::is_none));
        }
    }

    #[test]
    fn autocompressor_labels_every_token_but_the_first_once(
        text in prop::collection::vec(10..99_u32, 1..30),
        bos: bool,
        seed: u64,
    ) {
        let method = method("autocompressor", json!({"num_special_tokens": 2}), bos.then_some(1));
        let example = Example { text: text.clone(), ..Example::default() };
        let plan = method.train_plan(&example, &mut seeded(seed)).expect("a plan");
        prop_assert_eq!(plan.rows.len(), text.len().min(4));
        prop_assert_eq!(plan.passes(), Ok((0..plan.rows.len()).collect()));
        let labels: Vec<u32> = plan.rows.iter().flat_map(|row| row.labels()).flatten().copied().collect();
        prop_assert_eq!(labels.as_slice(), &text[usize::from(!bos)..]);
        for (row, layout) in plan.rows.iter().enumerate() {
            let soft: Vec<(u32, bool)> = layout.inputs().iter().filter_map(|input| match input {
                Input::Soft { row, detached, .. } => Some((*row, *detached)),
                _ => None,
            }).collect();
            // Two of each earlier row; gradients end between the second and the third.
            let expected: Vec<_> = (0..row as u32).flat_map(|from| [(from, from / 2 != row as u32 / 2); 2]).collect();
            prop_assert_eq!(soft, expected);
        }
    }

    #[test]
    fn packing_covers_every_row_once(lengths in prop::collection::vec(0..50_usize, 0..40), budget in 0..120_usize) {
        let batches = pack(&lengths, budget);
        let order: Vec<usize> = batches.iter().flatten().copied().collect();
        prop_assert!(order.windows(2).all(|pair| lengths[pair[0]] <= lengths[pair[1]]));
        let mut covered = order;
        covered.sort_unstable();
        prop_assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>());
        for batch in &batches {
            let num_tokens: usize = batch.iter().map(|&row| lengths[row]).sum();
            prop_assert!(num_tokens <= budget || batch.len() == 1);
        }
    }
}

/// A row under `visibility` whose adapter is off on the first `free` positions.
fn parts(visibility: Visibility, free: u32) -> LayoutParts {
    let n = NUM_TOKENS as usize;
    LayoutParts {
        inputs: vec![Input::Token(5); n],
        roles: vec![Role::Plain; n],
        positions: (0..NUM_TOKENS).collect(),
        labels: vec![None; n],
        adapted: (0..NUM_TOKENS).map(|at| at >= free).collect(),
        visibility,
        pooled: vec![Pooled::mean(View::Query, 2..4), Pooled::last(View::Positive, 0..NUM_TOKENS)],
    }
}

#[test]
fn wrong_rows_are_refused() {
    let refused = |change: &dyn Fn(&mut LayoutParts)| {
        let mut wrong = parts(Visibility::default(), 0);
        change(&mut wrong);
        Layout::new(wrong).expect_err("a wrong row").to_string()
    };
    let cut = |queries, keys| {
        move |wrong: &mut LayoutParts| {
            wrong.visibility.cuts = vec![Cut { queries: 0..queries, keys: 0..keys }];
        }
    };
    let weights =
        |weights: Vec<(u32, f32)>| move |wrong: &mut LayoutParts| wrong.pooled[1].weights.clone_from(&weights);
    assert_eq!(Layout::new(LayoutParts::default()), Err(LayoutError::Empty));
    assert_eq!(refused(&|wrong| wrong.labels.truncate(3)), "expected 24 labels, one per input, found 3");
    assert_eq!(refused(&cut(25, 1)), "cut 0: queries 0..25 must be a non-empty range inside 0..24");
    assert_eq!(refused(&cut(1, 0)), "cut 0: keys 0..0 must be a non-empty range inside 0..24");
    assert_eq!(refused(&cut(1, 1)), "position 0 may attend to nothing, not even itself");
    assert_eq!(refused(&weights(vec![(24, 1.0)])), "pooled vector 1 reads position 24, the row has 24");
    for wrong in [vec![], vec![(0, 0.5)], vec![(0, f32::NAN)], vec![(0, f32::INFINITY)]] {
        assert!(refused(&weights(wrong)).starts_with("pooled vector 1: weights must be finite"));
    }
}

#[test]
fn the_whole_of_an_unadapted_full_row_is_frozen() {
    let full = Visibility { base: Base::Full, ..Visibility::default() };
    let row = |free| Layout::new(parts(full.clone(), free)).expect("a row");
    assert_eq!(row(NUM_TOKENS).frozen_len(), NUM_TOKENS as usize);
    assert_eq!(row(NUM_TOKENS - 1).frozen_len(), 0);
}

#[test]
fn soft_inputs_read_earlier_rows() {
    let row = |inputs: Vec<Input>| {
        let (n, positions) = (inputs.len(), (0..inputs.len() as u32).collect());
        let (roles, labels, adapted) = (vec![Role::Plain; n], vec![None; n], vec![false; n]);
        Layout::new(LayoutParts { inputs, roles, positions, labels, adapted, ..LayoutParts::default() }).expect("a row")
    };
    let soft = |row, position| Input::Soft { row, position, detached: false };
    let text = || row(vec![Input::Token(5); 3]);
    let plan = Plan { rows: vec![text(), row(vec![soft(0, 2)]), text(), row(vec![soft(2, 0), soft(1, 0)])] };
    assert_eq!(plan.passes(), Ok(vec![0, 1, 0, 2]));
    assert_eq!(plan.rows[1].frozen_len(), 0);
    for (from, position) in [(1, 0), (2, 0), (0, 3)] {
        let plan = Plan { rows: vec![text(), row(vec![soft(from, position)])] };
        assert_eq!(plan.passes(), Err(LayoutError::Soft { row: 1, from, position }));
    }
}

#[test]
fn anchors_are_sorted_and_inside_the_row() {
    for (base, anchors) in [
        (Base::Causal, [0..1, 4..6]),
        (Base::Full, [0..1, 4..6]),
        (Base::Anchored { window: 0 }, [0..1, 4..6]),
        (Base::Anchored { window: 2 }, [4..6, 0..1]),
        (Base::Anchored { window: 2 }, [0..1, 4..NUM_TOKENS + 1]),
    ] {
        let anchors = anchors.to_vec();
        let refused = Layout::new(parts(Visibility { base, anchors, cuts: vec![] }, 0));
        assert!(matches!(refused, Err(LayoutError::Anchors { .. })));
    }
}

#[test]
fn packing_a_hand_made_case() {
    // Sorted: 2 (row 1), 3 (row 3), 5 (row 0), 9 (row 2); the last is longer than the budget.
    assert_eq!(pack(&[5, 2, 9, 3], 8), [vec![1, 3], vec![0], vec![2]]);
    assert!(pack(&[], 8).is_empty());
}
