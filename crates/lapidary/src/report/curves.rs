//! Curves over training steps: the losses side by side, and a validation score.

use plotters::style::{Color, RGBColor, WHITE};

use super::axis::{Axis, Ticks, grouped};
use super::canvas::{Canvas, GRID, INK, MUTED, Point, SERIES, Style, paint};
use super::{ReportError, check_count, check_finite};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 400;
const MARGIN: f64 = 24.0;
/// More points than this in one curve cannot be told apart; neighbours are averaged.
const MAX_POINTS: usize = 600;
/// From this many points on a smoothed curve helps.
const MIN_SMOOTHED: usize = 16;

/// The losses of one step; `None` where the step had no such loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossPoint {
    /// Optimiser step.
    pub step: u64,
    /// Mean next_token loss, in nats a token.
    pub next_token: Option<f64>,
    /// Contrastive loss, in nats.
    pub contrastive: Option<f64>,
    /// One minus the cosine with the positive.
    pub alignment: Option<f64>,
    /// One minus the correlation with the teacher's similarities.
    pub similarity: Option<f64>,
}

/// The losses over the steps, side by side because their scales differ; a panel for each that occurs. Returns a PNG.
///
/// # Errors
/// If there is no loss at all, or one is not finite.
pub fn loss_curves(title: &str, points: &[LossPoint]) -> Result<Vec<u8>, ReportError> {
    let series = |value: fn(&LossPoint) -> Option<f64>| -> Vec<Point> {
        let each = points.iter();
        each.filter_map(|point| Some((point.step as f64, value(point)?))).collect()
    };
    let panels: Vec<(&str, Vec<Point>, RGBColor)> = [
        ("next_token loss", series(|point| point.next_token), SERIES[0]),
        ("contrastive loss", series(|point| point.contrastive), SERIES[3]),
        ("alignment loss", series(|point| point.alignment), SERIES[3]),
        ("similarity loss", series(|point| point.similarity), SERIES[1]),
    ]
    .into_iter()
    .filter(|(_, points, _)| !points.is_empty())
    .collect();
    for (name, points, _) in &panels {
        check_finite(name, points.iter().map(|point| point.1))?;
    }
    check_count("losses", panels.len(), 3)?;
    paint(WIDTH, HEIGHT, |canvas| {
        draw_title(canvas, title)?;
        let width = (f64::from(WIDTH) - MARGIN) / panels.len() as f64;
        for (index, (name, points, color)) in panels.iter().enumerate() {
            let left = MARGIN + width * index as f64;
            let frame = (left, 56.0, left + width - MARGIN, f64::from(HEIGHT) - 16.0);
            draw_loss(canvas, frame, name, &thin_out(points), *color)?;
        }
        Ok(())
    })
}

/// A dashed line to compare a curve with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// What the line stands for.
    pub name: String,
    /// Its height.
    pub value: f64,
}

/// A validation score (higher is better) over the steps, its best point marked, beside
/// reference values. Returns a PNG.
///
/// # Errors
/// If there are no points, more than six references, or a number is not finite.
pub fn validation_curve(title: &str, points: &[(u64, f64)], references: &[Reference]) -> Result<Vec<u8>, ReportError> {
    check_count("validation points", points.len(), usize::MAX)?;
    check_finite("validation scores", points.iter().map(|point| point.1))?;
    check_finite("reference values", references.iter().map(|line| line.value))?;
    if !references.is_empty() {
        check_count("references", references.len(), SERIES.len() - 1)?;
    }
    let best = points.iter().copied().fold(points[0], |best, point| if point.1 > best.1 { point } else { best });
    let curve: Vec<Point> = points.iter().map(|&(step, score)| (step as f64, score)).collect();
    let shown = thin_out(&curve);
    paint(WIDTH, HEIGHT, |canvas| {
        draw_title(canvas, title)?;
        let frame = (MARGIN, 56.0, f64::from(WIDTH) - MARGIN, f64::from(HEIGHT) - 16.0);
        let heights = shown.iter().map(|point| point.1).chain([best.1]);
        let heights = heights.chain(references.iter().map(|line| line.value));
        let plot = Plot::draw(canvas, frame, &shown, heights)?;
        draw_references(canvas, &plot, references)?;
        canvas.line(&plot.places(&shown), 2.2, &SERIES[0])?;
        if shown.len() <= 60 {
            for place in plot.places(&shown) {
                canvas.disc(place, 3.0, SERIES[0])?;
            }
        }
        mark_best(canvas, &plot, best)
    })
}

/// The plotting area of a panel with its axes drawn.
struct Plot {
    x: Axis,
    y: Axis,
}

impl Plot {
    /// Draws grid, ticks and step label into `frame` (left, top, right, bottom).
    fn draw(
        canvas: &Canvas<'_>,
        frame: (f64, f64, f64, f64),
        points: &[Point],
        heights: impl Iterator<Item = f64>,
    ) -> Result<Self, ReportError> {
        let (left, top, right, bottom) = frame;
        let (low, high) = extent(heights);
        let (first, last) = extent(points.iter().map(|point| point.0));
        let rows = Ticks::covering(low, high, 5);
        let columns = Ticks::covering_counts(first, last, 5);
        let label = Style::new(13.0).color(MUTED);
        let mut gutter: f64 = 0.0;
        for &value in &rows.values {
            gutter = gutter.max(label.width_of(&rows.label(value))?);
        }
        let x = Axis {
            low: first,
            high: if last > first { last } else { first + 1.0 },
            from: left + gutter + 10.0,
            to: right - 14.0,
        };
        let y = Axis { low: rows.low(), high: rows.high(), from: bottom - 42.0, to: top + 8.0 };
        for &value in &rows.values {
            let place = y.at(value);
            canvas.line(&[(x.from, place), (x.to, place)], 0.75, &GRID)?;
            canvas.text(&rows.label(value), (x.from - 8.0, place), label.right())?;
        }
        let inside = |value: &&f64| (x.low..=x.high).contains(*value);
        for &value in columns.values.iter().filter(inside) {
            let place = (x.at(value), y.from + 14.0);
            canvas.text(&columns.label(value), place, label.centred())?;
        }
        canvas.line(&[(x.from, y.from), (x.to, y.from)], 1.0, &MUTED)?;
        let middle = f64::midpoint(x.from, x.to);
        canvas.text("step", (middle, y.from + 33.0), label.centred())?;
        Ok(Self { x, y })
    }

