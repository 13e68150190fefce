//! Rows of blocks of 32 quantised numbers, turned into f32 in registers.

use crate::vector::{LANES, Vector, fetch};
use half::f16;

/// Numbers of a block.
const BLOCK: usize = 2 * LANES;
/// Bytes between a block and what is fetched meanwhile: the weights of a model come from memory.
const AHEAD: usize = 8192;

/// A GGML format whose rows are blocks of 32 numbers.
pub(crate) trait Block {
    /// The numbers of the block.
    fn numbers(&self) -> [Vector; 2];
}

/// GGML Q4_1: f16 scale, f16 minimum, 32 nibbles, the first sixteen numbers in the low halves; number = scale * nibble +
/// minimum.
pub(crate) type Q4_1 = [u8; 20];

/// GGML Q8_0: f16 scale, 32 signed bytes; number = scale * byte.
pub(crate) type Q8_0 = [u8; 34];

impl Block for Q4_1 {
    #[inline(always)]
    fn numbers(&self) -> [Vector; 2] {
        let [d0, d1, m0, m1, nibbles @ ..] = self;
        let scale = f16::from_le_bytes([*d0, *d1]).to_f32();
        Vector::of_nibbles(nibbles, scale, f16::from_le_bytes([*m0, *m1]).to_f32())
    }
}

impl Block for Q8_0 {
    #[inline(always)]
    fn numbers(&self) -> [Vector; 2] {
        let [d0, d1, bytes @ ..] = self;
        let ([low, high], _) = bytes.as_chunks::<LANES>() else { unreachable!("32 bytes are two halves") };
        let scale = Vector::splat(f16::from_le_bytes([*d0, *d1]).to_f32());
        [Vector::of_signed(low).times(scale), Vector::of_signed(high).times(scale)]
    }
}

/// The numbers of a row, 32 for each block.
pub(crate) fn write(row: &[impl Block], out: &mut [f32]) {
    for (block, out) in row.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (halves, _) = out.as_chunks_mut::<LANES>();
        block.numbers().into_iter().zip(halves).for_each(|(numbers, half)| numbers.store(half));
    }
}

/// Products of a row with `out.len()` rows of `x`, at most eight; the bits of [`crate::cpu::dot`] with its numbers.
pub(crate) fn dots(row: &[impl Block], x: &[f32], out: &mut [f32]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    match out.len() {
        1 => out.copy_from_slice(&dots_of::<1>(row, x)),
        2 => out.copy_from_slice(&dots_of::<2>(row, x)),
        3 => out.copy_from_slice(&dots_of::<3>(row, x)),
        4 => out.copy_from_slice(&dots_of::<4>(row, x)),
        5 => out.copy_from_slice(&dots_of::<5>(row, x)),
        6 => out.copy_from_slice(&dots_of::<6>(row, x)),
        7 => out.copy_from_slice(&dots_of::<7>(row, x)),
        8 => out.copy_from_slice(&dots_of::<8>(row, x)),
        more => unreachable!("{more} rows are more than few"),
    }
}

#[inline(always)]
fn dots_of<const T: usize>(row: &[impl Block], x: &[[f32; BLOCK]]) -> [f32; T] {
    let x: [&[[f32; BLOCK]]; T] = std::array::from_fn(|i| &x[i * row.len()..(i + 1) * row.len()]);
    let mut sums = [[Vector::splat(0.0); 2]; T];
    for (at, block) in row.iter().enumerate() {
        fetch(std::ptr::from_ref(block).wrapping_byte_add(AHEAD));
        let numbers = block.numbers();
        for (sums, x) in sums.iter_mut().zip(x) {
            let (x, _) = x[at].as_chunks::<LANES>();
            for ((sum, numbers), x) in sums.iter_mut().zip(numbers).zip(x) {
                *sum = sum.plus_product(numbers, Vector::load(x));
            }
        }
    }
    std::array::from_fn(|i| sums[i][0].plus(sums[i][1]).sum())
}
