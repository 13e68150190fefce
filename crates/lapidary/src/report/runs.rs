//! Runs of the same variants side by side: a dot for each run, so that the eye sees what is noise.

use super::axis::{Axis, Ticks, grouped};
use super::canvas::{Canvas, GRID, INK, MUTED, SERIES, Style, paint};
use super::{ReportError, check_count, check_finite};

const WIDTH: f64 = 720.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 52.0;
const ROW: f64 = 28.0;
const BOTTOM: f64 = 34.0;
/// Room for a mean with two decimals.
const MEAN: f64 = 56.0;
const MAX_LABEL: f64 = 240.0;
const LABEL: f64 = 13.5;
const MAX_VARIANTS: usize = 60;

/// A line for each variant with a dot for each of its runs, a bar at their mean, and the mean as a number. The axis covers
/// the values, not zero: what counts is how far the variants lie apart beside how far the runs of one do. Returns a PNG.
///
/// # Errors
/// If there is no variant or one has no run, the two differ in number, a value is not finite, or there are more variants
/// than can be told apart.
pub fn run_scores(title: &str, variants: &[String], runs: &[Vec<f64>]) -> Result<Vec<u8>, ReportError> {
    check_count("variants", variants.len(), MAX_VARIANTS)?;
    if runs.len() != variants.len() {
        return Err(ReportError::Size { what: "runs".into(), expected: variants.len(), found: runs.len() });
    }
    runs.iter().try_for_each(|runs| check_count("runs", runs.len(), usize::MAX))?;
    let values = || runs.iter().flatten().copied();
    check_finite("runs", values())?;

    let style = Style::new(LABEL);
    let mut gutter: f64 = 0.0;
    for variant in variants {
        gutter = gutter.max(style.width_of(variant)?);
    }
    let left = MARGIN + gutter.min(MAX_LABEL) + 14.0;
    let below = TOP + ROW * variants.len() as f64;
    paint(WIDTH as u32, (below + BOTTOM).ceil() as u32, |canvas| {
        let heading = Style::new(19.0).bold();
        canvas.text(&heading.elide(title, WIDTH - 2.0 * MARGIN)?, (MARGIN, 28.0), heading)?;
        let ticks =
            Ticks::covering(values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max), 6);
        let x = Axis { low: ticks.low(), high: ticks.high(), from: left, to: WIDTH - MARGIN - MEAN };
        for &value in &ticks.values {
            let place = x.at(value);
            canvas.line(&[(place, TOP), (place, below)], 0.75, &GRID)?;
            canvas.text(&ticks.label(value), (place, below + 14.0), Style::new(13.0).color(MUTED).centred())?;
        }
        for (row, (variant, runs)) in variants.iter().zip(runs).enumerate() {
            let y = TOP + ROW * (row as f64 + 0.5);
            canvas.text(&style.elide(variant, MAX_LABEL)?, (left - 14.0, y), style.right())?;
            draw_runs(canvas, &x, y, runs)?;
        }
        Ok(())
    })
}

fn draw_runs(canvas: &Canvas<'_>, x: &Axis, y: f64, runs: &[f64]) -> Result<(), ReportError> {
    let mean = runs.iter().sum::<f64>() / runs.len() as f64;
    canvas.line(&[(x.at(mean), y - 8.0), (x.at(mean), y + 8.0)], 2.0, &INK)?;
    for run in runs {
        canvas.disc((x.at(*run), y), 4.0, SERIES[0])?;
    }
    canvas.text(&grouped(mean, 2), (WIDTH - MARGIN, y), Style::new(13.0).bold().right())
}
