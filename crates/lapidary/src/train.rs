//! Training: recipes, rows, losses and their gradients, the optimiser, checkpoints, the loop.

mod alignment;
mod checkpoint;
mod checks;
pub mod contrastive;
mod damage;
pub mod optimizer;
pub mod recipe;
mod rows;
pub mod schedule;
pub mod similarity;
pub mod step;
mod teacher;
mod trainer;
mod update;
mod validation;

pub use checkpoint::State;
pub use damage::{Damage, DamageRecipe};
pub use recipe::Recipe;
pub use rows::{Position, RowStream, first_rows};
pub use trainer::{Event, Outcome, RunOptions, Trainer, build_method, special_rows};
pub use update::{StepMetrics, plans};
