//! Products over the rows of both operands, as gradients of weights are.

use super::blocks::HALF;
use super::{BLOCK, Job, Line, Output, Packed, Rounded, Term, Units};
use crate::cpu::filled;
use rayon::prelude::*;

/// Panels that are packed at a time: over a few thousand rows they stay in a core's second-level cache.
const PANELS: usize = 4;

/// `a b`, `[m, t] x [t, n]`: of the right operand, which is no weight, as much is packed at a time as is used at once. Each
/// output is summed by one thread.
pub(crate) fn transposed_product(units: Units, a: &Rounded, (b, n): (&Rounded, usize)) -> Vec<f32> {
    let t = b.rows;
    assert!(a.steps == t.div_ceil(BLOCK) && b.steps == n.div_ceil(BLOCK) && t > 0, "product: sizes disagree");
    // SAFETY: the jobs have all columns of all rows, each its own, and write every number of them.
    unsafe {
        filled(a.rows * n, |y| {
            let output = Output { first: y.as_mut_ptr().cast::<f32>(), stride: n };
            (0..b.steps.div_ceil(PANELS)).into_par_iter().for_each(|part| {
                let panels = part * PANELS..b.steps.min((part + 1) * PANELS);
                let first = panels.start * BLOCK;
                let packed = Packed::of_part(b, panels.clone(), n);
                let columns = 0..packed.n;
                let output = Output { first: { output }.first.add(first), stride: n };
                let terms = [Term::new(a, &packed)];
                Job { terms: &terms, rows: 0..a.rows, columns, panels: 0..panels.len(), output, keep: false }
                    .run(units);
            });
        })
    }
}

impl Packed {
    /// The rows `[t, n]` as summands, of their columns those of some panels.
    fn of_part(rows: &Rounded, panels: std::ops::Range<usize>, n: usize) -> Self {
        let (k, lines_of_panel) = (rows.rows, rows.rows.next_multiple_of(BLOCK));
        let mut lines = vec![Line([0; BLOCK]); panels.len() * lines_of_panel];
        for (panel, lines) in panels.clone().zip(lines.chunks_mut(lines_of_panel)) {
            for (pair, to) in lines.chunks_mut(2).enumerate() {
                let [upper, lower] = [0, 1].map(|i| &rows.lines[(2 * pair + i) * rows.steps + panel].0);
                for (half, to) in to.iter_mut().enumerate() {
                    let number = |from: &[u16; BLOCK], i: usize| u32::from(from[half * HALF + i]);
                    *to = Line::of_pairs(std::array::from_fn(|i| number(upper, i) | number(lower, i) << 16));
                }
            }
        }
        Self { lines, k, n: (n - panels.start * BLOCK).min(panels.len() * BLOCK) }
    }
}
