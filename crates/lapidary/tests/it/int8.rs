//! The model that comes with the program, with products of eight bits.

use crate::common::{close_to_each_other, real_model};
use lapidary::model::WeightFormat;
use lapidary::{Lapidary, ModelFiles};
use std::path::Path;

/// Vectors of the model that comes with the program: what rounding to eight bits costs is a thousandth of their angle's cosine.
#[test]
fn vectors_of_eight_bits_are_near_those_of_f32() {
    let gem = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2-135m-gem");
    let texts = ["A man plays a guitar.", "Someone makes music.", "It rains on the old stone bridge over the river."];
    let vectors = |format| {
        let mut gem = Lapidary::load(&gem, &ModelFiles::Gguf(real_model())).unwrap();
        gem.set_weight_format(format).unwrap();
        (gem.embed(&texts).unwrap(), gem.embed(&texts[1..2]).unwrap(), gem.fingerprint().into_owned())
    };
    let (exact, _, fingerprint) = vectors(WeightFormat::F32);
    let (rounded, alone, other_fingerprint) = vectors(WeightFormat::Int8);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        let cosine: f32 = exact.iter().zip(rounded).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.998 && cosine < 1.0, "{cosine}");
    }
    close_to_each_other(&alone[0], &rounded[1], 1e-5, "alone");
    assert_ne!(fingerprint, other_fingerprint);
}
