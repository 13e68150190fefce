//! What the first GPU can do, for comparison with what is made of it: the cost of asking for work, the rate of products of
//! bf16 numbers on the shapes of a model, and the bandwidth of its memory. Needs the feature `cuda`.

use kernels::ops::{self, Weight};
use kernels::{Device, Matrix, Result, Tensor};
use std::sync::Arc;
use std::time::Instant;

/// Median seconds of `repeat` runs of `times` calls each, by call.
fn secs(device: &Device, times: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    const REPEAT: usize = 7;
    let mut found = Vec::with_capacity(REPEAT);
    for _ in 0..REPEAT {
        kernels::synchronize(device)?;
        let clock = Instant::now();
        for _ in 0..times {
            call()?;
        }
        kernels::synchronize(device)?;
        found.push(clock.elapsed().as_secs_f64() / times as f64);
    }
    found.sort_unstable_by(f64::total_cmp);
    Ok(found[REPEAT / 2])
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect()
}

fn tensor(device: &Device, rows: usize, cols: usize) -> Result<Tensor> {
    Tensor::from_vec(numbers(rows * cols), (rows, cols), device)
}

fn main() -> Result<()> {
    let device = kernels::cuda_device(0)?;
    let small = tensor(&device, 1, 576)?;
    let call = secs(&device, 5000, || ops::add(&small, &small).map(drop))?;
    println!("one small operation: {:.2} us", call * 1e6);
    let zeros = secs(&device, 5000, || small.zeros_like().map(drop))?;
    println!("zeros of candle: {:.2} us", zeros * 1e6);
    let sum = secs(&device, 5000, || (&small + &small).map(drop))?;
    println!("sum of candle: {:.2} us", sum * 1e6);
    let (rows, cols) = (1 << 15, 1 << 13);
    let large = tensor(&device, rows, cols)?;
    let add = secs(&device, 5, || ops::add(&large, &large).map(drop))?;
    println!("sums of large tensors: {:.2} TB/s", 12.0 * (rows * cols) as f64 / add / 1e12);
    for (t, out, input) in
        [(16384, 576, 576), (16384, 192, 576), (16384, 1536, 576), (16384, 576, 1536), (8192, 8192, 8192)]
    {
        let weight = Weight::Frozen(Arc::new(Matrix::from_f32(numbers(out * input), out, input)?.to_bf16()));
        let x = tensor(&device, t, input)?;
        let y = secs(&device, 20, || ops::linear(&x, &weight, None, None).map(drop))?;
        let (flops, bytes) = (2.0 * (t * out * input) as f64, (t * (8 * input + 4 * out)) as f64);
        println!(
            "[{t}, {input}] x [{out}, {input}]^T: {:.1} us, {:.0} TFLOP/s, {:.2} TB/s with the rounding of its rows",
            y * 1e6,
            flops / y / 1e12,
            bytes / y / 1e12
        );
    }
    Ok(())
}
