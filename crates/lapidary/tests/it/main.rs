//! Tests of the library as its users see it, in one binary so that it is linked once.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
mod comparison;
mod damage;
mod engine;
mod engine_compressed;
mod eval;
mod few_tokens;
mod gemma3_270m;
mod generate;
mod golden_families;
mod golden_reference;
mod hf_config;
mod instructions;
mod int8;
mod invariance;
mod kv_pool;
mod models;
mod passes;
mod report;
mod row_stream;
mod safetensors_dir;
mod sharing;
mod training;
mod training_refusals;