    fn places(&self, points: &[Point]) -> Vec<Point> {
        let each = points.iter();
        each.map(|&(step, value)| (self.x.at(step), self.y.at(value))).collect()
    }
}

fn draw_title(canvas: &Canvas<'_>, title: &str) -> Result<(), ReportError> {
    let style = Style::new(19.0).bold();
    let title = style.elide(title, f64::from(WIDTH) - 2.0 * MARGIN)?;
    canvas.text(&title, (MARGIN, 28.0), style)
}

fn draw_loss(
    canvas: &Canvas<'_>,
    frame: (f64, f64, f64, f64),
    name: &str,
    points: &[Point],
    color: RGBColor,
) -> Result<(), ReportError> {
    let (left, top, right, bottom) = frame;
    let heading = Style::new(15.0).bold().color(color);
    canvas.text(name, (left, top + 8.0), heading)?;
    let plot = Plot::draw(canvas, (left, top + 24.0, right, bottom), points, points.iter().map(|point| point.1))?;
    let places = plot.places(points);
    if let [place] = places[..] {
        return canvas.disc(place, 4.0, color);
    }
    if points.len() < MIN_SMOOTHED {
        return canvas.line(&places, 2.2, &color);
    }
    let note = Style::new(12.0).color(MUTED).right();
    canvas.text("pale: measured, bold: smoothed", (right - 14.0, top + 9.0), note)?;
    canvas.line(&places, 0.9, &color.mix(0.35))?;
    canvas.line(&plot.places(&smooth(points)), 2.4, &color)
}

fn draw_references(canvas: &Canvas<'_>, plot: &Plot, references: &[Reference]) -> Result<(), ReportError> {
    for (line, &color) in references.iter().zip(&SERIES[1..]) {
        let place = plot.y.at(line.value);
        canvas.dashed((plot.x.from, place), plot.x.to, 1.4, color)?;
        let style = Style::new(12.5);
        let name = style.elide(&line.name, 0.45 * (plot.x.to - plot.x.from))?;
        let text = format!("{name}: {}", grouped(line.value, 1));
        // Under the line: the curve usually starts below and ends above it.
        let (right, middle) = (plot.x.to - 4.0, place + 12.0);
        let left = right - style.width_of(&text)?;
        canvas.rectangle((left - 3.0, middle - 8.0), (right + 2.0, middle + 9.0), WHITE)?;
        canvas.text(&text, (right, middle), style.right())?;
    }
    Ok(())
}

fn mark_best(canvas: &Canvas<'_>, plot: &Plot, best: (u64, f64)) -> Result<(), ReportError> {
    let place = (plot.x.at(best.0 as f64), plot.y.at(best.1));
    canvas.disc(place, 6.5, INK)?;
    canvas.disc(place, 4.2, SERIES[1])?;
    let style = Style::new(13.0).bold();
    let text = format!("best {} at step {}", grouped(best.1, 1), grouped(best.0 as f64, 0));
    let half = style.width_of(&text)? / 2.0;
    // Clear of both ends of the axis; above the point unless the frame ends there.
    let x = place.0.clamp(plot.x.from + half, plot.x.to - half);
    let above = place.1 - 17.0;
    let y = if above < plot.y.to { place.1 + 18.0 } else { above };
    canvas.text(&text, (x, y), style.centred())
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Averages runs of neighbours so that at most `MAX_POINTS` remain.
fn thin_out(points: &[Point]) -> Vec<Point> {
    let run = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |run: &[Point]| {
        let count = run.len() as f64;
        let sum = run.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
        (sum.0, sum.1)
    };
    points.chunks(run).map(mean).collect()
}

/// At each point the line that fits its neighbourhood best, about a tenth of the curve: unlike a
/// running mean it neither lags nor bends at the ends.
fn smooth(points: &[Point]) -> Vec<Point> {
    let half = (points.len() / 20).max(3);
    let each = points.iter().enumerate().map(|(index, &(step, _))| {
        let start = index.saturating_sub(half);
        let window = &points[start..points.len().min(index + half + 1)];
        let count = window.len() as f64;
        let middle = (count - 1.0) / 2.0;
        let mean = window.iter().map(|point| point.1 / count).sum::<f64>();
        let (mut covariance, mut variance) = (0.0, 0.0);
        for (place, point) in window.iter().enumerate() {
            let offset = place as f64 - middle;
            covariance += offset * (point.1 - mean);
            variance += offset * offset;
        }
        (step, mean + covariance / variance * ((index - start) as f64 - middle))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_lines_and_thinning_keeps_means() {
        let straight: Vec<Point> = (0..50).map(|step| (f64::from(step), 3.0 - f64::from(step))).collect();
        for (step, value) in smooth(&straight) {
            assert!((value - (3.0 - step)).abs() < 1e-9);
        }
        let line: Vec<Point> = (0..1200).map(|step| (f64::from(step), 2.0 * f64::from(step))).collect();
        let thin = thin_out(&line);
        assert_eq!(thin.len(), 600);
        assert_eq!(thin[0], (0.5, 1.0));
    }
}
