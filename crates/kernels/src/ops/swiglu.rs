//! The gated unit of the feed-forward network (arXiv 2002.05202): `act(gate) * up`.

use crate::bf16::Rounded;
use crate::cpu::{exp, exp_of, filled, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::vector::{LANES, Vector};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The non-linearity of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// Value and derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + exp(-x));
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// `silu(gate) * up`, the bits of the numbers one by one.
#[inline(always)]
fn silu_times(gate: &[f32; LANES], up: &[f32; LANES], y: &mut [f32; LANES]) {
    let (x, one) = (Vector::load(gate), Vector::splat(1.0));
    let sigmoid = one.over(one.plus(exp_of(x.times(Vector::splat(-1.0)))));
    x.times(sigmoid).times(Vector::load(up)).store(y);
}

impl Activation {
    /// As cuda/elementwise.cuh numbers them.
    #[cfg(feature = "cuda")]
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Silu => 0,
            Self::GeluTanh => 1,
        }
    }

    /// `act(gate) * up` of a line of numbers.
    #[inline(always)]
    pub(super) fn line<const N: usize>(self, gate: &[f32; N], up: &[f32; N], y: &mut [f32; N]) {
        match self {
            Self::Silu => {
                let (lines, rest) = y.as_chunks_mut::<LANES>();
                assert!(rest.is_empty(), "a line of whole vectors");
                let inputs = gate.as_chunks::<LANES>().0.iter().zip(up.as_chunks::<LANES>().0);
                lines.iter_mut().zip(inputs).for_each(|(y, (gate, up))| silu_times(gate, up, y));
            }
            Self::GeluTanh => {
                y.iter_mut().zip(gate.iter().zip(up)).for_each(|(y, (gate, up))| *y = gelu_tanh(*gate).0 * up);
            }
        }
    }
}

/// Value and derivative.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let t = (SQRT_2_OVER_PI * (x + CUBIC * x * x * x)).tanh();
    let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

/// One loop for each non-linearity: a choice within the loop would keep it from becoming vector instructions.
fn forward(y: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32], activation: impl Fn(f32) -> (f32, f32) + Sync) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            y.write(activation(*gate).0 * up);
        }
    });
}

/// Gradients of gate and up.
fn backward(
    (d_gate, d_up): (&mut [MaybeUninit<f32>], &mut [MaybeUninit<f32>]),
    (gate, up, dy): (&[f32], &[f32], &[f32]),
    activation: impl Fn(f32) -> (f32, f32) + Sync,
) {
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    d_gate.par_chunks_mut(CHUNK).zip(d_up.par_chunks_mut(CHUNK)).zip(inputs).for_each(
        |((d_gate, d_up), ((gate, up), dy))| {
            for (((d_gate, d_up), gate), (up, dy)) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up.iter().zip(dy)) {
                let (value, slope) = activation(*gate);
                d_gate.write(dy * up * slope);
                d_up.write(dy * value);
            }
        },
    );
}

#[inline(always)]
fn row_forward(y: &mut [f32], gate: &[f32], up: &[f32], activation: impl Fn(f32) -> (f32, f32)) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = activation(*gate).0 * up;
    }
}

/// Gradients of gate and up.
#[inline(always)]
fn row_backward([d_gate, d_up]: [&mut [f32]; 2], [gate, up, dy]: [&[f32]; 3], activation: impl Fn(f32) -> (f32, f32)) {
    for (((d_gate, d_up), gate), (up, dy)) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up.iter().zip(dy)) {
        let (value, slope) = activation(*gate);
        *d_gate = dy * up * slope;
        *d_up = dy * value;
    }
}

pub(super) struct Gated(pub(super) Activation);

/// `act(gate) * up`, elementwise.
///
/// # Shapes
/// `gate`, `up`: `[T, F]` -> `[T, F]`.
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gated: gate {:?}, up {:?}", gate.shape(), up.shape());
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Gated(activation))
}

