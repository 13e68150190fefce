//! Steps of AdamW against those of torch.

use crate::support::*;
use kernels::{AdamW, Moments, Result, Tensor, Update, Var, adamw};

const RULE: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
const START: [f32; 4] = [0.5, -1.0, 0.0, 2.0];

/// The numbers after each step, by `scripts/golden_adamw.py`.
const TORCH: [[f32; 4]; 10] = [
    [0.509_5, -1.009, -0.009_999_998, 2.008],
    [0.511_653_9, -1.009_906, -0.018_833_764, 2.012_692_7],
    [0.506_568_9, -1.010_376_5, -0.019_270_988, 2.009_821_2],
    [0.507_064, -1.013_105_5, -0.018_622_374, 2.011_789_3],
    [0.508_278, -1.011_293_5, -0.019_872_436, 2.014_586_2],
    [0.507_567_17, -1.008_380_8, -0.023_993_477, 2.015_917_8],
    [0.503_823_1, -1.006_317, -0.025_558_949, 2.013_896_2],
    [0.502_349_2, -1.006_574_6, -0.026_934_598, 2.014_098_2],
    [0.500_985_7, -1.004_688_7, -0.029_712_629, 2.014_583],
    [0.498_178_48, -1.002_431_3, -0.029_512_797, 2.013_692],
];

fn step(var: &Var, gradient: &Tensor, moments: &mut Moments, (number, scale): (u64, f32)) -> Result<()> {
    adamw(vec![Update { adamw: RULE, learning_rate: 0.01, var, gradient, moments }], (number, scale))
}

fn gradient(step: usize, factor: f32) -> Vec<f32> {
    (0..4).map(|i| factor * (((7 * i + 3 * step) % 11) as f32 - 5.0) / 8.0).collect()
}

/// Each step rounds the number once or twice; ten steps of 2.4e-7 (numbers up to 2) stay below 3e-6.
#[test]
fn ten_steps_are_those_of_torch() {
    // The second variable's gradients come four times as large and are scaled back, as clipping does.
    for (factor, grad_scale) in [(1.0, 1.0), (4.0, 0.25)] {
        let variable = var(&START, [2, 2]);
        let mut moments = Moments::zeros(4);
        for (i, expected) in TORCH.iter().enumerate() {
            let grad = tensor(&gradient(i + 1, factor), [2, 2]);
            step(&variable, &grad, &mut moments, (i as u64 + 1, grad_scale)).unwrap();
            for (found, expected) in values(&variable).iter().zip(expected) {
                assert!((found - expected).abs() <= 3e-6, "step {}: {found}, torch {expected}", i + 1);
            }
        }
    }
}

#[test]
fn wrong_sizes_and_step_zero_are_refused() {
    let variable = var(&START, [4]);
    let mut moments = Moments::zeros(4);
    assert!(step(&variable, &tensor(&[0.0; 3], [3]), &mut moments, (1, 1.0)).is_err());
    assert!(step(&variable, &tensor(&[0.0; 4], [4]), &mut Moments::zeros(3), (1, 1.0)).is_err());
    let uneven = &mut Moments::new(vec![0.0; 4], vec![0.0; 3]);
    assert!(step(&variable, &tensor(&[0.0; 4], [4]), uneven, (1, 1.0)).is_err());
    assert!(step(&variable, &tensor(&[0.0; 4], [4]), &mut moments, (0, 1.0)).is_err());
    assert_eq!(values(&variable), START);
}

#[test]
fn several_variables_at_once_are_each_as_alone() {
    let mut rng = generator(31);
    let slower = AdamW { beta1: 0.8, weight_decay: 0.0, ..RULE };
    let of = |rng: &mut _, count: usize| (var(&uniform(rng, count), [count]), tensor(&uniform(rng, count), [count]));
    let cases: Vec<(Var, Tensor, AdamW, f32)> =
        [(3, RULE, 0.01), (5000, slower, 0.1), (1, slower, 0.02), (700, RULE, 0.3)]
            .map(|(count, rule, rate)| {
                let (variable, gradient) = of(&mut rng, count);
                (variable, gradient, rule, rate)
            })
            .into();
    let alone: Vec<Vec<f32>> = (cases.iter())
        .map(|(variable, gradient, rule, learning_rate)| {
            let (own, mut moments) =
                (var(&values(variable), [variable.elem_count()]), Moments::zeros(variable.elem_count()));
            for number in 1..=3 {
                let moments = &mut moments;
                let update = Update { adamw: *rule, learning_rate: *learning_rate, var: &own, gradient, moments };
                adamw(vec![update], (number, 0.5)).unwrap();
            }
            values(&own)
        })
        .collect();
    let mut moments: Vec<Moments> = cases.iter().map(|case| Moments::zeros(case.0.elem_count())).collect();
    for number in 1..=3 {
        let updates = cases.iter().zip(&mut moments).map(|((var, gradient, rule, rate), moments)| Update {
            adamw: *rule,
            learning_rate: *rate,
            var,
            gradient,
            moments,
        });
        adamw(updates.collect(), (number, 0.5)).unwrap();
    }
    for ((variable, ..), alone) in cases.iter().zip(&alone) {
        assert_eq!(&values(variable), alone);
    }
}
