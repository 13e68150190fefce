//! Scores of a model from plain vectors, token ids and log-likelihoods: no model is named here.

pub mod bootstrapped_clustering;
pub mod classification;
pub mod clustering;
pub mod damage;
mod error;
pub mod language;
mod lbfgs;
pub mod likelihood;
mod line_search;
pub mod logistic_regression;
pub mod metrics;
pub mod multiple_choice;
mod numpy_generator;
pub mod overlap;
pub mod pair_classification;
pub mod perplexity;
mod random;
pub mod retrieval;
pub mod standardise;
pub mod sts;
pub mod summarization;
pub mod task;
pub mod task_instructions;
pub mod task_sets;

pub use error::{EvalError, Result};
