//! Passes over a few tokens, which a GPU runs in one launch.

use crate::common::{close_to_each_other, decoder, golden, hidden, plain_row, random_ids, values};
use lapidary::model::{ForwardOptions, Kv, Segment, WeightFormat};

/// With weights packed as bf16: a pass over whole rows rounds states on their way into products, and on a GPU a pass over few
/// tokens does not. Rounding is a 256th of a number, in the sums of a few layers.
#[test]
fn a_few_tokens_at_a_time_are_the_whole_row_with_bf16_weights() {
    for family in ["llama", "llama3", "mistral", "smollm3", "qwen3"] {
        let mut decoder = decoder(&golden("families").join(family), "config.json");
        decoder.set_weight_format(WeightFormat::Bf16).unwrap();
        let ids = random_ids(23, 5);
        let want = hidden(&decoder, &[&plain_row(&ids, false)], None);
        for step in [1, 3, 8] {
            let (mut cache, mut found) = (decoder.new_cache(), Vec::new());
            for (number, part) in ids.chunks(step).enumerate() {
                let first = (number * step) as u32;
                let segment = Segment::next_tokens(0, part, first, first);
                let states = decoder.forward(&segment, Kv::Append(&mut cache), ForwardOptions::default()).unwrap();
                found.extend(values(&states));
            }
            close_to_each_other(&found, &want, 0.02, &format!("{family}, {step} at a time"));
        }
    }
}
