//! Products a block at a time.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{BLOCK, Format, Line, Packed, Units, int8, round, round_line, zero_lines};
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::cpu::filled;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers of half a line.
pub(super) const HALF: usize = BLOCK / 2;
/// Rows that a thread rounds at a time.
const MIN_ROWS: usize = 32;

/// Rounded rows, each padded with zeros to whole lines, and rows of zeros up to whole blocks.
pub(crate) struct Rounded {
    pub(super) lines: Vec<Line>,
    pub(super) rows: usize,
    pub(super) steps: usize,
    /// Of eight bits: what a whole number of a row stands for.
    pub(super) scales: Vec<f32>,
    /// Of eight bits: room for a row.
    turned: Vec<f32>,
}

impl Rounded {
    /// Rows of zeros, `width` numbers each.
    pub(crate) fn zeros(format: Format, rows: usize, width: usize) -> Self {
        let (steps, places) = (width.div_ceil(format.step()), rows.next_multiple_of(BLOCK));
        let (scales, turned) = match format {
            Format::Bf16 => (0, 0),
            Format::Int8 => (places, steps * int8::STEP),
        };
        let lines = zero_lines(places * steps);
        Self { lines, rows, steps, scales: vec![0.0; scales], turned: vec![0.0; turned] }
    }

    /// Rows of `width` numbers.
    pub(crate) fn of(format: Format, x: &[f32], width: usize) -> Self {
        let (rows, steps) = (x.len() / width, width.div_ceil(format.step()));
        if format == Format::Int8 {
            let mut rounded = Self::zeros(format, rows, width);
            let places = rounded.lines.par_chunks_mut(steps).zip(&mut rounded.scales);
            let room = || vec![0f32; steps * int8::STEP];
            places.zip(x.par_chunks_exact(width)).with_min_len(MIN_ROWS).for_each_init(room, |room, (place, x)| {
                *place.1 = int8::round_row(x, room, place.0);
            });
            return rounded;
        }
        let fill = |lines: &mut [MaybeUninit<Line>]| {
            let rows = lines.par_chunks_mut(steps).zip(x.par_chunks_exact(width));
            rows.with_min_len(MIN_ROWS).for_each(|(lines, x)| round_into(x, lines));
        };
        // SAFETY: the lines of each row are written.
        unsafe { Self::filled(rows, steps, fill) }
    }

    /// Rows of `width` numbers, which `write` writes, as bf16.
    pub(crate) fn written(rows: usize, width: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let steps = width.div_ceil(BLOCK);
        let run = |numbers: &mut Vec<f32>, (row, lines): (usize, &mut [MaybeUninit<Line>])| {
            write(row, numbers);
            round_into(numbers, lines);
        };
        let fill = |lines: &mut [MaybeUninit<Line>]| {
            let rows = lines.par_chunks_mut(steps).enumerate().with_min_len(MIN_ROWS);
            rows.for_each_init(|| vec![0f32; width], run);
        };
        // SAFETY: the lines of each row are written.
        unsafe { Self::filled(rows, steps, fill) }
    }

