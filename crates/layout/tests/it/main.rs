//! The tests of the crate, one binary.

mod golden;
mod laws;
mod methods;
mod pictures;

use layout::{Method, MethodContext, Rng, TokenId};
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;

/// Words as ids from 100 on, in order.
fn encode(text: &str) -> Vec<TokenId> {
    (100..).zip(text.split_whitespace()).map(|(id, _)| id).collect()
}

fn method(name: &str, settings: Value, bos: Option<TokenId>) -> Box<dyn Method + Send + Sync> {
    let context = MethodContext { encode: &encode, bos };
    layout::build(name, settings, &context).expect("valid settings")
}

fn seeded(seed: u64) -> Rng {
    Rng::seed_from_u64(seed)
}
