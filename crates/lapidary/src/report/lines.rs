//! Lines over a few places of an axis: one line for each variant, named where it ends.

use plotters::style::RGBColor;

use super::axis::{Axis, Ticks};
use super::bars::Series;
use super::canvas::{Canvas, GRID, MUTED, Point, SERIES, Style, paint};
use super::{ReportError, check_count, check_finite};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 56.0;
const PLOT_HEIGHT: f64 = 300.0;
const BOTTOM: f64 = 36.0;
const LABEL: f64 = 13.5;
const LABEL_HEIGHT: f64 = 16.0;
const MAX_LABEL: f64 = 200.0;
const MAX_PLACES: usize = 24;
const MAX_REFERENCES: usize = 3;

/// A line of every series over the places, in colour, and of every reference, grey. Places lie at equal distances. The
/// axis covers the values, not zero. Returns a PNG.
///
/// # Errors
/// If there is no place or no series, one has not one value for each place or none at all, a value is not finite, or
/// there are more than can be told apart.
pub fn line_comparison(
    title: &str,
    places: &[String],
    series: &[Series],
    references: &[Series],
) -> Result<Vec<u8>, ReportError> {
    check_count("places", places.len(), MAX_PLACES)?;
    check_count("series", series.len(), SERIES.len())?;
    check_count("references", references.len() + 1, MAX_REFERENCES + 1)?;
    let all = || series.iter().chain(references);
    for one in all() {
        if one.values.len() != places.len() {
            let (expected, found) = (places.len(), one.values.len());
            return Err(ReportError::Size { what: format!("series `{}`", one.name), expected, found });
        }
        check_count("values of a series", one.values.iter().flatten().count(), usize::MAX)?;
    }
    let values = || all().flat_map(|one| &one.values).flatten().copied();
    check_finite("values", values())?;

    let style = Style::new(LABEL);
    let mut gutter: f64 = 0.0;
    for one in all() {
        gutter = gutter.max(style.width_of(&one.name)?);
    }
    let ticks = Ticks::covering(values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max), 6);
    let y = Axis { low: ticks.low(), high: ticks.high(), from: TOP + PLOT_HEIGHT, to: TOP };
    let right = WIDTH - MARGIN - gutter.min(MAX_LABEL) - 12.0;
    let x = Axis { low: -0.5, high: places.len() as f64 - 0.5, from: MARGIN + 40.0, to: right };
    paint(WIDTH as u32, (TOP + PLOT_HEIGHT + BOTTOM) as u32, |canvas| {
        let heading = Style::new(19.0).bold();
        canvas.text(&heading.elide(title, WIDTH - 2.0 * MARGIN)?, (MARGIN, 28.0), heading)?;
        for &value in &ticks.values {
            let height = y.at(value);
            canvas.line(&[(x.from, height), (x.to, height)], 0.75, &GRID)?;
            canvas.text(&ticks.label(value), (x.from - 8.0, height), Style::new(13.0).color(MUTED).right())?;
        }
        for (at, place) in places.iter().enumerate() {
            let room = (x.to - x.from) / places.len() as f64 - 6.0;
            canvas.text(&style.elide(place, room)?, (x.at(at as f64), y.from + 18.0), style.centred())?;
        }
        let grey = references.iter().map(|one| (one, MUTED, 1.2));
        let coloured = series.iter().zip(SERIES).map(|(one, color)| (one, color, 2.4));
        let mut ends = Vec::new();
        for (one, color, width) in grey.chain(coloured) {
            let points = points(one, &x, &y);
            draw_line(canvas, &points, color, width)?;
            ends.extend(points.last().map(|end| (end.1, one.name.as_str(), color)));
        }
        for (height, (name, color)) in apart(ends) {
            canvas.text(&style.elide(name, MAX_LABEL)?, (x.to + 6.0, height), style.color(color))?;
        }
        Ok(())
    })
}

fn points(series: &Series, x: &Axis, y: &Axis) -> Vec<Point> {
    let place = |(at, value): (usize, &Option<f64>)| value.map(|value| (x.at(at as f64), y.at(value)));
    series.values.iter().enumerate().filter_map(place).collect()
}

fn draw_line(canvas: &Canvas<'_>, points: &[Point], color: RGBColor, width: f64) -> Result<(), ReportError> {
    canvas.line(points, width, &color)?;
    points.iter().try_for_each(|point| canvas.disc(*point, width + 1.0, color))
}

/// The labels from above to below, each moved down where it would lie on the one before, and all up again by what the
/// last one overhangs.
fn apart(mut ends: Vec<(f64, &str, RGBColor)>) -> Vec<(f64, (&str, RGBColor))> {
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut placed: Vec<(f64, (&str, RGBColor))> = Vec::with_capacity(ends.len());
    for (wanted, name, color) in ends {
        let least = placed.last().map_or(f64::NEG_INFINITY, |(height, _)| height + LABEL_HEIGHT);
        placed.push((wanted.max(least), (name, color)));
    }
    let mut most = TOP + PLOT_HEIGHT + LABEL_HEIGHT / 2.0;
    for (height, _) in placed.iter_mut().rev() {
        *height = height.min(most);
        most = *height - LABEL_HEIGHT;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_lie_on_each_other() {
        let ends = vec![(100.0, "b", MUTED), (99.0, "a", MUTED), (356.0, "d", MUTED), (350.0, "c", MUTED)];
        let placed = apart(ends);
        let names: Vec<&str> = placed.iter().map(|(_, (name, _))| *name).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        for pair in placed.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= LABEL_HEIGHT - 1e-9, "{placed:?}");
        }
        assert!(placed[3].0 <= TOP + PLOT_HEIGHT + LABEL_HEIGHT / 2.0);
    }

    #[test]
    fn wrong_series_are_refused() {
        let places = ["8", "16"].map(str::to_owned);
        let series = |values: &[Option<f64>]| Series { name: "k = 1".into(), values: values.to_vec() };
        let good = [series(&[Some(1.0), None])];
        assert!(line_comparison("t", &places, &good, &[]).is_ok());
        for bad in
            [vec![], vec![series(&[Some(1.0)])], vec![series(&[None, None])], vec![series(&[Some(f64::NAN), None])]]
        {
            assert!(line_comparison("t", &places, &bad, &[]).is_err());
        }
    }
}
