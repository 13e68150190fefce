//! A comparison as a page: the table, the plots, and what to know about them.

use super::ReportError;
use super::axis::grouped;
use super::bars::{Series, bar_comparison};
use super::comparison::{Column, Comparison};
use super::html::{Block, Cell, Figure, Page, Section, Table};
use super::results::Run;
use super::score_grid::{GridColumn, score_grid};
use serde_json::Value;

/// A cost that a run may name: its column, and where `model_meta.json` has it.
const COSTS: [(&str, &[&str], f64); 4] = [
    ("parameters, millions", &["n_parameters"], 1e-6),
    ("dimensions", &["embed_dim"], 1.0),
    ("training CPU seconds", &["training", "cpu_secs"], 1.0),
    ("training seconds", &["training", "train_secs"], 1.0),
];
const NOT_MEASURED: &str = "–";

impl Comparison {
    /// Models in rows, tasks in columns, with the means before them and the costs behind them; the best of a column that
    /// compares is set off.
    pub fn table(&self) -> Table {
        let mut columns = vec!["model".to_owned()];
        let mut rows: Vec<Vec<Cell>> = self.models.iter().map(|model| vec![Cell::new(model)]).collect();
        let mut groups = vec![(String::new(), 1)];
        let mut add = |title: String, cells: Vec<Cell>| {
            columns.push(title);
            rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
        };
        for (mean, (name, is_embedding)) in self.means.iter().zip([("embedding", true), ("language", false)]) {
            let before = groups.iter().map(|(_, columns)| columns).sum::<usize>();
            let mut count = before;
            // The mean of one task is that task.
            if let Some(mean) = mean.as_ref().filter(|mean| mean.num_tasks > 1) {
                add(format!("mean of {} {name} tasks", mean.num_tasks), cells(&mean.values, Some(false)));
                count += 1;
            }
            for column in self.columns.iter().filter(|column| column.is_embedding == is_embedding) {
                let mark = if column.is_comparable { "" } else { " †" };
                let lower = if column.lower_is_better { " (lower is better)" } else { "" };
                let best = column.is_comparable.then_some(column.lower_is_better);
                add(format!("{}{lower}{mark}", column.title), cells(&column.values, best));
                count += 1;
            }
            if count > before {
                groups.push((format!("{name} tasks"), count - before));
            }
        }
        let costs: Vec<_> =
            COSTS.iter().map(|cost| (cost.0, self.cost(cost))).filter(|(_, cost)| cost.is_some()).collect();
        if !costs.is_empty() {
            groups.push(("cost".to_owned(), costs.len()));
        }
        for (name, cells) in costs {
            add(name.to_owned(), cells.unwrap_or_default());
        }
        Table { caption: "Shares times 100; – where there is no result.".into(), columns, groups, rows }
    }

    /// A column of costs, where any model has it.
    fn cost(&self, (_, path, scale): &(&str, &[&str], f64)) -> Option<Vec<Cell>> {
        let of = |run: &Run| {
            let (last, parents) = path.split_last()?;
            let object = parents.iter().try_fold(&run.meta, |object, key| object.get(*key)?.as_object())?;
            object.get(*last)?.as_f64().filter(|cost| cost.is_finite())
        };
        let costs: Vec<Option<f64>> = self.runs.iter().map(of).collect();
        let cell = |cost: &Option<f64>| Cell::new(cost.map_or(NOT_MEASURED.into(), |cost| grouped(cost * scale, 0)));
        costs.iter().any(Option::is_some).then(|| costs.iter().map(cell).collect())
    }

    /// The page, and why a picture is missing where one is.
    ///
    /// # Errors
    /// When a plot cannot be drawn for another reason than too many models or tasks.
    pub fn page(&self, title: &str, footer: &str, unreadable: &[String]) -> Result<Page, ReportError> {
        let (figures, mut notes) = self.figures()?;
        notes.splice(0..0, self.notes.iter().cloned());
        let mut blocks = vec![Block::Table(self.table())];
        blocks.extend(notes.into_iter().map(Block::Paragraph));
        let mut sections = vec![Section { heading: "Scores".into(), blocks }];
        if !figures.is_empty() {
            let blocks = figures.into_iter().map(Block::Figure).collect();
            sections.push(Section { heading: "Pictures".into(), blocks });
        }
        sections.push(Section { heading: "Runs".into(), blocks: vec![Block::Table(self.runs_table())] });
        if !unreadable.is_empty() {
            let blocks = unreadable.iter().cloned().map(Block::Paragraph).collect();
            sections.push(Section { heading: "Files that could not be read".into(), blocks });
        }
        let summary = format!("{} models on {} tasks.", self.models.len(), self.columns.len());
        Ok(Page { title: title.into(), summary, sections, footer: footer.into() })
    }

