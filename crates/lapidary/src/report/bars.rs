//! Grouped bars: one group for each test set, one bar for each method.

use plotters::style::RGBColor;

use super::axis::{Axis, Ticks, grouped};
use super::canvas::{Canvas, GRID, INK, MUTED, SERIES, Style, paint};
use super::{ReportError, check_count, check_finite};

const MIN_WIDTH: f64 = 720.0;
const MARGIN: f64 = 24.0;
const GUTTER: f64 = 44.0;
/// Wide enough for a value with one decimal above each bar.
const BAR: f64 = 34.0;
const BAR_GAP: f64 = 3.0;
const PLOT_HEIGHT: f64 = 270.0;
const LEGEND_ROW: f64 = 22.0;
const MAX_BARS: usize = 56;
const LABEL: f64 = 13.5;
const LABEL_LINES: usize = 3;
/// The widest column of a label; a longer word is cut.
const LABEL_WIDTH: f64 = 130.0;

/// One method with its value in each group; `None` where it was not measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// One value for each group.
    pub values: Vec<Option<f64>>,
}

/// Bars of every series in every group, each with its value, zero at the base line. The last
/// series is set off by colour and bold values: put the one the reader came for there. Returns a PNG.
///
/// # Errors
/// If there is no group, no series or no value, a series has not one value for each group, a
/// value is not finite, or there are more bars or series than can be told apart.
pub fn bar_comparison(title: &str, groups: &[String], series: &[Series]) -> Result<Vec<u8>, ReportError> {
    check_count("groups", groups.len(), MAX_BARS)?;
    check_count("series", series.len(), SERIES.len())?;
    check_count("bars", groups.len() * series.len(), MAX_BARS)?;
    for one in series {
        if one.values.len() != groups.len() {
            return Err(ReportError::Size {
                what: format!("series `{}`", one.name),
                expected: groups.len(),
                found: one.values.len(),
            });
        }
    }
    let values = || series.iter().flat_map(|one| &one.values).flatten().copied();
    check_count("values", values().count(), usize::MAX)?;
    check_finite("values", values())?;

    let bars = series.len() as f64 * (BAR + BAR_GAP);
    let group = (bars + BAR).max(label_width(groups)? + 10.0);
    let wanted = groups.len() as f64 * group + GUTTER + 2.0 * MARGIN;
    let width = wanted.max(MIN_WIDTH);
    let legend = legend_rows(series, width - 2.0 * MARGIN)?;
    let top = 52.0 + LEGEND_ROW * legend.len() as f64 + 14.0;
    let group_width = (width - GUTTER - 2.0 * MARGIN) / groups.len() as f64;
    let wrap = |group: &String| Style::new(LABEL).wrap(group, group_width - 10.0, LABEL_LINES);
    let labels = groups.iter().map(wrap).collect::<Result<Vec<_>, _>>()?;
    let num_lines = labels.iter().map(Vec::len).max().unwrap_or(0);
    let height = top + PLOT_HEIGHT + 22.0 + 17.0 * num_lines as f64;
    paint(width.ceil() as u32, height.ceil() as u32, |canvas| {
        let style = Style::new(19.0).bold();
        let title = style.elide(title, width - 2.0 * MARGIN)?;
        canvas.text(&title, (MARGIN, 28.0), style)?;
        draw_legend(canvas, &legend, series.len())?;
        let low = values().fold(0.0, f64::min);
        let high = values().fold(0.0, f64::max);
        let ticks = Ticks::covering(low, high, 5);
        let y = Axis { low: ticks.low(), high: ticks.high(), from: top + PLOT_HEIGHT, to: top };
        draw_grid(canvas, &ticks, &y, width)?;
        for (index, lines) in labels.iter().enumerate() {
            let middle = MARGIN + GUTTER + group_width * (index as f64 + 0.5);
            draw_group(canvas, &y, middle - bars / 2.0, index, series)?;
            let style = Style::new(LABEL);
            for (row, line) in lines.iter().enumerate() {
                let place = (middle, y.from + 16.0 + 17.0 * row as f64);
                canvas.text(line, place, style.centred())?;
            }
        }
        let base = y.at(0.0);
        canvas.line(&[(MARGIN + GUTTER, base), (width - MARGIN, base)], 1.0, &INK)
    })
}

/// Room for a label that breaks between words and after hyphens.
fn label_width(groups: &[String]) -> Result<f64, ReportError> {
    let style = Style::new(LABEL);
    let mut width: f64 = 0.0;
    for part in groups.iter().flat_map(|group| group.split([' ', '-', '/'])) {
        width = width.max(style.width_of(part)? + style.width_of("-")?);
    }
    Ok(width.min(LABEL_WIDTH))
}

/// Entries of the legend: index of the series, its text, and where it starts.
type LegendRow = Vec<(usize, String, f64)>;

fn legend_rows(series: &[Series], width: f64) -> Result<Vec<LegendRow>, ReportError> {
    const MARK: f64 = 20.0;
    const GAP: f64 = 22.0;
    let style = Style::new(13.5);
    let mut rows: Vec<LegendRow> = vec![Vec::new()];
    let mut x = 0.0;
    for (index, one) in series.iter().enumerate() {
        let text = style.elide(&one.name, width - MARK)?;
        let needed = MARK + style.width_of(&text)?;
        if x > 0.0 && x + needed > width {
            rows.push(Vec::new());
            x = 0.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((index, text, x));
        }
        x += needed + GAP;
    }
    Ok(rows)
}

fn draw_legend(canvas: &Canvas<'_>, rows: &[LegendRow], count: usize) -> Result<(), ReportError> {
    for (row, entries) in rows.iter().enumerate() {
        let y = 60.0 + LEGEND_ROW * row as f64;
        for (index, text, x) in entries {
            let x = MARGIN + x;
            canvas.rectangle((x, y - 6.0), (x + 12.0, y + 6.0), color_of(*index, count))?;
            canvas.text(text, (x + 19.0, y), Style::new(13.5))?;
        }
    }
    Ok(())
}

/// The last series has the strongest colour.
fn color_of(index: usize, count: usize) -> RGBColor {
    SERIES[(index + 1) % count]
}

fn draw_grid(canvas: &Canvas<'_>, ticks: &Ticks, y: &Axis, width: f64) -> Result<(), ReportError> {
    let style = Style::new(13.0).color(MUTED).right();
    for &value in &ticks.values {
        let place = y.at(value);
        let left = MARGIN + GUTTER;
        canvas.line(&[(left, place), (width - MARGIN, place)], 0.75, &GRID)?;
        canvas.text(&ticks.label(value), (left - 8.0, place), style)?;
    }
    Ok(())
}

fn draw_group(canvas: &Canvas<'_>, y: &Axis, left: f64, group: usize, series: &[Series]) -> Result<(), ReportError> {
    let base = y.at(0.0);
    for (index, one) in series.iter().enumerate() {
        let from = left + index as f64 * (BAR + BAR_GAP) + BAR_GAP / 2.0;
        let style = if index + 1 == series.len() { Style::new(12.5).bold() } else { Style::new(12.5) };
        let (text, end) = match one.values[group] {
            Some(value) => (grouped(value, 1), y.at(value)),
            None => ("–".to_owned(), base),
        };
        canvas.rectangle((from, end.min(base)), (from + BAR, end.max(base)), color_of(index, series.len()))?;
        let place = if end > base { end + 10.0 } else { end - 9.0 };
        let text = style.elide(&text, BAR + BAR_GAP)?;
        canvas.text(&text, (from + BAR / 2.0, place), style.centred())?;
    }
    Ok(())
}