const CHUNK: usize = 4096;

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(s1, l1, "gated")?, slice(s2, l2, "gated")?);
        // SAFETY: every number of `y` has one of `gate` and one of `up`, and is written.
        let y = unsafe {
            filled(gate.len(), |y| match self.0 {
                Activation::Silu => forward(y, gate, up, silu),
                Activation::GeluTanh => forward(y, gate, up, gelu_tanh),
            })
        };
        Ok(output(y, l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let ((gpu, gate), (_, up)) = (cuda::operand(s1, l1, "gated")?, cuda::operand(s2, l2, "gated")?);
        // SAFETY: both operands are of the shape of `l1`.
        let y = unsafe { cuda::gated(gpu, (gate, up), l1.shape().elem_count(), self.0.number())? };
        Ok(gpu.output(y, l1.shape()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [d_gate, d_up] = self.gradients(gate, up, dy)?.map(Some);
        Ok((d_gate.filter(|_| gate.track_op()), d_up.filter(|_| up.track_op())))
    }
}

impl Gated {
    /// Gradients by gate and by up.
    pub(super) fn gradients(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Tensor; 2]> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(gate)? {
            let [gate_at, up_at, dy_at] = [gate, up, dy].map(cuda::Read::of);
            let (gate_at, up_at, dy_at) = (gate_at?, up_at?, dy_at?);
            let pointers = (gate_at.pointer, up_at.pointer, dy_at.pointer);
            // SAFETY: all three are of one shape.
            let gradients = unsafe { cuda::gated_backward(gpu, pointers, gate.elem_count(), self.0.number())? };
            return Ok(gradients.map(|gradient| gpu.tensor(gradient, gate.shape())));
        }
        let (mut d_gate, mut d_up) = (Vec::new(), Vec::new());
        let mut run = |gate: &[f32], up: &[f32], dy: &[f32]| {
            let len = gate.len();
            // SAFETY: every number of both gradients has one of each operand, and is written.
            d_gate = unsafe {
                filled(len, |d_gate| {
                    d_up = filled(len, |d_up| match self.0 {
                        Activation::Silu => backward((d_gate, d_up), (gate, up, dy), silu),
                        Activation::GeluTanh => backward((d_gate, d_up), (gate, up, dy), gelu_tanh),
                    });
                })
            };
        };
        with_values(gate, |gate| with_values(up, |up| with_values(dy, |dy| run(gate, up, dy))))???;
        Ok([tensor(d_gate, gate.shape())?, tensor(d_up, up.shape())?])
    }
}

impl Gated {
    /// `act(gate) * up` on the CPU, rounded.
    pub(super) fn rounded(&self, gate: &Tensor, up: &Tensor) -> Result<Rounded> {
        let (t, f) = gate.dims2()?;
        let run = |gate: &[f32], up: &[f32]| {
            Rounded::written(t, f, |row, y| {
                let [gate, up] = [gate, up].map(|x| &x[row * f..(row + 1) * f]);
                match self.0 {
                    Activation::Silu => row_forward(y, gate, up, silu),
                    Activation::GeluTanh => row_forward(y, gate, up, gelu_tanh),
                }
            })
        };
        with_values(gate, |gate| with_values(up, |up| run(gate, up)))?
    }

    /// Gradients by gate and by up on the CPU, rounded.
    pub(super) fn rounded_gradients(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Rounded; 2]> {
        let (t, f) = gate.dims2()?;
        let run = |gate: &[f32], up: &[f32], dy: &[f32]| {
            let inputs = |row: usize| [gate, up, dy].map(|x| &x[row * f..(row + 1) * f]);
            Rounded::written_pair(t, f, |row, gradients| match self.0 {
                Activation::Silu => row_backward(gradients, inputs(row), silu),
                Activation::GeluTanh => row_backward(gradients, inputs(row), gelu_tanh),
            })
        };
        with_values(gate, |gate| with_values(up, |up| with_values(dy, |dy| run(gate, up, dy))))??
    }
}
