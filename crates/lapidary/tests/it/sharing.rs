//! What rows begin with alike runs once, and changes none of them.

use crate::common::{adapter, close_to_each_other, decoder, gem, golden, hidden, random_ids, values};
use lapidary::model::{ForwardOptions, Kv, Segment};
use layout::{Example, Layout, Plan, Rng, TokenId};
use rand::SeedableRng as _;
use serde_json::json;

/// A matrix product's order of summation depends on its number of rows: f32 rounding, as a share of the largest number.
const ROUNDING: f64 = 1e-5;

/// Rows that begin alike, one as another in full, and one that is not told to share: each has the states that it has alone.
#[test]
fn what_rows_begin_with_alike_runs_once() {
    for family in ["gemma2", "llama", "qwen2_sliding"] {
        let decoder = decoder(&golden("families").join(family), "config.json");
        let d = decoder.config().hidden_size;
        let adapter = adapter(&decoder, true, 3);
        let (start, other) = (random_ids(9, 1), random_ids(9, 2));
        let text = |parts: [&[TokenId]; 2]| Example { text: parts.concat(), ..Example::default() };
        let texts = [
            text([&other, &[]]),
            text([&start, &other[..3]]),
            text([&start[..4], &other]),
            text([&start, &other[..3]]),
            text([&start, &[]]),
            text([&start, &other[..2]]),
        ];
        for scope in ["special", "all"] {
            let method = gem(
                json!({ "scope": scope, "bottleneck_ratio": 0.0, "token_dropout": { "form": "delete", "ratio": 0.0 } }),
            );
            let plan = |example: &Example| method.train_plan(example, &mut Rng::seed_from_u64(1)).unwrap();
            let plans: Vec<Plan> = texts.iter().map(plan).collect();
            let rows: Vec<&Layout> = plans.iter().map(|plan| &plan.rows[0]).collect();
            // Four tokens before each text and six positions behind it, which may not be shared, nor what the last has.
            let parts: Vec<(&Layout, usize, usize)> = (rows.iter().enumerate())
                .map(|(i, row)| (*row, row.num_tokens(), if i < 5 { row.num_tokens() - 6 } else { 0 }))
                .collect();
            let segment = Segment::sharing(&parts);
            let own = (4 + 9) + 13 + 5 + (4 + 11) + 1 + 6 * 6;
            assert_eq!(segment.num_tokens(), own, "{family} {scope}");
            let view = adapter.view(false);
            let options = || ForwardOptions { adapter: Some(&view), ..ForwardOptions::default() };
            let found = values(&decoder.forward(&segment, Kv::None, options()).unwrap());
            let (mut seen, mut starts) = (0, segment.starts().peekable());
            while let Some((row, start, first)) = starts.next() {
                let end = starts.peek().map_or(own, |next| next.2 as usize);
                let alone = hidden(&decoder, &[rows[row]], Some(&adapter));
                let found = &found[first as usize * d..end * d];
                close_to_each_other(found, &alone[start as usize * d..], ROUNDING, family);
                seen += found.len() / d;
            }
            assert_eq!(seen, own);
        }
    }
}
