//! Training: recipes, rows, losses and their gradients, the optimiser, checkpoints, the loop.

mod checkpoint;
pub mod contrastive;
pub mod optimizer;
pub mod recipe;
mod rows;
pub mod schedule;
pub mod step;
mod trainer;

pub use checkpoint::State;
pub use recipe::Recipe;
pub use rows::{Position, RowStream, first_rows};
pub use trainer::{Event, Outcome, RunOptions, StepMetrics, Trainer, build_method, special_rows};
