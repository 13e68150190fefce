//! L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) for smooth convex functions, with the line search,
//! the restarts and the tests for its end of L-BFGS-B without bounds (Byrd, Lu, Nocedal and Zhu, SIAM Journal on
//! Scientific Computing 16:5, 1995), so that it takes the steps of scipy's.

use super::line_search::{LineSearch, Point};
use std::collections::VecDeque;

/// Pairs of steps and gradient changes kept.
const MEMORY: usize = 10;
/// Evaluations of one line search, as scikit-learn sets it.
const MAX_EVALUATIONS: usize = 50;
/// Relative decrease below which nothing is left to gain, as scikit-learn sets it.
const MIN_RELATIVE_DECREASE: f64 = 64.0 * f64::EPSILON;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) max_iterations: usize,
    /// Largest absolute entry of the gradient that counts as zero.
    pub(crate) tolerance: f64,
}

struct Correction {
    step: Vec<f64>,
    change: Vec<f64>,
    curvature: f64,
}

/// A place, the value there and the gradient.
struct Iterate {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// Moves `x` towards the minimum of the convex function that `evaluate(x, gradient)` returns,
/// filling in its gradient. Returns the number of iterations.
pub(crate) fn minimise(x: &mut Vec<f64>, stop: Stop, mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64) -> usize {
    let mut gradient = vec![0.0; x.len()];
    let value = evaluate(x, &mut gradient);
    let mut at = Iterate { x: std::mem::take(x), value, gradient };
    let mut memory: VecDeque<Correction> = VecDeque::with_capacity(MEMORY);
    let mut iterations = 0;
    while iterations < stop.max_iterations && at.gradient.iter().any(|entry| entry.abs() > stop.tolerance) {
        let direction = descent(&at.gradient, &memory);
        // At the very start, where nothing is known of the curvature, a step of length one.
        let first = if iterations == 0 { (1.0 / dot(&direction, &direction).sqrt()).min(1e10) } else { 1.0 };
        let Some((next, length)) = search(&at, &direction, first, &mut evaluate) else {
            // What is remembered led nowhere: from here on by the gradient, once.
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        iterations += 1;
        let decrease = at.value - next.value;
        let scale = at.value.abs().max(next.value.abs()).max(1.0);
        if decrease <= MIN_RELATIVE_DECREASE * scale {
            at = next;
            break;
        }
        remember(&mut memory, &at, &next, direction, length);
        at = next;
    }
    *x = at.x;
    iterations
}

/// The end of a line search and its step; `None` when the direction does not descend, no step is
/// found, or the function overflows.
fn search(
    at: &Iterate,
    direction: &[f64],
    first: f64,
    evaluate: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Option<(Iterate, f64)> {
    let slope = dot(&at.gradient, direction);
    if slope >= 0.0 {
        return None;
    }
    let mut line = LineSearch::new(at.value, slope, first);
    let mut step = first;
    let mut gradient = vec![0.0; direction.len()];
    for _ in 0..MAX_EVALUATIONS {
        let x: Vec<f64> = at.x.iter().zip(direction).map(|(x, d)| x + step * d).collect();
        let value = evaluate(&x, &mut gradient);
        if !value.is_finite() {
            return None;
        }
        match line.next(Point { step, value, slope: dot(&gradient, direction) }) {
            Some(next) => step = next,
            None => return Some((Iterate { x, value, gradient }, step)),
        }
    }
    None
}

/// Minus the inverse Hessian times the gradient, by the two-loop recursion.
fn descent(gradient: &[f64], memory: &VecDeque<Correction>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|entry| -entry).collect();
    let mut weights = Vec::with_capacity(memory.len());
    for correction in memory.iter().rev() {
        let weight = dot(&correction.step, &direction) / correction.curvature;
        add_scaled(&mut direction, -weight, &correction.change);
        weights.push(weight);
    }
    if let Some(last) = memory.back() {
        let scale = last.curvature / dot(&last.change, &last.change);
        direction.iter_mut().for_each(|entry| *entry *= scale);
    }
    for (correction, weight) in memory.iter().zip(weights.into_iter().rev()) {
        let back = dot(&correction.change, &direction) / correction.curvature;
        add_scaled(&mut direction, weight - back, &correction.step);
    }
    direction
}

/// Keeps the pair of a step (`length` times `direction`) and the change of the gradient, unless it shows no curvature
/// to speak of: such a pair would break positivity.
fn remember(memory: &mut VecDeque<Correction>, at: &Iterate, next: &Iterate, direction: Vec<f64>, length: f64) {
    let change: Vec<f64> = next.gradient.iter().zip(&at.gradient).map(|(a, b)| a - b).collect();
    let curvature = length * (dot(&next.gradient, &direction) - dot(&at.gradient, &direction));
    if curvature <= f64::EPSILON * -length * dot(&at.gradient, &direction) {
        return;
    }
    if memory.len() == MEMORY {
        memory.pop_front();
    }
    let step = direction.into_iter().map(|entry| length * entry).collect();
    memory.push_back(Correction { step, change, curvature });
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(target: &mut [f64], factor: f64, addend: &[f64]) {
    for (target, addend) in target.iter_mut().zip(addend) {
        *target += factor * addend;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_a_skewed_bowl() {
        let mut x = vec![5.0, -3.0, 2.0];
        let stop = Stop { max_iterations: 100, tolerance: 1e-10 };
        minimise(&mut x, stop, |x, gradient| {
            let mut value = 0.0;
            for (index, curvature) in [1.0, 10.0, 100.0].into_iter().enumerate() {
                let offset = x[index] - index as f64;
                gradient[index] = curvature * offset;
                value += 0.5 * curvature * offset * offset;
            }
            value
        });
        for (index, entry) in x.iter().enumerate() {
            assert!((entry - index as f64).abs() < 1e-9, "{x:?}");
        }
    }
}
