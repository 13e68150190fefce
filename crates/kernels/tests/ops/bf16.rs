//! Frozen weights packed for products in bf16: the operations on them against the same with f32 products.

use crate::support::*;
use half::bf16;
use kernels::Matrix;
use kernels::ops::{self, Head, Weight, reference};
use std::sync::Arc;

/// Random numbers that bf16 holds exactly: products of them have no error but that of their sums.
fn representable(rng: &mut rand_chacha::ChaCha8Rng, count: usize) -> Vec<f32> {
    uniform(rng, count).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

#[test]
fn linear_and_its_gradient() {
    let mut rng = generator(61);
    for (t, input, out) in [(1, 64, 96), (5, 40, 33), (70, 576, 192)] {
        let mut numbers = |count| representable(&mut rng, count);
        let (x, w, r) = (numbers(t * input), numbers(out * input), numbers(t * out));
        let weight = Weight::Frozen(Arc::new(Matrix::from_f32(w.clone(), out, input).unwrap().to_bf16()));
        let x_var = var(&x, [t, input]);
        let y = ops::linear(&x_var, &weight, None, None).unwrap();
        let (x, w) = (wide(&x), wide(&w));
        let sums = |terms: usize| terms as f64 * ROUNDING * terms as f64;
        assert_close(&y, &reference::linear(&x, &w, input, None, None), |_| sums(input));
        let dx: Vec<f64> = (0..t * input)
            .map(|i| (0..out).map(|o| f64::from(r[i / input * out + o]) * w[o * input + i % input]).sum())
            .collect();
        assert_close(backward(&y, &r).get(&x_var).unwrap(), &dx, |_| sums(out));
    }
}

/// The probabilities are rounded on their way back: 2^-9 of the mean row, whose numbers are below 1.
#[test]
fn cross_entropy_and_its_gradient() {
    let mut rng = generator(62);
    for (m, d, v) in [(3, 32, 70), (40, 64, 9000)] {
        let (x, w) = (representable(&mut rng, m * d), representable(&mut rng, v * d));
        let labels: Vec<u32> = (0..m).map(|i| (i * 1021 % v) as u32).collect();
        let run = |matrix: Matrix| {
            let x = var(&x, [m, d]);
            let head = Head { weight: Weight::Frozen(Arc::new(matrix)), softcap: None };
            let nll = ops::cross_entropy(&x, &head, &labels).unwrap();
            let gradient = backward(&nll, &vec![1.0; m]).get(&x).unwrap().clone();
            (wide(&values(&nll)), wide(&values(&gradient)), nll, gradient)
        };
        let exact = Matrix::from_f32(w.clone(), v, d).unwrap();
        let (_, _, nll, gradient) = run(exact.to_bf16());
        let (want_nll, want_gradient, ..) = run(exact);
        assert_close(&nll, &want_nll, |i| 1e-5 * want_nll[i].abs());
        assert_close(&gradient, &want_gradient, |_| 1.0 / 512.0);
    }
}
