//! The similarity of every pair of texts as a coloured grid with its numbers.

use plotters::style::RGBColor;

use super::axis::grouped;
use super::canvas::{Canvas, INK, MUTED, Style, paint};
use super::{ReportError, check_count, check_finite};

const MARGIN: f64 = 24.0;
const LABEL_WIDTH: f64 = 270.0;
const LABEL: f64 = 13.0;
const HEADER: f64 = 24.0;
const SCALE_WIDTH: f64 = 74.0;
/// More cells than this on a side leave no room for numbers.
const MAX_LABELS: usize = 32;
pub(super) const WHITE: RGBColor = RGBColor(255, 255, 255);
/// Ends of the scale: minus one and one, white between them at zero.
const OPPOSITE: RGBColor = RGBColor(179, 73, 0);
const ALIKE: RGBColor = RGBColor(0, 72, 128);

/// A square grid of similarities in -1..=1 with the texts at its left, numbered, and their
/// numbers above it. Values beyond the scale take the colour of its end. Returns a PNG.
///
/// # Shapes
/// `matrix`: `[N, N]` row-major, N the number of labels.
///
/// # Errors
/// If there are no or too many labels, the matrix has another size, or a value is not finite.
pub fn similarity_heat_map(title: &str, labels: &[String], matrix: &[f32]) -> Result<Vec<u8>, ReportError> {
    let count = labels.len();
    check_count("labels", count, MAX_LABELS)?;
    if matrix.len() != count * count {
        return Err(ReportError::Size {
            what: "the similarity matrix".to_owned(),
            expected: count * count,
            found: matrix.len(),
        });
    }
    check_finite("similarities", matrix.iter().map(|&value| f64::from(value)))?;
    let cell = (560.0 / count as f64).clamp(30.0, 64.0).floor();
    let side = cell * count as f64;
    let left = MARGIN + LABEL_WIDTH + 14.0;
    let top = 56.0 + HEADER;
    let width = left + side + 22.0 + SCALE_WIDTH;
    let height = top + side.max(120.0) + MARGIN;
    paint(width.ceil() as u32, height.ceil() as u32, |canvas| {
        let style = Style::new(19.0).bold();
        let title = style.elide(title, width - 2.0 * MARGIN)?;
        canvas.text(&title, (MARGIN, 28.0), style)?;
        for (row, label) in labels.iter().enumerate() {
            let middle = cell * (row as f64 + 0.5);
            let number = (row + 1).to_string();
            let header = Style::new(LABEL).bold().color(MUTED);
            canvas.text(&number, (left + middle, top - 13.0), header.centred())?;
            canvas.text(&number, (left - 10.0, top + middle), header.right())?;
            draw_label(canvas, label, top + middle, cell)?;
        }
        for (index, &value) in matrix.iter().enumerate() {
            let x = left + cell * (index % count) as f64;
            let y = top + cell * (index / count) as f64;
            draw_cell(canvas, (x, y), cell, f64::from(value))?;
        }
        draw_scale(canvas, left + side + 22.0, top, side.clamp(120.0, 260.0))
    })
}

fn draw_label(canvas: &Canvas<'_>, label: &str, middle: f64, cell: f64) -> Result<(), ReportError> {
    const LINE: f64 = 16.0;
    // Room for the row's number between text and grid.
    let width = LABEL_WIDTH - 22.0;
    let style = Style::new(LABEL);
    let lines = style.wrap(label, width, ((cell / LINE) as usize).clamp(1, 3))?;
    let first = middle - LINE * (lines.len() as f64 - 1.0) / 2.0;
    for (index, line) in lines.iter().enumerate() {
        let place = (MARGIN + width, first + LINE * index as f64);
        canvas.text(line, place, style.right())?;
    }
    Ok(())
}

fn draw_cell(canvas: &Canvas<'_>, (x, y): (f64, f64), cell: f64, value: f64) -> Result<(), ReportError> {
    let color = color_of(value);
    // A hairline of white between cells.
    canvas.rectangle((x + 0.5, y + 0.5), (x + cell - 0.5, y + cell - 0.5), color)?;
    let ink = if is_dark(color) { WHITE } else { INK };
    let style = Style::new((cell * 0.3).clamp(10.5, 15.0)).color(ink).centred();
    let middle = (x + cell / 2.0, y + cell / 2.0);
    canvas.text(&grouped(value, 2), middle, style)
}

fn draw_scale(canvas: &Canvas<'_>, x: f64, top: f64, height: f64) -> Result<(), ReportError> {
    const STEPS: u32 = 128;
    let slice = height / f64::from(STEPS);
    for step in 0..STEPS {
        let value = 1.0 - 2.0 * (f64::from(step) + 0.5) / f64::from(STEPS);
        let y = top + slice * f64::from(step);
        canvas.rectangle((x, y), (x + 14.0, y + slice + 0.25), color_of(value))?;
    }
    let style = Style::new(12.5).color(MUTED);
    for (value, share) in [(1.0, 0.0), (0.5, 0.25), (0.0, 0.5), (-0.5, 0.75), (-1.0, 1.0)] {
        let y = top + (height * share).clamp(6.0, height - 6.0);
        canvas.text(&grouped(value, 1), (x + 21.0, y), style)?;
    }
    Ok(())
}

/// White at zero, towards one end's colour with the value's magnitude.
pub(super) fn color_of(value: f64) -> RGBColor {
    let end = if value < 0.0 { OPPOSITE } else { ALIKE };
    let share = value.abs().min(1.0);
    let mix = |white: u8, end: u8| (f64::from(white) + share * (f64::from(end) - f64::from(white))).round() as u8;
    RGBColor(mix(WHITE.0, end.0), mix(WHITE.1, end.1), mix(WHITE.2, end.2))
}

/// Whether white text reads better than ink on a colour (relative luminance of WCAG 2).
pub(super) fn is_dark(RGBColor(red, green, blue): RGBColor) -> bool {
    let linear = |channel: u8| {
        let share = f64::from(channel) / 255.0;
        if share <= 0.040_45 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
    };
    let luminance = 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    // Where the contrast of white and of ink with the colour is about equal.
    luminance < 0.21
}
