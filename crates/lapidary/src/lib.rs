//! Cut any decoder-only LLM into a GEM (arXiv 2506.04344): one set of weights that chats, embeds text and reads
//! compressed documents.
//!
//! A method turns text into rows of plain integers (crate `layout`); one decoder runs any row; losses and pooling
//! read the result. [`Lapidary`] is the short way in; [`train::Trainer`] cuts a model.

#![forbid(unsafe_code)]

pub mod data;
pub mod embed;
pub mod engine;
mod error;
pub mod eval;
mod gem;
pub mod generate;
pub mod model;
pub mod output;
pub mod report;
#[cfg(test)]
#[path = "../tests/it/models.rs"]
mod test_models;
pub mod text;
pub mod train;

pub use error::Error;
pub use gem::{Lapidary, fingerprint_of};
pub use kernels::{Allocator, Device, cuda_device, has_bf16_units, on_pool, physical_memory, prepare_process};
pub use layout;
pub use model::ModelFiles;
