//! L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) for smooth convex functions.

use std::collections::VecDeque;

/// Pairs of steps and gradient changes kept, as in scipy's L-BFGS-B.
const MEMORY: usize = 10;
/// Share of the predicted decrease that a step must reach (Armijo).
const SUFFICIENT_DECREASE: f64 = 1e-4;
const MAX_HALVINGS: usize = 50;
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

/// Moves `x` towards the minimum of the convex function that `evaluate(x, gradient)` returns,
/// filling in its gradient.
pub(crate) fn minimise(x: &mut Vec<f64>, stop: Stop, mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64) {
    let mut gradient = vec![0.0; x.len()];
    let mut value = evaluate(x, &mut gradient);
    let mut memory: VecDeque<Correction> = VecDeque::with_capacity(MEMORY);
    for _ in 0..stop.max_iterations {
        if gradient.iter().all(|entry| entry.abs() <= stop.tolerance) {
            return;
        }
        let direction = descent(&gradient, &memory);
        let slope = dot(&gradient, &direction);
        // Without curvature yet, a step of length at most one.
        let mut length = if memory.is_empty() { (1.0 / dot(&gradient, &gradient).sqrt()).min(1.0) } else { 1.0 };
        let mut next_gradient = vec![0.0; x.len()];
        let mut found = None;
        for _ in 0..MAX_HALVINGS {
            let next: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + length * d).collect();
            let next_value = evaluate(&next, &mut next_gradient);
            if next_value <= value + SUFFICIENT_DECREASE * length * slope {
                found = Some((next, next_value));
                break;
            }
            length *= 0.5;
        }
        let Some((next, next_value)) = found else {
            return;
        };
        remember(&mut memory, x, &next, &gradient, &next_gradient);
        let decrease = value - next_value;
        let scale = value.abs().max(next_value.abs()).max(1.0);
        *x = next;
        value = next_value;
        gradient = next_gradient;
        if decrease <= MIN_RELATIVE_DECREASE * scale {
            return;
        }
    }
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

fn remember(memory: &mut VecDeque<Correction>, x: &[f64], next: &[f64], gradient: &[f64], next_gradient: &[f64]) {
    let step: Vec<f64> = next.iter().zip(x).map(|(a, b)| a - b).collect();
    let change: Vec<f64> = next_gradient.iter().zip(gradient).map(|(a, b)| a - b).collect();
    let curvature = dot(&step, &change);
    // Rounding can spoil the curvature of a tiny step; such a pair would break positivity.
    if curvature <= f64::EPSILON * dot(&change, &change) {
        return;
    }
    if memory.len() == MEMORY {
        memory.pop_front();
    }
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