    /// Two of them, which `write` writes side by side.
    pub(crate) fn written_pair(rows: usize, width: usize, write: impl Fn(usize, [&mut [f32]; 2]) + Sync) -> [Self; 2] {
        type Lines<'a> = &'a mut [MaybeUninit<Line>];
        let steps = width.div_ceil(BLOCK);
        let run = |numbers: &mut Vec<f32>, (row, (lines, others)): (usize, (Lines<'_>, Lines<'_>))| {
            let (first, second) = numbers.split_at_mut(width);
            write(row, [&mut *first, &mut *second]);
            round_into(first, lines);
            round_into(second, others);
        };
        let mut others = None;
        let fill = |lines: Lines<'_>| {
            let fill = |others: Lines<'_>| {
                let rows = lines.par_chunks_mut(steps).zip(others.par_chunks_mut(steps)).enumerate();
                rows.with_min_len(MIN_ROWS).for_each_init(|| vec![0f32; 2 * width], run);
            };
            // SAFETY: the lines of each row are written.
            others = Some(unsafe { Self::filled(rows, steps, fill) });
        };
        // SAFETY: as above.
        let first = unsafe { Self::filled(rows, steps, fill) };
        [first, others.unwrap_or_else(|| unreachable!("`fill` was called"))]
    }

    /// # Safety
    /// `fill` writes all that it is given: the lines of the rows.
    unsafe fn filled(rows: usize, steps: usize, fill: impl FnOnce(&mut [MaybeUninit<Line>])) -> Self {
        let fill = |lines: &mut [MaybeUninit<Line>]| {
            let (of_rows, rest) = lines.split_at_mut(rows * steps);
            fill(of_rows);
            rest.iter_mut().for_each(|line| {
                line.write(Line([0; BLOCK]));
            });
        };
        // SAFETY: as the caller says, and the rest are written above.
        let lines = unsafe { filled(rows.next_multiple_of(BLOCK) * steps, fill) };
        Self { lines, rows, steps, scales: Vec::new(), turned: Vec::new() }
    }

    /// Whether rows of so many numbers take as many lines.
    pub(crate) fn has_rows_of(&self, width: usize) -> bool {
        self.steps == width.div_ceil(BLOCK)
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn set_row(&mut self, row: usize, x: &[f32]) {
        let lines = &mut self.lines[row * self.steps..(row + 1) * self.steps];
        match self.scales.get_mut(row) {
            Some(scale) => *scale = int8::round_row(x, &mut self.turned, lines),
            None => lines.iter_mut().zip(round_row(x)).for_each(|(to, line)| *to = line),
        }
    }

    /// Takes another shape, of bf16; the numbers are any until they are set.
    pub(crate) fn reshape(&mut self, rows: usize, width: usize) {
        (self.rows, self.steps) = (rows, width.div_ceil(BLOCK));
        self.lines.resize(rows.next_multiple_of(BLOCK) * self.steps, Line([0; BLOCK]));
    }

    /// Numbers `32 * at..` of a row become zero, to its end.
    pub(crate) fn clear_lines(&mut self, row: usize, at: usize) {
        self.lines[row * self.steps + at..(row + 1) * self.steps].fill(Line([0; BLOCK]));
    }

    /// Numbers `32 * at..` of a row.
    pub(crate) fn set_line(&mut self, row: usize, at: usize, x: &[f32; BLOCK]) {
        self.lines[row * self.steps + at] = round_line(x);
    }
}

fn round_into(x: &[f32], lines: &mut [MaybeUninit<Line>]) {
    lines.iter_mut().zip(round_row(x)).for_each(|(to, line)| {
        to.write(line);
    });
}

fn round_row(x: &[f32]) -> impl Iterator<Item = Line> {
    x.chunks(BLOCK).map(round_part)
}

/// The first thirty-two numbers, or as many as there are and zeros.
#[inline(always)]
fn round_part(x: &[f32]) -> Line {
    match x.first_chunk() {
        Some(whole) => round_line(whole),
        None => Line(std::array::from_fn(|i| x.get(i).map_or(0, |x| round(*x)))),
    }
}

/// Rows to be rounded that come a line of 32 numbers at a time: those of eight bits wait until they are whole.
pub(crate) enum ByLine {
    Rounded(Rounded),
    Whole { rows: Vec<f32>, width: usize },
}

impl ByLine {
    pub(crate) fn new(format: Format, rows: usize, width: usize) -> Self {
        match format {
            Format::Bf16 => Self::Rounded(Rounded::zeros(format, rows, width)),
            Format::Int8 => Self::Whole { rows: vec![0.0; rows * width], width },
        }
    }

    /// Numbers `32 * at..` of a row.
    #[inline]
    pub(crate) fn set_line(&mut self, row: usize, at: usize, x: &[f32; BLOCK]) {
        match self {
            Self::Rounded(rounded) => rounded.set_line(row, at, x),
            Self::Whole { rows, width } => {
                let to = &mut rows[row * *width + at * BLOCK..(row + 1) * *width];
                match to.first_chunk_mut() {
                    Some(whole) => *whole = *x,
                    None => to.copy_from_slice(&x[..to.len()]),
                }
            }
        }
    }

