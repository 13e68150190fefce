//! A white canvas measured in points, painted at four times its resolution and halved once for
//! smooth edges: the PNG has two pixels a point.

use std::sync::OnceLock;

use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, TextStyle, WHITE, register_font,
};

use super::ReportError;

/// Pixels of the PNG per point.
pub(super) const PIXELS_PER_POINT: u32 = 2;
/// Painted pixels per pixel of the PNG, in each direction.
const OVERSAMPLING: u32 = 2;
const PAINTED_PER_POINT: f64 = (PIXELS_PER_POINT * OVERSAMPLING) as f64;

/// Text, axes and grid.
pub(super) const INK: RGBColor = RGBColor(33, 37, 41);
/// Secondary text.
pub(super) const MUTED: RGBColor = RGBColor(95, 102, 110);
/// Grid lines.
pub(super) const GRID: RGBColor = RGBColor(226, 229, 233);
/// Colours told apart by colour-blind readers too: Okabe and Ito, without yellow and black.
pub(super) const SERIES: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(140, 145, 150),
];

const FAMILY: &str = "lapidary-report";
static REGULAR: &[u8] = include_bytes!("../../assets/Roboto-Regular.subset.ttf");
static BOLD: &[u8] = include_bytes!("../../assets/Roboto-Bold.subset.ttf");

/// A place in points from the upper left corner.
pub(super) type Point = (f64, f64);

/// How a text is set.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) color: RGBColor,
    pub(super) horizontal: HPos,
    pub(super) vertical: VPos,
}

impl Style {
    /// Regular ink, its left end and vertical middle at the given place.
    pub(super) fn new(size: f64) -> Self {
        Self { size, bold: false, color: INK, horizontal: HPos::Left, vertical: VPos::Center }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) fn color(self, color: RGBColor) -> Self {
        Self { color, ..self }
    }

    pub(super) fn centred(self) -> Self {
        Self { horizontal: HPos::Center, ..self }
    }

    pub(super) fn right(self) -> Self {
        Self { horizontal: HPos::Right, ..self }
    }

    fn font(&self) -> FontDesc<'static> {
        let style = if self.bold { FontStyle::Bold } else { FontStyle::Normal };
        let size = self.size * PAINTED_PER_POINT;
        FontDesc::new(FontFamily::Name(FAMILY), size, style)
    }

    /// Width of a text in points.
    pub(super) fn width_of(&self, text: &str) -> Result<f64, ReportError> {
        register_fonts()?;
        let (width, _) = self.font().box_size(text).map_err(drawing_error)?;
        Ok(f64::from(width) / PAINTED_PER_POINT)
    }

    /// The text, or as much of its beginning as fits into `width` with an ellipsis.
    pub(super) fn elide(&self, text: &str, width: f64) -> Result<String, ReportError> {
        if self.width_of(text)? <= width {
            return Ok(text.to_owned());
        }
        let ends: Vec<usize> = text.char_indices().map(|(index, _)| index).collect();
        let (mut fits, mut too_long) = (0, ends.len());
        while too_long - fits > 1 {
            let middle = usize::midpoint(fits, too_long);
            let candidate = format!("{}…", text[..ends[middle]].trim_end());
            if self.width_of(&candidate)? <= width {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        let end = ends.get(fits).copied().unwrap_or(0);
        Ok(format!("{}…", text[..end].trim_end()))
    }

    /// At most `max_lines` lines of whole words no wider than `width`, the last one elided. A word may break after a
    /// hyphen or a slash.
    pub(super) fn wrap(&self, text: &str, width: f64, max_lines: usize) -> Result<Vec<String>, ReportError> {
        // Beyond this nothing is shown at any width used here, and measuring stays cheap.
        const MAX_CHARS: usize = 600;
        let text: String = text.chars().take(MAX_CHARS).collect();
        let mut words = text
            .split_whitespace()
            .flat_map(|word| word.split_inclusive(['-', '/']).enumerate().map(|(at, part)| (at == 0, part)))
            .peekable();
        let join = |line: &str, (starts_word, part): (bool, &str)| {
            let blank = if starts_word && !line.is_empty() { " " } else { "" };
            format!("{line}{blank}{part}")
        };
        let mut lines = Vec::new();
        while words.peek().is_some() {
            if lines.len() + 1 == max_lines {
                let rest = words.by_ref().fold(String::new(), |line, word| join(&line, word));
                lines.push(self.elide(&rest, width)?);
                break;
            }
            let mut line = String::new();
            while let Some(word) = words.peek() {
                let longer = join(&line, *word);
                if !line.is_empty() && self.width_of(&longer)? > width {
                    break;
                }
                line = longer;
                words.next();
            }
            lines.push(self.elide(&line, width)?);
        }
        Ok(lines)
    }
}

/// The painting surface handed to the drawing functions.
pub(super) struct Canvas<'a> {
    area: DrawingArea<BitMapBackend<'a>, Shift>,
}

