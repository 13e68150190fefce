//! The decoder's operations. Tensors are f32 and row-major; every op that training reaches has a backward.

mod add;
mod attention;
mod cross_entropy;
mod dropout;
mod embed_inputs;
pub mod few_rows;
pub mod fused;
pub mod halves;
mod linear;
mod pool;
pub mod reference;
mod rms_norm;
mod rope;
mod rounded;
mod row_update;
mod rows;
mod swiglu;

pub use add::add;
pub use attention::{AttentionMask, AttentionSpec, MANY_KEYS, WIDEST_ROUNDED, attention, attention_cached};
pub use cross_entropy::{Head, cross_entropy, logits};
pub use dropout::dropout;
pub use embed_inputs::{embed_inputs, embed_tokens};
pub use linear::{LowRank, Weight, linear};
pub use pool::pool;
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope, rope_in_place};
#[doc(hidden)]
pub use rounded::RoundedProduct;
pub use rows::Rows;
pub use swiglu::{Activation, gated};