    pub(crate) fn finish(self) -> Rounded {
        match self {
            Self::Rounded(rounded) => rounded,
            Self::Whole { rows, width } => Rounded::of(Format::Int8, &rows, width),
        }
    }
}

/// 32 x 32 outputs, row by row; a half row is a cache line.
#[repr(C, align(64))]
pub(crate) struct Outputs(pub(crate) [[f32; BLOCK]; BLOCK]);

impl Outputs {
    pub(crate) fn new() -> Self {
        Self([[0.0; BLOCK]; BLOCK])
    }
}

/// The units of this thread, for products a block at a time, so that more can be done to outputs while they are in the
/// nearest cache. Each block has the bits that [`Packed::product`] gives.
pub(crate) struct Blocks {
    units: Units,
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
}

impl Blocks {
    /// None where the machine has no units for the format.
    pub(crate) fn new(format: Format) -> Option<Self> {
        let units = Units::best(format);
        (units != Units::Portable).then(|| Self {
            units,
            #[cfg(target_arch = "x86_64")]
            _tiles: (units == Units::Amx).then(amx::Tiles::new),
        })
    }

    /// Rows `first..first + 32` of `x` by a panel of 32 columns of `b`; columns beyond the matrix are zero, rows that `x` does
    /// not have may be anything. The outputs are there after [`Packed::finish`].
    #[inline]
    pub(crate) fn start(&self, x: &Rounded, first: usize, b: &Packed, panel: usize, out: &mut Outputs) {
        assert_eq!(x.steps * BLOCK, b.lines_of_panel(), "product: rows of another width");
        let num_blocks = x.lines.len() / (BLOCK * x.steps);
        // SAFETY: 32 rows of 32 outputs are there.
        unsafe { self.run(x, (first, num_blocks), (b, panel), (out.0.as_mut_ptr().cast(), BLOCK)) };
    }

    /// The first 32 rows of `x` by the first numbers of a panel, which was packed for them; rows of the outputs are `stride`
    /// numbers apart.
    #[inline]
    pub(crate) fn product_of_few(&self, x: &Rounded, (b, panel): (&Packed, usize), (out, stride): (&mut [f32], usize)) {
        assert!(stride >= BLOCK && out.len() >= (BLOCK - 1) * stride + BLOCK, "product: no room for the outputs");
        assert!(b.columns.is_none(), "product: few rows are of bf16");
        // As if many more rows were to come: what was just packed need not be fetched.
        // SAFETY: the assertion above.
        unsafe { self.run(x, (0, usize::MAX), (b, panel), (out.as_mut_ptr(), stride)) };
    }

    /// # Safety
    /// There are 32 rows of 32 outputs, so many numbers apart.
    unsafe fn run(
        &self,
        x: &Rounded,
        (first, num_blocks): (usize, usize),
        (packed, panel): (&Packed, usize),
        (out, stride): (*mut f32, usize),
    ) {
        let (steps, lines_of_panel) = (x.steps, packed.lines_of_panel());
        assert!(0 < steps && steps * BLOCK <= lines_of_panel, "product: rows are too wide");
        let a = (x.lines[first * steps..(first + BLOCK) * steps].as_ptr().cast::<u16>(), steps * 64);
        let b = packed.lines[panel * lines_of_panel..(panel + 1) * lines_of_panel].as_ptr().cast::<u16>();
        match self.units {
            #[cfg(target_arch = "x86_64")]
            Units::Amx => {
                let next = b.wrapping_add(lines_of_panel * BLOCK);
                let ahead = amx::Ahead::new(next, (first / BLOCK, num_blocks), steps);
                // SAFETY: the units were found to be there and the tiles are set up on this thread; the slices above
                // have the rows and lines that are read, and for the outputs the caller answers.
                unsafe {
                    match num_blocks {
                        1 => amx::block_alone(packed.format(), a, b, steps, (out, stride, false)),
                        _ => amx::block(packed.format(), a, (b, ahead), steps, (out, stride, false)),
                    }
                };
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Units::Avx512 => unsafe {
                let rows = BLOCK.min(x.rows - first);
                avx512::block_of(packed.panel_at(b, panel, (0, steps)), a, (out, stride), (rows, rows), false);
            },
            Units::Portable => unreachable!("`new` has none of these ({a:?}, {b:?}, {out:?}, {stride}, {num_blocks})"),
        }
    }
}

impl Packed {
    /// What is left to do to a block that [`Blocks::start`] was asked for.
    #[inline]
    pub(crate) fn finish(&self, x: &Rounded, (first, panel): (usize, usize), out: &mut Outputs) {
        if self.columns.is_some() {
            self.scale_sums(&x.scales[first..x.rows.min(first + BLOCK)], panel, &mut out.0);
        }
    }

