//! Round tick values, their labels, and the mapping from values to places.

/// Evenly spaced round values that cover a range.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks {
    pub(super) values: Vec<f64>,
    step: f64,
}

impl Ticks {
    /// About `count` ticks at multiples of 1, 2 or 5 times a power of ten, from below `low` to
    /// above `high`. Both are finite; equal ends are widened.
    pub(super) fn covering(low: f64, high: f64, count: usize) -> Self {
        let (low, high) = (low.min(high), low.max(high));
        // A spread that f64 cannot resolve beside the values would make equal ticks.
        let least = (low.abs().max(high.abs()) * 1e-9).max(1e-9);
        let (low, high) = if high - low < least { (low - least.max(0.5), high + least.max(0.5)) } else { (low, high) };
        let rough = (high / count as f64) - (low / count as f64);
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * magnitude)
            .find(|step| *step >= rough * (1.0 - 1e-9))
            .unwrap_or(10.0 * magnitude);
        let first = (low / step + 1e-9).floor() as i64;
        let last = (high / step - 1e-9).ceil() as i64;
        let values = (first..=last).map(|index| index as f64 * step).collect();
        Self { values, step }
    }

    /// Ticks at whole numbers, for counts.
    pub(super) fn covering_counts(low: f64, high: f64, count: usize) -> Self {
        let ticks = Self::covering(low, high, count);
        if ticks.step >= 1.0 {
            return ticks;
        }
        let values = (low.floor() as i64..=high.ceil() as i64).map(|value| value as f64);
        Self { values: values.collect(), step: 1.0 }
    }

    pub(super) fn low(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }

    pub(super) fn high(&self) -> f64 {
        self.values.last().copied().unwrap_or(1.0)
    }

    /// A value with as many decimals as the step needs.
    pub(super) fn label(&self, value: f64) -> String {
        if value != 0.0 && (value.abs() >= 1e7 || self.step < 1e-4) {
            return format!("{value:.1e}");
        }
        let decimals = (-self.step.log10() - 1e-9).ceil().max(0.0) as usize;
        grouped(value, decimals)
    }
}

/// A number with a comma between thousands, and a true minus sign.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut text = String::new();
    let is_zero = plain.chars().all(|c| matches!(c, '0' | '.'));
    if value < 0.0 && !is_zero {
        text.push('\u{2212}');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// Maps values of one axis to points on the canvas.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    /// Place of `low` and of `high`, in points.
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Axis {
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(Ticks::covering(0.0, 100.0, 5).values, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(Ticks::covering(1.2, 2.9, 4).values, [1.0, 1.5, 2.0, 2.5, 3.0]);
        for (low, high) in [(0.013, 0.021), (-3.0, 7e5), (5.0, 5.0), (-1e12, 1e12), (0.0, 0.0)] {
            let ticks = Ticks::covering(low, high, 5);
            assert!(ticks.low() <= low && ticks.high() >= high, "{ticks:?}");
            assert!((2..=12).contains(&ticks.values.len()), "{ticks:?}");
        }
    }

    #[test]
    fn labels_carry_the_decimals_of_the_step() {
        let ticks = Ticks::covering(0.0, 1.0, 4);
        assert_eq!(ticks.label(0.5), "0.5");
        assert_eq!(Ticks::covering(0.0, 20_000.0, 4).label(15_000.0), "15,000");
        assert_eq!(grouped(-1234.5, 1), "\u{2212}1,234.5");
        assert_eq!(grouped(-0.001, 2), "0.00");
    }
}
