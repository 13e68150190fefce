//! The operations against their definitions: values, gradients, errors and the edges of f32.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its case fails there")]

mod adamw;
mod attention;
mod bf16;
mod errors;
mod few_rows;
mod forward;
mod fused;
mod gradients;
mod halves;
mod mask;
mod matrix;
mod numerics;
mod rows;
mod support;