    /// A matrix without numbers, to be filled.
    pub(crate) fn empty() -> Self {
        Self { lines: Vec::new(), k: 0, n: 0, columns: None }
    }

    /// Becomes `[k, n]` numbers whose column j is `column(j)`.
    pub(crate) fn fill_columns<'a>(&mut self, (k, n): (usize, usize), column: impl Fn(usize) -> &'a [f32]) {
        self.resize(k, n);
        let lines_of_panel = self.lines_of_panel();
        // Sixteen columns are half of a panel; of them, thirty-two rows at a time.
        for (first, step) in
            (0..n).step_by(HALF).flat_map(|first| (0..k.div_ceil(BLOCK)).map(move |step| (first, step)))
        {
            let pairs_of = |j: usize| round_part(&column(j)[step * BLOCK..]).pairs();
            let columns: [[u32; HALF]; HALF] =
                std::array::from_fn(|j| if first + j < n { pairs_of(first + j) } else { [0; HALF] });
            let lines = &mut self.lines[first / BLOCK * lines_of_panel + step * BLOCK..][..BLOCK];
            for (pair, lines) in lines.chunks_mut(2).enumerate() {
                lines[first % BLOCK / HALF] = Line::of_pairs(columns.map(|column| column[pair]));
            }
        }
    }

    /// Becomes `[k, n]` numbers whose row i is `row(i)`.
    pub(crate) fn fill_rows<'a>(&mut self, (k, n): (usize, usize), row: impl Fn(usize) -> &'a [f32]) {
        self.resize(k, n);
        let lines_of_panel = self.lines_of_panel();
        for first in (0..k).step_by(2) {
            let (upper, lower) = (row(first), if first + 1 < k { row(first + 1) } else { &[] });
            for (at, upper) in upper.chunks(HALF).enumerate() {
                let lower = lower.get(at * HALF..).unwrap_or_default();
                let line = match (<&[f32; HALF]>::try_from(upper), lower.first_chunk()) {
                    (Ok(upper), Some(lower)) => round_pairs(upper, lower),
                    _ => {
                        let number = |from: &[f32], j: usize| from.get(j).copied().unwrap_or_default();
                        round_pairs(
                            &std::array::from_fn(|j| number(upper, j)),
                            &std::array::from_fn(|j| number(lower, j)),
                        )
                    }
                };
                self.lines[at / 2 * lines_of_panel + first + at % 2] = line;
            }
        }
    }

    fn resize(&mut self, k: usize, n: usize) {
        (self.k, self.n) = (k, n);
        self.lines.clear();
        self.lines.resize(n.div_ceil(BLOCK) * self.lines_of_panel(), Line([0; BLOCK]));
    }
}

/// Two rows of a matrix, the summands of each column side by side.
#[inline(always)]
fn round_pairs(upper: &[f32; HALF], lower: &[f32; HALF]) -> Line {
    let mut pairs = [0u32; HALF];
    for ((pair, upper), lower) in pairs.iter_mut().zip(upper).zip(lower) {
        *pair = u32::from(round(*upper)) | u32::from(round(*lower)) << 16;
    }
    Line::of_pairs(pairs)
}

impl Line {
    #[inline(always)]
    fn pairs(self) -> [u32; HALF] {
        std::array::from_fn(|i| u32::from(self.0[2 * i]) | u32::from(self.0[2 * i + 1]) << 16)
    }

    #[inline(always)]
    pub(super) fn of_pairs(pairs: [u32; HALF]) -> Self {
        Self(std::array::from_fn(|i| (pairs[i / 2] >> (i % 2 * 16)) as u16))
    }
}
