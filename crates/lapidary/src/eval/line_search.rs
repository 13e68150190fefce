//! The line search of Moré and Thuente (ACM Transactions on Mathematical Software 20:3, 1994).
//!
//! It keeps an interval that holds an acceptable step, and shrinks it by the minima of cubic and quadratic
//! interpolations. Settings and safeguards are those of L-BFGS-B, as in scipy: where the optimiser stops early, the
//! answer depends on its path.

/// Share of the predicted decrease that a step must reach.
const SUFFICIENT_DECREASE: f64 = 1e-3;
/// Share of the first slope that the slope at a step may keep.
const CURVATURE: f64 = 0.9;
/// Interval, relative to its upper end, that is not worth another evaluation.
const MIN_WIDTH: f64 = 0.1;
const MAX_STEP: f64 = 1e10;
/// Before a minimum is bracketed, the next step lies so many times the last stride beyond the last step.
const EXTRAPOLATION: (f64, f64) = (1.1, 4.0);
/// An interval that keeps more than this of its width over two steps is halved.
const SLOW: f64 = 0.66;

/// The function along the line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) step: f64,
    pub(crate) value: f64,
    /// Derivative by the step.
    pub(crate) slope: f64,
}

/// The state of one search.
#[derive(Debug)]
pub(crate) struct LineSearch {
    start: Point,
    /// End of the interval with the least value so far.
    best: Point,
    /// The other end.
    other: Point,
    bracketed: bool,
    /// Until a step decreases enough with a slope upwards, the interval follows the function less the decrease asked.
    first_stage: bool,
    /// The last two widths of the interval, the later one first.
    widths: (f64, f64),
    /// Where the next step may lie.
    bounds: (f64, f64),
}

impl LineSearch {
    /// A search from step 0, where the slope is below 0; `first` is the first step that will be tried.
    pub(crate) fn new(value: f64, slope: f64, first: f64) -> Self {
        let start = Point { step: 0.0, value, slope };
        Self {
            start,
            best: start,
            other: start,
            bracketed: false,
            first_stage: true,
            widths: (MAX_STEP, 2.0 * MAX_STEP),
            bounds: (0.0, first + EXTRAPOLATION.1 * first),
        }
    }

    /// The step to try after `tried`; `None`: `tried` is to be taken.
    pub(crate) fn next(&mut self, tried: Point) -> Option<f64> {
        let asked_slope = SUFFICIENT_DECREASE * self.start.slope;
        let decreased = tried.value <= self.start.value + tried.step * asked_slope;
        if self.first_stage && decreased && tried.slope >= 0.0 {
            self.first_stage = false;
        }
        let flat = tried.slope.abs() <= CURVATURE * -self.start.slope;
        let at_limit = tried.step >= MAX_STEP && decreased && tried.slope <= asked_slope;
        let at_zero = tried.step <= 0.0 && (!decreased || tried.slope >= asked_slope);
        if (decreased && flat) || self.is_exhausted(tried.step) || at_limit || at_zero {
            return None;
        }
        let step = if self.first_stage && tried.value <= self.best.value && !decreased {
            let less = |point: Point| Point {
                value: point.value - point.step * asked_slope,
                slope: point.slope - asked_slope,
                ..point
            };
            let more = |point: Point| Point {
                value: point.value + point.step * asked_slope,
                slope: point.slope + asked_slope,
                ..point
            };
            (self.best, self.other) = (less(self.best), less(self.other));
            let step = self.update(less(tried));
            (self.best, self.other) = (more(self.best), more(self.other));
            step
        } else {
            self.update(tried)
        };
        Some(self.safeguarded(step))
    }

    /// Whether the interval cannot or need not be divided further.
    fn is_exhausted(&self, step: f64) -> bool {
        let (lower, upper) = self.bounds;
        self.bracketed && (step <= lower || step >= upper || upper - lower <= MIN_WIDTH * upper)
    }

    /// Takes `tried` into the interval; the next step before safeguards.
    fn update(&mut self, tried: Point) -> f64 {
        let best = self.best;
        let turned = tried.slope.signum() * best.slope.signum() < 0.0 && tried.slope != 0.0;
        let (ratio, is_minimum) = cubic(tried, best);
        let from_tried = |ratio: f64| tried.step + ratio * (best.step - tried.step);
        let secant = from_tried(tried.slope / (tried.slope - best.slope));
        let step = if tried.value > best.value {
            // A higher value: a minimum lies between.
            let stride = tried.step - best.step;
            let by_cubic = best.step + cubic(best, tried).0 * stride;
            let quadratic = best.slope / ((best.value - tried.value) / stride + best.slope) / 2.0;
            let by_quadratic = best.step + quadratic * stride;
            self.bracketed = true;
            if (by_cubic - best.step).abs() <= (by_quadratic - best.step).abs() {
                by_cubic
            } else {
                by_cubic + (by_quadratic - by_cubic) / 2.0
            }
        } else if turned {
            self.bracketed = true;
            farther(tried.step, from_tried(ratio), secant)
        } else if tried.slope.abs() < best.slope.abs() {
            let by_cubic = match (ratio < 0.0 && is_minimum, tried.step > best.step) {
                (true, _) => from_tried(ratio),
                (false, true) => self.bounds.1,
                (false, false) => self.bounds.0,
            };
            self.flattening(tried, by_cubic, secant)
        } else if self.bracketed {
            tried.step + cubic(tried, self.other).0 * (self.other.step - tried.step)
        } else if tried.step > best.step {
            self.bounds.1
        } else {
            self.bounds.0
        };
        if tried.value > best.value {
            self.other = tried;
        } else {
            if turned {
                self.other = best;
            }
            self.best = tried;
        }
        step
    }

