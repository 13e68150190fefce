//! Low-rank updates of rows one at a time, on the CPU.

use crate::bf16::BLOCK;
use crate::cpu;
use crate::vector::{LANES, Vector};

/// Rows that are multiplied with each row of A while it is in the nearest cache.
pub(super) const DOWN_ROWS: usize = 8;

/// A low-rank update for rows one at a time: the rank is too small for the blocks of a product, and a row is the same bits
/// in any company.
pub(super) struct RowUpdate<'a> {
    /// `[r, in]`.
    a: &'a [f32],
    /// `scale B^T` in panels of 32 columns, `[out / 32, r, 32]`, padded with zeros.
    panels: Vec<[[f32; LANES]; 2]>,
    input: usize,
    pub(super) rank: usize,
}

impl<'a> RowUpdate<'a> {
    pub(super) fn new((a, b): (&'a [f32], &[f32]), rank: usize, scale: f32) -> Self {
        let (input, out) = (a.len() / rank, b.len() / rank);
        let mut panels = vec![[[0f32; LANES]; 2]; out.div_ceil(BLOCK) * rank];
        for (i, b) in b.chunks(rank).enumerate() {
            for (r, b) in b.iter().enumerate() {
                panels[i / BLOCK * rank + r][i % BLOCK / LANES][i % LANES] = scale * b;
            }
        }
        Self { a, panels, input, rank }
    }

    /// `A x` of each row, `[n, r]`.
    pub(super) fn downs(&self, rows: &[&[f32]]) -> Vec<f32> {
        let mut downs = vec![0f32; rows.len() * self.rank];
        for (rows, downs) in rows.chunks(DOWN_ROWS).zip(downs.chunks_mut(DOWN_ROWS * self.rank)) {
            for (r, a) in self.a.chunks(self.input).enumerate() {
                for (x, downs) in rows.iter().zip(downs.chunks_mut(self.rank)) {
                    downs[r] = cpu::dot(a, x);
                }
            }
        }
        downs
    }

    /// Adds `scale B down` to the outputs of a panel, 32 of them or those that are left.
    #[inline]
    pub(super) fn add(&self, down: &[f32], panel: usize, y: &mut [f32]) {
        let b = &self.panels[panel * self.rank..(panel + 1) * self.rank];
        let Ok(whole) = <&mut [f32; BLOCK]>::try_from(&mut *y) else {
            let mut whole = [0f32; BLOCK];
            whole[..y.len()].copy_from_slice(y);
            add_panel(down, b, &mut whole);
            y.copy_from_slice(&whole[..y.len()]);
            return;
        };
        add_panel(down, b, whole);
    }
}

#[inline(always)]
fn add_panel(down: &[f32], b: &[[[f32; LANES]; 2]], y: &mut [f32; BLOCK]) {
    let (halves, _) = y.as_chunks_mut::<LANES>();
    let [low, high] = halves else { unreachable!("a block has two halves") };
    let mut sums = [Vector::load(low), Vector::load(high)];
    let mut plus = |down: f32, [b_low, b_high]: &[[f32; LANES]; 2]| {
        let down = Vector::splat(down);
        sums[0] = sums[0].plus_product(down, Vector::load(b_low));
        sums[1] = sums[1].plus_product(down, Vector::load(b_high));
    };
    // In fours from the last to the first: published figures were made in this order.
    let ((fours, rest), (b_fours, b_rest)) = (down.as_chunks::<4>(), b.as_chunks::<4>());
    for (down, b) in fours.iter().zip(b_fours) {
        down.iter().zip(b).rev().for_each(|(down, b)| plus(*down, b));
    }
    rest.iter().zip(b_rest).for_each(|(down, b)| plus(*down, b));
    sums[0].store(low);
    sums[1].store(high);
}