    fn runs_table(&self) -> Table {
        let shown = |run: &Run, key: &str| match run.meta.get(key) {
            None | Some(Value::Null) => NOT_MEASURED.to_owned(),
            Some(value) => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        };
        let row = |(model, run): (&String, &Run)| {
            let cells = [model.clone(), run.name.clone(), run.revision.clone(), shown(run, "method")];
            cells.into_iter().chain([shown(run, "max_tokens"), shown(run, "standardised")]).map(Cell::new).collect()
        };
        Table {
            caption: "What the scores are of, as the model_meta.json of each says.".into(),
            columns: ["model", "name", "revision", "method", "max_tokens", "standardised"].map(str::to_owned).into(),
            rows: self.models.iter().zip(&self.runs).map(row).collect(),
            ..Table::default()
        }
    }

    /// Bars of the means, and a grid of all scores; with too many models or tasks for one a note says so.
    fn figures(&self) -> Result<(Vec<Figure>, Vec<String>), ReportError> {
        let mut pictures = Vec::new();
        let means = self.means.iter().zip(["embedding", "language"]);
        let means: Vec<_> = means.filter_map(|(mean, kind)| Some((mean.as_ref()?, kind))).collect();
        if !means.is_empty() {
            let series = means.iter().map(|(mean, kind)| {
                let tasks = if mean.num_tasks == 1 { "task" } else { "tasks" };
                Series { name: format!("{} {kind} {tasks}", mean.num_tasks), values: mean.values.clone() }
            });
            let series: Vec<Series> = series.collect();
            let mut told = Vec::new();
            for one in &series {
                let known = one.values.iter().zip(&self.models).filter_map(|(value, model)| Some(((*value)?, model)));
                told.extend(known.map(|(value, model)| format!("{model} {value:.1} ({})", one.name)));
            }
            pictures.push((
                bar_comparison("Mean score times 100", &self.models, &series),
                "Mean over the tasks that count for all models, as said above.".into(),
                format!("Bars of the mean score: {}.", told.join(", ")),
            ));
        }
        let columns = |column: &Column| GridColumn {
            name: column.title.clone() + if column.is_comparable { "" } else { " †" },
            lower_is_better: column.lower_is_better,
            values: column.values.clone(),
        };
        pictures.push((
            score_grid("Scores by task", &self.models, &self.columns.iter().map(columns).collect::<Vec<_>>()),
            "Each column is coloured by itself, from its worst score, the palest, to its best, in bold.".into(),
            format!(
                "Grid of the scores of {} models on {} tasks; the numbers are those of the table above.",
                self.models.len(),
                self.columns.len()
            ),
        ));
        let (mut figures, mut notes) = (Vec::new(), Vec::new());
        for (png, caption, alternative) in pictures {
            match png {
                Ok(png) => figures.push(Figure { png, caption, alternative }),
                Err(error @ ReportError::TooMany { .. }) => notes.push(format!("A picture is missing: {error}.")),
                Err(error) => return Err(error),
            }
        }
        Ok((figures, notes))
    }
}

/// Cells of a column; with `lower_is_better` known, the best are set off, unless there is nothing to compare.
fn cells(values: &[Option<f64>], lower_is_better: Option<bool>) -> Vec<Cell> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    let best = match lower_is_better {
        // What reads alike is equally good, and where all do there is no best.
        Some(lower) if known.iter().any(|value| grouped(*value, 2) != grouped(known[0], 2)) => {
            known.into_iter().reduce(if lower { f64::min } else { f64::max }).map(|best| grouped(best, 2))
        }
        _ => None,
    };
    let cell = |value: &Option<f64>| {
        let text = value.map_or(NOT_MEASURED.into(), |value| grouped(value, 2));
        if best.as_ref() == Some(&text) { Cell::new(text).best() } else { Cell::new(text) }
    };
    values.iter().map(cell).collect()
}