    /// The step after a lower value with a flatter slope of the same sign.
    fn flattening(&self, tried: Point, by_cubic: f64, secant: f64) -> f64 {
        if !self.bracketed {
            return farther(tried.step, by_cubic, secant).clamp(self.bounds.0, self.bounds.1);
        }
        let nearer = if (by_cubic - tried.step).abs() < (secant - tried.step).abs() { by_cubic } else { secant };
        let limit = tried.step + SLOW * (self.other.step - tried.step);
        if tried.step > self.best.step { nearer.min(limit) } else { nearer.max(limit) }
    }

    /// Sets the bounds of the next step, and keeps `step` within what makes progress.
    fn safeguarded(&mut self, mut step: f64) -> f64 {
        let (best, other) = (self.best.step, self.other.step);
        if self.bracketed {
            if (other - best).abs() >= SLOW * self.widths.1 {
                step = best + 0.5 * (other - best);
            }
            self.widths = ((other - best).abs(), self.widths.0);
            self.bounds = (best.min(other), best.max(other));
        } else {
            let stride = step - best;
            self.bounds = (step + EXTRAPOLATION.0 * stride, step + EXTRAPOLATION.1 * stride);
        }
        let step = step.clamp(0.0, MAX_STEP);
        if self.is_exhausted(step) { best } else { step }
    }
}

/// The one of two steps that is farther from `from`; the second of equals.
fn farther(from: f64, first: f64, second: f64) -> f64 {
    if (first - from).abs() > (second - from).abs() { first } else { second }
}

/// The minimum of the cubic through values and slopes of two points, as a share of the way from `a` to `b`, and whether
/// the cubic has a minimum.
fn cubic(a: Point, b: Point) -> (f64, bool) {
    let theta = 3.0 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope;
    // Scaled, so that no square overflows.
    let scale = theta.abs().max(a.slope.abs()).max(b.slope.abs());
    let square = (theta / scale).powi(2) - (a.slope / scale) * (b.slope / scale);
    let gamma = scale * square.max(0.0).sqrt() * if b.step < a.step { -1.0 } else { 1.0 };
    let ratio = ((gamma - a.slope) + theta) / (((gamma - a.slope) + gamma) + b.slope);
    (ratio, gamma != 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps that a search along `function` (value, slope) tries.
    fn steps(first: f64, function: impl Fn(f64) -> (f64, f64)) -> Vec<f64> {
        let (value, slope) = function(0.0);
        let mut search = LineSearch::new(value, slope, first);
        let mut steps = vec![first];
        loop {
            let step = steps[steps.len() - 1];
            let (value, slope) = function(step);
            match search.next(Point { step, value, slope }) {
                Some(step) => steps.push(step),
                None => return steps,
            }
            assert!(steps.len() < 100, "{steps:?}");
        }
    }

    #[test]
    fn a_parabola_needs_one_interpolation() {
        // Its cubic is itself: from 3, where it is higher than at 0, to the minimum.
        let found = steps(3.0, |x| ((x - 1.0).powi(2), 2.0 * (x - 1.0)));
        assert_eq!(found.len(), 2);
        assert!((found[1] - 1.0).abs() < 1e-12, "{found:?}");
        // A step in the range of the curvature condition is taken as it is.
        assert_eq!(steps(0.5, |x| ((x - 1.0).powi(2), 2.0 * (x - 1.0))), [0.5]);
    }

    #[test]
    fn the_end_meets_both_conditions() {
        let functions: [fn(f64) -> (f64, f64); 3] = [
            // The first function of the paper, with beta = 2.
            |x| (-x / (x * x + 2.0), (x * x - 2.0) / (x * x + 2.0).powi(2)),
            |x| ((x - 1.0).exp() - 2.0 * x, (x - 1.0).exp() - 2.0),
            |x| (x.powi(4) - x, 4.0 * x.powi(3) - 1.0),
        ];
        for function in functions {
            let (value, slope) = function(0.0);
            for first in [1e-3, 0.1, 1.0, 10.0, 100.0] {
                let end = *steps(first, function).last().unwrap();
                let (end_value, end_slope) = function(end);
                assert!(end_value <= value + SUFFICIENT_DECREASE * end * slope, "{first} {end}");
                assert!(end_slope.abs() <= CURVATURE * slope.abs(), "{first} {end}");
            }
        }
    }
}
