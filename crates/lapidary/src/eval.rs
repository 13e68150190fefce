//! Scores of a model from plain vectors, token ids and log-likelihoods: no model is named here.

pub mod classification;
mod error;
pub mod language;
mod lbfgs;
pub mod logistic_regression;
pub mod metrics;
pub mod multiple_choice;
pub mod perplexity;
mod shuffle;
pub mod standardise;
pub mod sts;

pub use error::{EvalError, Result};
