//! What rows begin with alike runs once, and changes none of them.

use crate::common::{
    adapter, bits, close_to_each_other, decoder, device, gem, golden, hidden, plain_row, random_ids, real_model, values,
};
use lapidary::has_bf16_units;
use lapidary::model::{BaseModel, ForwardOptions, Kv, ModelFiles, Segment, WeightFormat};
use layout::{Example, Layout, Plan, Rng, TokenId};
use rand::SeedableRng as _;
use serde_json::json;

/// Rows that begin alike, one as another in full, and one that is not told to share: each has the states that it has alone,
/// to the last bit where the machine has units for the format.
#[test]
fn what_rows_begin_with_alike_runs_once() {
    #[cfg(target_arch = "x86_64")]
    let has_int8_units = std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has_int8_units = false;
    // A product's order of summation in f32 depends on its number of rows.
    shared(WeightFormat::Stored, 1e-5, false);
    shared(WeightFormat::Bf16, 1e-2, device().is_cpu() && has_bf16_units());
    if device().is_cpu() {
        shared(WeightFormat::Int8, 1e-2, has_int8_units);
    }
}

fn shared(format: WeightFormat, rounding: f64, units: bool) {
    for family in ["gemma2", "llama", "qwen2_sliding"] {
        let mut decoder = decoder(&golden("families").join(family), "config.json");
        decoder.set_weight_format(format).unwrap();
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
                let alone = &alone[start as usize * d..];
                close_to_each_other(found, alone, rounding, family);
                assert!(!units || bits(found) == bits(alone), "{family} {scope} {format:?}: other bits");
                seen += found.len() / d;
            }
            assert_eq!(seen, own);
        }
    }
}

/// Attention of a long row reads its keys by tiles; a short one that begins as it does finds them there.
#[test]
fn a_short_row_shares_with_a_long_one() {
    let mut decoder = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap().decoder;
    decoder.set_weight_format(WeightFormat::Bf16).unwrap();
    let long = random_ids(150, 3);
    // The greater token puts it behind the long one.
    let short: Vec<TokenId> = [&long[..9], &[long[9] + 1], &random_ids(7, 4)].concat();
    let rows = [&short, &long].map(|ids| plain_row(ids, false));
    let run = |parts: &[(&Layout, usize, usize)]| {
        let segment = Segment::sharing(parts);
        let options = ForwardOptions { bf16_attention: true, ..ForwardOptions::default() };
        (segment.num_tokens(), values(&decoder.forward(&segment, Kv::None, options).unwrap()))
    };
    let (short, long) = ((&rows[0], 17, 17), (&rows[1], 150, 0));
    let (num_tokens, together) = run(&[short, long]);
    assert_eq!(num_tokens, 150 + 8);
    let d = decoder.config().hidden_size;
    let [(_, alone_short), (_, alone_long)] = [run(&[short]), run(&[long])];
    let (of_long, of_short) = together.split_at(150 * d);
    for (found, alone) in [(of_short, &alone_short[9 * d..]), (of_long, &alone_long[..])] {
        close_to_each_other(found, alone, 1e-2, "row");
        assert!(!has_bf16_units() || bits(found) == bits(alone), "other bits");
    }
}
