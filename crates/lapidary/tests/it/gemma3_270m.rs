//! The second built-in model, real weights: token ids, logits and a greedy continuation as `transformers` has them.

use std::ops::ControlFlow;

use lapidary::generate::GenerateOptions;
use lapidary::model::{ForwardOptions, Kv, Segment};
use lapidary::{Lapidary, ModelFiles};
use serde::Deserialize;

use crate::common::{plain_row, values};
use crate::models::gemma3;

/// As `scripts/golden_gemma3.py` writes it.
#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    top_ids: Vec<usize>,
    top_logits: Vec<f64>,
    log_sum_exp: f64,
    greedy: Vec<u32>,
}

#[test]
#[ignore = "needs gemma3-270m, 253 MB that nobody else needs; .ci/run fetches it and runs this"]
fn the_decoder_agrees_with_transformers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/gemma3_270m.json")).unwrap();
    let model = Lapidary::untrained(&ModelFiles::Gguf(gemma3()), "last", serde_json::Value::Null).unwrap();
    let decoder = &model.base().decoder;
    for case in cases {
        assert_eq!(model.prompt_ids(&case.text).unwrap(), case.ids, "{}", case.text);
        let segment = Segment::whole([&plain_row(&case.ids, false)]);
        let hidden = decoder.forward(&segment, Kv::None, ForwardOptions::default()).unwrap();
        let last = hidden.narrow(0, case.ids.len() - 1, 1).unwrap();
        let logits = values(&decoder.logits(&last).unwrap());
        // f32 through 18 layers, sums in another order: logits of about 20 agree to some 1e-3.
        let close = |found: f64, want: f64, what: &str| {
            assert!((found - want).abs() < 5e-3, "{}: {what}: {found} against {want}", case.text);
        };
        for (id, want) in case.top_ids.iter().zip(&case.top_logits) {
            close(f64::from(logits[*id]), *want, "logit");
        }
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        close(sum.ln(), case.log_sum_exp, "log sum exp");
        let options = GenerateOptions { max_new_tokens: case.greedy.len(), ignore_eos: true, ..Default::default() };
        let generator = model.generator();
        let mut keep_on = |_: &str| ControlFlow::Continue(());
        let generation = generator.generate(&mut generator.sequence(), &case.ids, &options, &mut keep_on).unwrap();
        assert_eq!(generation.ids, case.greedy, "{}", case.text);
    }
}