impl Canvas<'_> {
    pub(super) fn rectangle(&self, from: Point, to: Point, color: RGBColor) -> Result<(), ReportError> {
        // The backend paints the last row and column too.
        let (x, y) = painted(to);
        let corners = [painted(from), (x - 1, y - 1)];
        self.area.draw(&Rectangle::new(corners, color.filled())).map_err(drawing_error)
    }

    pub(super) fn line(&self, points: &[Point], width: f64, color: &impl Color) -> Result<(), ReportError> {
        let points: Vec<(i32, i32)> = points.iter().map(|&point| painted(point)).collect();
        let width = (width * PAINTED_PER_POINT).round().max(1.0) as u32;
        self.area.draw(&PathElement::new(points, color.stroke_width(width))).map_err(drawing_error)
    }

    pub(super) fn dashed(&self, from: Point, to_x: f64, width: f64, color: RGBColor) -> Result<(), ReportError> {
        const DASH: f64 = 6.0;
        const GAP: f64 = 4.0;
        let (mut x, y) = from;
        while x < to_x {
            self.line(&[(x, y), ((x + DASH).min(to_x), y)], width, &color)?;
            x += DASH + GAP;
        }
        Ok(())
    }

    pub(super) fn disc(&self, centre: Point, radius: f64, color: RGBColor) -> Result<(), ReportError> {
        let radius = (radius * PAINTED_PER_POINT).round() as i32;
        self.area.draw(&Circle::new(painted(centre), radius, color.filled())).map_err(drawing_error)
    }

    pub(super) fn text(&self, text: &str, at: Point, style: Style) -> Result<(), ReportError> {
        let font: TextStyle<'_> = style.font().color(&style.color);
        // The drawing library centres the line with its descent; the eye centres the letters.
        let at = (at.0, at.1 + 0.1 * style.size);
        let font = font.pos(Pos::new(style.horizontal, style.vertical));
        self.area.draw(&Text::new(text, painted(at), font)).map_err(drawing_error)
    }

    /// A text that is read from below: it starts at the given place, which is the middle of its line, and goes up.
    pub(super) fn rising_text(&self, text: &str, at: Point, style: Style) -> Result<(), ReportError> {
        let font: TextStyle<'_> = style.font().transform(FontTransform::Rotate270).color(&style.color);
        let at = (at.0 + 0.1 * style.size, at.1);
        let font = font.pos(Pos::new(HPos::Left, VPos::Center));
        self.area.draw(&Text::new(text, painted(at), font)).map_err(drawing_error)
    }
}

/// Paints a canvas of `width` x `height` points and returns it as PNG.
pub(super) fn paint(
    width: u32,
    height: u32,
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), ReportError>,
) -> Result<Vec<u8>, ReportError> {
    register_fonts()?;
    let factor = PIXELS_PER_POINT * OVERSAMPLING;
    let size = (width * factor, height * factor);
    let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        area.fill(&WHITE).map_err(drawing_error)?;
        let canvas = Canvas { area };
        draw(&canvas)?;
        canvas.area.present().map_err(drawing_error)?;
    }
    encode(&halve(&pixels, size.0 as usize), size.0 / OVERSAMPLING, size.1 / OVERSAMPLING)
}

fn painted((x, y): Point) -> (i32, i32) {
    ((x * PAINTED_PER_POINT).round() as i32, (y * PAINTED_PER_POINT).round() as i32)
}

/// Averages each square of two by two pixels; `width` counts pixels and is even.
fn halve(pixels: &[u8], width: usize) -> Vec<u8> {
    let row_bytes = width * 3;
    let mut halved = Vec::with_capacity(pixels.len() / 4);
    for rows in pixels.chunks_exact(2 * row_bytes) {
        let (upper, lower) = rows.split_at(row_bytes);
        for (upper, lower) in upper.chunks_exact(6).zip(lower.chunks_exact(6)) {
            for channel in 0..3 {
                let sum: u16 =
                    [upper, lower].iter().map(|pair| u16::from(pair[channel]) + u16::from(pair[channel + 3])).sum();
                halved.push(((sum + 2) / 4) as u8);
            }
        }
    }
    halved
}

fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, ReportError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// The drawing library looks fonts up in a table of the process; ours enter it once.
fn register_fonts() -> Result<(), ReportError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        register_font(FAMILY, FontStyle::Normal, REGULAR).is_ok()
            && register_font(FAMILY, FontStyle::Bold, BOLD).is_ok()
    });
    if *registered { Ok(()) } else { Err(ReportError::Drawing("the embedded font is damaged".into())) }
}

fn drawing_error(error: impl std::fmt::Display) -> ReportError {
    ReportError::Drawing(error.to_string())
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn elided_text_fits_and_keeps_its_beginning() {
        let style = Style::new(12.0);
        let text = "a long sentence that cannot possibly fit ünïcödé";
        for width in [10.0, 40.0, 90.0, 200.0] {
            let elided = style.elide(text, width).unwrap();
            assert!(style.width_of(&elided).unwrap() <= width, "{elided}");
            assert!(text.starts_with(elided.trim_end_matches('…')), "{elided}");
        }
        assert_eq!(style.elide("short", 200.0).unwrap(), "short");
    }

    #[test]
    fn wrapped_lines_fit() {
        let style = Style::new(12.0);
        let text = "several words that take more than one line and one extraordinarilylongwordwithoutablank";
        let lines = style.wrap(text, 80.0, 3).unwrap();
        assert_eq!(lines.len(), 3);
        for line in &lines {
            assert!(style.width_of(line).unwrap() <= 80.0, "{line}");
        }
        assert!(lines[2].ends_with('…'));
        assert_eq!(style.wrap("two words", 200.0, 2).unwrap(), ["two words"]);
        assert!(style.wrap("  ", 80.0, 2).unwrap().is_empty());
    }

    #[test]
    fn halving_averages_squares() {
        let pixels = [10, 0, 0, 20, 0, 0, 30, 0, 0, 40, 0, 255];
        assert_eq!(halve(&pixels, 2), [25, 0, 64]);
    }
}
