//! Learning-rate and loss-weight schedules: plain functions of the step.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Half a cosine down to the floor.
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// No decay.
    Constant,
}

/// Learning rate as a share of its peak.
///
/// Rises linearly over the first `warmup_ratio` of the steps, then decays to `floor_ratio`.
pub fn learning_rate_factor(decay: Decay, (step, steps): (u64, u64), warmup_ratio: f64, floor_ratio: f64) -> f64 {
    let warmup = (warmup_ratio * steps as f64).ceil();
    let step = step as f64;
    if step < warmup {
        return (step + 1.0) / warmup;
    }
    let progress = (step - warmup) / (steps as f64 - warmup).max(1.0);
    let remaining = match decay {
        Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        Decay::Linear => 1.0 - progress,
        Decay::Constant => 1.0,
    };
    floor_ratio + (1.0 - floor_ratio) * remaining
}

/// The weight α of the contrastive loss over the steps (paper section 4.2; the loss is `(1 - α) L_nt + α L_cl`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AlphaSchedule {
    /// The same at every step.
    Constant {
        /// α.
        value: f64,
    },
    /// From 0 to `value` over the first `ramp_ratio` of the steps, then constant.
    Ramp {
        /// Final α.
        value: f64,
        /// Share of the steps.
        ramp_ratio: f64,
    },
    /// 0 for the first `steps` steps, then `value` (the paper's: 0 for 100 steps, then near 1).
    Step {
        /// α after the first steps.
        value: f64,
        /// Number of steps at 0.
        steps: u64,
    },
}

impl AlphaSchedule {
    /// α at a step.
    pub fn at(&self, (step, steps): (u64, u64)) -> f64 {
        match *self {
            Self::Constant { value } => value,
            Self::Ramp { value, ramp_ratio } => value * ((step as f64 + 0.5) / (ramp_ratio * steps as f64)).min(1.0),
            Self::Step { value, steps: wait } => {
                if step < wait {
                    0.0
                } else {
                    value
                }
            }
        }
    }

    /// The largest α.
    pub fn value(&self) -> f64 {
        match *self {
            Self::Constant { value } | Self::Ramp { value, .. } | Self::Step { value, .. } => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_rises_to_one_and_decay_ends_at_the_floor() {
        let at = |step| learning_rate_factor(Decay::Cosine, (step, 100), 0.1, 0.02);
        assert!((at(0) - 0.1).abs() < 1e-12 && (at(9) - 1.0).abs() < 1e-12 && (at(10) - 1.0).abs() < 1e-12);
        assert!((at(55) - 0.51).abs() < 1e-12);
        assert!(at(99) > 0.02 && at(99) < 0.021);
        assert!((learning_rate_factor(Decay::Linear, (55, 100), 0.1, 0.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn alpha_schedules() {
        let ramp = AlphaSchedule::Ramp { value: 0.9, ramp_ratio: 0.3 };
        assert!((ramp.at((0, 100)) - 0.015).abs() < 1e-9);
        assert!((ramp.at((30, 100)) - 0.9).abs() < 1e-12);
        let step = AlphaSchedule::Step { value: 1.0, steps: 100 };
        assert_eq!((step.at((99, 300)), step.at((100, 300))), (0.0, 1.0));
    }
}
