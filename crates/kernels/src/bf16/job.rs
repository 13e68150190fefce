//! A task of a product: its blocks of outputs, in an order that keeps in the caches what is met again.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{BLOCK, FEW_ROWS, Line, Packed, Term, Units, bytes_met};
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::cpu::Output;
use std::ops::Range;

/// Bytes of a group: it stays in the second-level cache while the rows pass by.
const GROUP_BYTES: usize = 1 << 20;

/// Some rows times some panels.
pub(super) struct Job<'a> {
    pub(super) terms: &'a [Term<'a>],
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) panels: Range<usize>,
    /// Where the first of the rows goes.
    pub(super) output: Output,
    pub(super) keep: bool,
}

/// What a block of 32 x 32 outputs is a product of: bytes between the rows of `a`, the lines of a row, a panel of the matrix,
/// and which of so many blocks of rows it is.
struct Operands<'a> {
    a: (*const u16, usize),
    b: *const u16,
    /// The panel behind, if there is one.
    next: *const u16,
    steps: usize,
    matrix: &'a Packed,
    /// The summand that the first line is of.
    from: usize,
    panel: usize,
    place: (usize, usize),
    /// Rows that there are, and that are wanted.
    rows: (usize, usize),
}

/// Where the operands of a term's blocks lie.
struct Sides<'a> {
    a: *const u16,
    /// Bytes.
    row: usize,
    b: *const u16,
    /// Bytes.
    panel: usize,
    steps: usize,
    matrix: &'a Packed,
    from: usize,
    num_rows: usize,
}

impl<'a> Sides<'a> {
    fn new(term: &'a Term<'_>) -> Self {
        Self {
            a: term.x.lines[term.lines.start..].as_ptr().cast(),
            row: term.x.steps * size_of::<Line>(),
            b: term.matrix.lines[term.from..].as_ptr().cast(),
            panel: term.matrix.lines_of_panel() * size_of::<Line>(),
            steps: term.lines.len(),
            matrix: term.matrix,
            from: term.from,
            num_rows: term.x.rows,
        }
    }

    /// Of the rows from `first` on. Outside of the rows and the panels, the operands lie nowhere.
    #[inline(always)]
    fn at(&self, panel: usize, (first, rows): (usize, usize), place: (usize, usize)) -> Operands<'a> {
        let a = self.a.wrapping_byte_add(first * self.row);
        let b = self.b.wrapping_byte_add(panel * self.panel);
        let next = b.wrapping_byte_add(self.panel);
        let rows = ((self.num_rows - first).min(rows), rows);
        let &Self { steps, matrix, from, .. } = self;
        Operands { a: (a, self.row), b, next, steps, matrix, from, panel, place, rows }
    }
}

impl Job<'_> {
    /// # Safety
    /// The output has the job's rows and columns, which nobody else writes; with `keep` they hold numbers. Each term's rows have
    /// the job's rows up to whole blocks and the term's lines; its matrix has the panels, each with as many summands from
    /// `from` on.
    pub(super) unsafe fn run(&self, units: Units) {
        match units {
            #[cfg(target_arch = "x86_64")]
            Units::Amx => {
                let _tiles = amx::Tiles::new();
                // SAFETY: the units were found to be there, the tiles are set up, and the caller answers for the rest: that the
                // operands of its rows and panels are there.
                unsafe {
                    // Two loops: what few rows ask for ahead would have many take 3 % longer.
                    if self.rows.len() <= BLOCK {
                        self.blocks(|Operands { a, b, steps, matrix, .. }, (c, stride), keep| {
                            amx::block_alone(matrix.format(), a, b, steps, (c, stride, keep));
                        });
                    } else {
                        self.blocks(|Operands { a, b, next, steps, matrix, place, .. }, (c, stride), keep| {
                            let ahead = amx::Ahead::new(next, place, steps);
                            amx::block(matrix.format(), a, (b, ahead), steps, (c, stride, keep));
                        });
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the units were found to be there, and the caller answers for the rest.
            Units::Avx512 => unsafe {
                self.blocks(|of, c, keep| {
                    let panel = of.matrix.panel_at(of.b, of.panel, (of.from, of.steps));
                    avx512::block_of(panel, of.a, c, of.rows, keep);
                });
            },
            // SAFETY: as the caller says.
            Units::Portable => unsafe { self.portable() },
        }
    }

    /// Runs `block(operands, (c, c_stride), keep)` on blocks of 32 x 32 outputs: numbers of `c` between rows.
    ///
    /// # Safety
    /// As of [`Self::run`], and `block` reads up to 32 rows of `steps` lines at `a`, 32 times `steps` lines at `b`, and writes
    /// up to 32 rows of 32 numbers at `c`, those that are wanted at least.
    unsafe fn blocks(&self, block: impl Fn(Operands<'_>, (*mut f32, usize), bool)) {
        let scaled = self.terms.first().filter(|term| term.matrix.columns.is_some());
        // What does not change from block to block is found once: the loop must be short beside a block of few steps.
        let sides: Vec<Sides<'_>> = self.terms.iter().map(Sides::new).collect();
        let num_blocks = self.rows.len().div_ceil(BLOCK);
        let run = |panel: usize, first: usize, c: (*mut f32, usize), keep: bool| {
            let place = ((first - self.rows.start) / BLOCK, num_blocks);
            let rows = (first, BLOCK.min(self.rows.end - first));
            for (i, sides) in sides.iter().enumerate() {
                block(sides.at(panel, rows, place), c, keep || i > 0);
            }
        };
        let mut whole = [[0f32; BLOCK]; BLOCK];
        for (panel, first) in places(self.rows.clone(), self.panels.clone(), bytes_met(self.terms)) {
            let first_column = panel * BLOCK - self.columns.start;
            let columns = BLOCK.min(self.columns.len() - first_column);
            let rows = BLOCK.min(self.rows.end - first);
            // SAFETY: the output has these rows and this column.
            let c = unsafe { self.output.row(first - self.rows.start).first.add(first_column) };
            if rows == BLOCK && columns == BLOCK && scaled.is_none() {
                run(panel, first, (c, self.output.stride), self.keep);
                continue;
            }
            run(panel, first, (whole.as_mut_ptr().cast(), BLOCK), false);
            if let Some(Term { x, matrix, .. }) = scaled {
                matrix.scale_sums(&x.scales[first..first + rows], panel, &mut whole);
            }
            for (row, values) in whole.iter().enumerate().take(rows) {
                // SAFETY: the output has these rows and columns, of which nobody else has any; with `keep` they hold numbers.
                unsafe {
                    let c = c.add(row * self.output.stride);
                    if self.keep {
                        values[..columns].iter().enumerate().for_each(|(column, value)| *c.add(column) += value);
                    } else {
                        c.copy_from_nonoverlapping(values.as_ptr(), columns);
                    }
                }
            }
        }
    }
}

/// The panel and the first row of each block. Few rows meet panels of so many bytes in turn. Of many rows, 32 after the other
/// meet a group of panels; their outputs then lie side by side.
pub(super) fn places(
    rows: Range<usize>,
    panels: Range<usize>,
    bytes_of_panel: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let num_groups = match rows.len() {
        0..=FEW_ROWS => panels.len(),
        _ => (panels.len() * bytes_of_panel).div_ceil(GROUP_BYTES),
    };
    let per_group = panels.len().div_ceil(num_groups.max(1)).max(1);
    panels.clone().step_by(per_group).flat_map(move |group| {
        let panels = group..(group + per_group).min(panels.end);
        rows.clone().step_by(BLOCK).flat_map(move |first| panels.clone().map(move |panel| (panel, first)))
    })
}
