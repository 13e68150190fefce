//! Frequencies of the rotary position embedding, with the scalings for long contexts.

use super::config::RopeScaling;

/// Radians per position of each pair of a head, `[H / 2]`.
///
/// `theta^(-2i/H)`, changed by the scaling as `transformers`' `modeling_rope_utils` does.
pub fn frequencies(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    match *scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => plain
            .map(|f| {
                let turns = original_max_position_embeddings as f64 * f / std::f64::consts::TAU;
                if turns < low_freq_factor {
                    f / factor
                } else if turns > high_freq_factor {
                    f
                } else {
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * f / factor + kept * f
                }
            })
            .collect(),
    }
}
