//! A recipe's whole training, and its rows as another program can read them.

use crate::{Done, Failure, flops, print};
use lapidary::layout::{Input, Layout, Plan, View};
use lapidary::model::BaseModel;
use lapidary::train::{Event, Position, Recipe, RowStream, RunOptions, Trainer, build_method, plans};
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The plans of each step, as the trainer makes them.
fn plans_of_steps(recipe: &Recipe, base: &BaseModel) -> Result<Vec<Vec<Plan>>, Failure> {
    let method = build_method(base, &recipe.method.name, recipe.method.settings.clone().into())?;
    let (budget, seed) = (&recipe.budget, recipe.seed);
    let mut rows = RowStream::open(&recipe.data, &base.tokenizer, budget, seed, Position::default())?
        .pairs_alone(method.needs_positive());
    let of_step = |step: u64| {
        let examples = (0..budget.batch_rows).map(|_| rows.next_example()).collect::<Result<Vec<_>, _>>()?;
        Ok(plans(recipe, method.as_ref(), examples.iter().map(|(example, _)| example), step)?)
    };
    (0..recipe.steps()).map(of_step).collect()
}

/// A row's text up to its first special token, and what follows its last one.
fn parts(row: &Layout) -> [Vec<u32>; 2] {
    let (mut parts, mut part) = ([Vec::new(), Vec::new()], 0);
    for input in row.inputs() {
        match input {
            Input::Token(id) => parts[part].push(*id),
            _ => part = 1,
        }
    }
    parts
}

/// One line of JSON for each step: of each row `[view, text, suffix]`, view 0 for queries.
fn write(steps: &[Vec<Plan>], to: &Path) -> Result<(), Failure> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(to)?);
    for plans in steps {
        let row = |row: &Layout| {
            let [text, suffix] = parts(row);
            let is_query = row.pooled().iter().any(|pooled| pooled.view == View::Query);
            json!([u8::from(!is_query), text, suffix])
        };
        let rows: Vec<_> = plans.iter().flat_map(|plan| &plan.rows).map(row).collect();
        writeln!(file, "{}", json!(rows))?;
    }
    Ok(file.flush()?)
}

/// Writes the rows of a recipe to `rows`, or trains by it and tells of the wall time of its steps; CPU time is not told
/// apart from that of what comes before and after them. Operations are those of the
/// frozen weights' products: one pass over what needs no gradient, and there and back over the rest.
pub(crate) fn run(mut base: BaseModel, recipe: &str, overrides: &[String], rows: Option<&Path>) -> Result<(), Failure> {
    let recipe = Recipe::parse(&std::fs::read_to_string(recipe)?, overrides)?;
    let steps = plans_of_steps(&recipe, &base)?;
    if let Some(rows) = rows {
        return write(&steps, rows);
    }
    let layouts = || steps.iter().flatten().flat_map(|plan| &plan.rows);
    let (all, frozen) =
        layouts().fold((0, 0), |(all, frozen), row| (all + row.num_tokens(), frozen + row.frozen_len()));
    let labels = layouts().flat_map(Layout::labels).flatten().count();
    let flops = flops(base.decoder.config(), 2 * all - frozen, 2 * labels);
    let items = steps.iter().map(Vec::len).sum();
    let out = std::env::temp_dir().join(format!("workload-recipe-{}", std::process::id()));
    let options = RunOptions { out: out.clone(), checkpoint_every_steps: 0, keep_checkpoints: 1, stop_after_steps: 0 };
    let mut secs = 0.0;
    let mut trainer = Trainer::new(recipe, &mut base, options)?;
    trainer.run(&AtomicBool::new(false), &mut |event| {
        match event {
            Event::Step(metrics) => {
                secs = metrics.train_secs;
                eprintln!("{}", json!(metrics));
            }
            Event::Validation { step, spearman, .. } => eprintln!("{}", json!({"step": step, "spearman": spearman})),
            _ => {}
        }
        Ok(())
    })?;
    std::fs::remove_dir_all(out)?;
    print(&Done { items, flops }, f64::NAN, secs);
    Ok(())
}
