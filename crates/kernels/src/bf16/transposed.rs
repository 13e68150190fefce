//! Products over the rows of both operands, as gradients of weights are.

use super::blocks::HALF;
use super::{BLOCK, Job, Line, Packed, Rounded, Term, Units};
use crate::cpu::{Output, filled};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that are packed at a time: a part of them stays in a core's second-level cache until it is used.
const ROWS: usize = 256;

/// `a b`, `[m, t] x [t, n]`, of rows of which no more is packed at a time than is used at once. Each output is summed by one
/// thread, in an order that does not depend on their number.
pub(crate) fn transposed_product(units: Units, a: &Rounded, (b, n): (&Rounded, usize)) -> Vec<f32> {
    let t = b.rows;
    assert!(a.steps == t.div_ceil(BLOCK) && b.steps == n.div_ceil(BLOCK) && t > 0, "product: sizes disagree");
    let per_task = b.steps.div_ceil(rayon::current_num_threads());
    // Rows up to whole blocks, which are written as they are.
    let num_rows = a.rows.next_multiple_of(BLOCK);
    // SAFETY: the jobs have all columns of all rows, each its own; the first of each writes every number of them, and the
    // others read what it has written.
    let mut y = unsafe {
        filled(num_rows * n, |y| {
            let output = Output { first: y.as_mut_ptr().cast::<f32>(), stride: n };
            (0..b.steps.div_ceil(per_task)).into_par_iter().for_each(|task| {
                let panels = task * per_task..b.steps.min((task + 1) * per_task);
                let output = output.column(panels.start * BLOCK);
                for first in (0..t).step_by(ROWS) {
                    let rows = first..t.min(first + ROWS);
                    let packed = Packed::of_part(b, rows.clone(), (panels.clone(), n));
                    let (columns, lines) = (0..packed.n, first / BLOCK..rows.end.div_ceil(BLOCK));
                    let terms = [Term { lines, ..Term::new(a, &packed) }];
                    let (rows, panels, keep) = (0..num_rows, 0..panels.len(), first > 0);
                    Job { terms: &terms, rows, columns, panels, output, keep }.run(units);
                }
            });
        })
    };
    y.truncate(a.rows * n);
    y
}

impl Packed {
    /// Some of the rows `[t, n]` as summands, and of their columns those of some panels.
    fn of_part(x: &Rounded, rows: Range<usize>, (panels, n): (Range<usize>, usize)) -> Self {
        let lines_of_panel = rows.len().next_multiple_of(BLOCK);
        // SAFETY: each pair of lines of each panel is written.
        let lines = unsafe {
            filled(panels.len() * lines_of_panel, |lines| {
                for pair in 0..lines_of_panel / 2 {
                    let row = |row: usize| &x.lines[row * x.steps..][panels.clone()];
                    let (upper, lower) = (row(rows.start + 2 * pair), row(rows.start + 2 * pair + 1));
                    for (panel, (upper, lower)) in upper.iter().zip(lower).enumerate() {
                        let to = &mut lines[panel * lines_of_panel + 2 * pair..][..2];
                        for (half, to) in to.iter_mut().enumerate() {
                            let number = |from: &Line, i: usize| u32::from(from.0[half * HALF + i]);
                            to.write(Line::of_pairs(std::array::from_fn(|i| {
                                number(upper, i) | number(lower, i) << 16
                            })));
                        }
                    }
                }
            })
        };
        let n = (n - panels.start * BLOCK).min(panels.len() * BLOCK);
        Self { lines, k: rows.len(), n, columns: None }
    }
}
