//! Scores of models on tasks as a coloured grid with its numbers.

use super::axis::grouped;
use super::canvas::{Canvas, INK, MUTED, Style, paint};
use super::heat_map::{WHITE, color_of, is_dark};
use super::{ReportError, check_count, check_finite};
use plotters::style::RGBColor;

const MARGIN: f64 = 24.0;
const TITLE: f64 = 52.0;
const CELL: (f64, f64) = (58.0, 32.0);
const LABEL: f64 = 13.5;
/// Room for the longest names; they are cut there.
const MAX_LABEL: f64 = 260.0;
const MAX_ROWS: usize = 40;
const MAX_COLUMNS: usize = 64;
/// A cell without a score.
const NONE: RGBColor = RGBColor(243, 244, 246);

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct GridColumn {
    /// Its name, above the column.
    pub name: String,
    /// Whether a lower score is a better one.
    pub lower_is_better: bool,
    /// A score for each row; `None` where it was not measured.
    pub values: Vec<Option<f64>>,
}

/// A grid with a row a model and a column a task. Each column is coloured by itself, from its worst score, the palest, to
/// its best, because scores of different tasks do not compare. Returns a PNG.
///
/// # Errors
/// If there are no or too many rows or columns, a column has not a value for each row, or a value is not finite.
pub fn score_grid(title: &str, rows: &[String], columns: &[GridColumn]) -> Result<Vec<u8>, ReportError> {
    check_count("rows", rows.len(), MAX_ROWS)?;
    check_count("columns", columns.len(), MAX_COLUMNS)?;
    for column in columns {
        if column.values.len() != rows.len() {
            let (expected, found) = (rows.len(), column.values.len());
            return Err(ReportError::Size { what: format!("column `{}`", column.name), expected, found });
        }
        check_finite("scores", column.values.iter().flatten().copied())?;
    }
    let style = Style::new(LABEL);
    let left = MARGIN + widest(style, rows.iter())? + 12.0;
    let top = TITLE + widest(style, columns.iter().map(|column| &column.name))? + 10.0;
    let width = (left + CELL.0 * columns.len() as f64 + MARGIN).max(480.0);
    let height = top + CELL.1 * rows.len() as f64 + MARGIN;
    paint(width.ceil() as u32, height.ceil() as u32, |canvas| {
        let heading = Style::new(19.0).bold();
        canvas.text(&heading.elide(title, width - 2.0 * MARGIN)?, (MARGIN, 28.0), heading)?;
        for (row, name) in rows.iter().enumerate() {
            let middle = top + CELL.1 * (row as f64 + 0.5);
            canvas.text(&style.elide(name, MAX_LABEL)?, (left - 12.0, middle), style.right())?;
        }
        for (at, column) in columns.iter().enumerate() {
            let x = left + CELL.0 * at as f64;
            canvas.rising_text(&style.elide(&column.name, MAX_LABEL)?, (x + CELL.0 / 2.0, top - 8.0), style)?;
            draw_column(canvas, (x, top), column)?;
        }
        Ok(())
    })
}

fn widest<'a>(style: Style, mut names: impl Iterator<Item = &'a String>) -> Result<f64, ReportError> {
    names.try_fold(0.0, |widest: f64, name| Ok(widest.max(style.width_of(name)?.min(MAX_LABEL))))
}

fn draw_column(canvas: &Canvas<'_>, (x, top): (f64, f64), column: &GridColumn) -> Result<(), ReportError> {
    let goodness = |value: f64| if column.lower_is_better { -value } else { value };
    let known = || column.values.iter().flatten().map(|value| goodness(*value));
    let (worst, best) = (known().fold(f64::INFINITY, f64::min), known().fold(f64::NEG_INFINITY, f64::max));
    for (row, value) in column.values.iter().enumerate() {
        let (left, upper) = (x + 0.5, top + CELL.1 * row as f64 + 0.5);
        let middle = (x + CELL.0 / 2.0, upper + CELL.1 / 2.0 - 0.5);
        // Pale, but not white, for the worst; not the darkest for the best. Where all are alike there is no best.
        let share = |value: f64| if best > worst { (goodness(value) - worst) / (best - worst) } else { 0.5 };
        let color = value.map_or(NONE, |value| color_of(0.06 + 0.74 * share(value)));
        canvas.rectangle((left, upper), (left + CELL.0 - 1.0, upper + CELL.1 - 1.0), color)?;
        let Some(value) = value else {
            canvas.text("–", middle, Style::new(LABEL).color(MUTED).centred())?;
            continue;
        };
        let style = Style::new(LABEL).color(if is_dark(color) { WHITE } else { INK }).centred();
        let style = if best > worst && goodness(*value) >= best { style.bold() } else { style };
        let text = style.elide(&grouped(*value, 1), CELL.0 - 4.0)?;
        canvas.text(&text, middle, style)?;
    }
    Ok(())
}
