//! The products on any machine: in f32, of numbers that are rounded.

use super::{BLOCK, Job};
use crate::cpu::{self, View, rows_of};
use crate::vector::LANES;

impl Job<'_> {
    /// # Safety
    /// As of [`Self::run`].
    pub(super) unsafe fn portable(&self) {
        let rows = self.rows.len();
        let mut y = vec![0f32; rows * BLOCK];
        let (mut x, mut b) = (Vec::new(), Vec::new());
        for panel in self.panels.clone() {
            for (i, term) in self.terms.iter().enumerate() {
                let format = term.matrix.format();
                let k = term.lines.len() * format.step();
                if self.terms.len() > 1 || x.is_empty() {
                    x.clear();
                    for row in self.rows.clone() {
                        let lines = &term.x.lines[row * term.x.steps..][term.lines.clone()];
                        x.extend(lines.iter().flat_map(|line| line.numbers(format)));
                    }
                }
                b.resize(k * BLOCK, 0.0);
                // Summands of a column that stand side by side in a line of sixteen columns.
                let together = format.step() / LANES;
                let lines = &term.matrix.lines[panel * term.matrix.lines_of_panel() + term.from..];
                for (i, row) in b.chunks_mut(BLOCK * together).enumerate() {
                    for (half, line) in lines[2 * i..2 * i + 2].iter().enumerate() {
                        for (at, number) in line.numbers(format).enumerate() {
                            row[at % together * BLOCK + half * LANES + at / together] = number;
                        }
                    }
                }
                let (x, b): (View<'_>, View<'_>) = (rows_of(&x, k), rows_of(&b, BLOCK));
                cpu::gemm(&mut y, BLOCK, (rows, BLOCK, k), x, b, i > 0);
                if let Some(columns) = &term.matrix.columns {
                    for (y, row) in y.chunks_mut(BLOCK).zip(&term.x.scales[self.rows.clone()]) {
                        y.iter_mut().zip(&columns.scales[panel * BLOCK..]).for_each(|(y, column)| *y *= row * column);
                    }
                }
            }
            let first_column = panel * BLOCK - self.columns.start;
            let columns = BLOCK.min(self.columns.len() - first_column);
            for (row, y) in y.chunks(BLOCK).enumerate() {
                for (column, y) in y.iter().enumerate().take(columns) {
                    // SAFETY: the output has these rows and columns; with `keep` they hold numbers.
                    unsafe {
                        let c = self.output.row(row).first.add(first_column + column);
                        *c = if self.keep { *c + y } else { *y };
                    }
                }
            }
        }
    }
}
