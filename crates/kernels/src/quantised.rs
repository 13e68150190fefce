//! Blocks of quantised numbers, turned into f32 in registers, 32 at a time; `interleaved.rs` multiplies their bits.

#[cfg(target_arch = "x86_64")]
mod interleaved;
mod rows;

use crate::vector::{LANES, Vector, fetch, halves_in_front};
use half::f16;
pub(crate) use rows::{FEW_ROWS, Quantised, of_blocks};

/// Numbers of a part of a block.
const PART: usize = 2 * LANES;
/// Bytes between the end of rows and what is fetched meanwhile: the weights of a model come from memory.
const AHEAD: usize = 1024;

/// A GGML format whose rows are blocks of 32 numbers or of a multiple.
pub(crate) trait Block: Sized {
    /// Parts of 32 numbers.
    const PARTS: usize;
    /// Scales and offsets of a block as f32.
    type Heads: Copy + Default;

    /// Those of some blocks: many at a time cost a part of what each would by itself.
    fn heads(blocks: &[Self], heads: &mut [Self::Heads]);

    /// The numbers of a part. Without closures: the compiler keeps those of arrays apart, and vectors go through memory.
    fn numbers(&self, part: usize, heads: &Self::Heads) -> [Vector; 2];
}

/// GGML Q4_0: f16 scale, 32 nibbles as in Q4_1; number = scale * (nibble - 8).
pub(crate) type Q4_0 = [u8; 18];

/// GGML Q4_1: f16 scale, f16 minimum, 32 nibbles, the first sixteen numbers in the low halves; number = scale * nibble +
/// minimum.
pub(crate) type Q4_1 = [u8; 20];

/// GGML Q8_0: f16 scale, 32 signed bytes; number = scale * byte.
pub(crate) type Q8_0 = [u8; 34];

/// GGML Q4_K: f16 scale and f16 scale of the minima, eight pairs of 6 bits of both, eight parts of 32 nibbles, two of them in
/// the low and the high halves of 32 bytes; number = scale * factor * nibble - minimum.
pub(crate) type Q4K = [u8; 144];

/// GGML Q5_K: as Q4_K, with a fifth bit of each number: of part i in bit i of 32 bytes ahead of the nibbles.
pub(crate) type Q5K = [u8; 176];

/// GGML Q5_0: f16 scale, 32 fifth bits, 32 nibbles as in Q4_1; number = scale * (bits - 16).
pub(crate) type Q5_0 = [u8; 22];

/// GGML Q5_1: f16 scale, f16 minimum, 32 fifth bits, 32 nibbles; number = scale * bits + minimum.
pub(crate) type Q5_1 = [u8; 24];

/// GGML Q6_K, halves of 128 numbers: the low 4 bits of all, the high 2 bits of all, sixteen signed factors of 16 numbers
/// each, f16 scale; number = scale * factor * (bits - 32).
pub(crate) type Q6K = [u8; 210];

#[inline(always)]
fn half([low, high]: [u8; 2]) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Sixteen of some bytes.
#[inline(always)]
fn sixteen(bytes: &[u8], first: usize) -> &[u8; LANES] {
    bytes[first..].first_chunk().unwrap_or_else(|| unreachable!("a block has sixteen bytes from {first} on"))
}

impl Block for Q4_0 {
    const PARTS: usize = 1;
    type Heads = [f32; 1];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        halves_in_front(blocks, heads);
    }

    #[inline(always)]
    fn numbers(&self, _: usize, [scale]: &Self::Heads) -> [Vector; 2] {
        let [_, _, nibbles @ ..] = self;
        Vector::of_nibbles_from(nibbles, -8.0, scale)
    }
}

impl Block for Q4_1 {
    const PARTS: usize = 1;
    type Heads = [f32; 2];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        halves_in_front(blocks, heads);
    }

    #[inline(always)]
    fn numbers(&self, _: usize, [scale, minimum]: &Self::Heads) -> [Vector; 2] {
        let [_, _, _, _, nibbles @ ..] = self;
        [Vector::of_nibbles(nibbles, 0, scale, minimum), Vector::of_nibbles(nibbles, 4, scale, minimum)]
    }
}

/// Eight scales and eight offsets of Q4_K and Q5_K: six bits each, those of the last four parts in halves.
#[inline(always)]
fn heads_of_k(front: &[u8; 16]) -> [f32; 16] {
    let four = |at: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|i| front[at + i])));
    let (a, b, c) = (four(4), four(8), four(12));
    let scales = a & 0x3f3f_3f3f | (c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030) << 32;
    let minima = b & 0x3f3f_3f3f | (c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030) << 32;
    let (scales, minima) = (scales.to_le_bytes(), minima.to_le_bytes());
    let (scale, minimum) = (half([front[0], front[1]]), -half([front[2], front[3]]));
    let mut heads = [0f32; 16];
    for (i, (factor, of_minimum)) in scales.into_iter().zip(minima).enumerate() {
        (heads[i], heads[8 + i]) = (scale * f32::from(factor), minimum * f32::from(of_minimum));
    }
    heads
}

impl Block for Q4K {
    const PARTS: usize = 8;
    type Heads = [f32; 16];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        blocks.iter().zip(heads).for_each(|(block, heads)| *heads = heads_of_k(sixteen(block, 0)));
    }

    #[inline(always)]
    fn numbers(&self, part: usize, heads: &Self::Heads) -> [Vector; 2] {
        let (scale, offset, shift) = (&heads[part], &heads[8 + part], 4 * (part % 2) as u32);
        let first = 16 + part / 2 * 32;
        [
            Vector::of_nibbles(sixteen(self, first), shift, scale, offset),
            Vector::of_nibbles(sixteen(self, first + LANES), shift, scale, offset),
        ]
    }
}

impl Block for Q5K {
    const PARTS: usize = 8;
    type Heads = [f32; 16];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        blocks.iter().zip(heads).for_each(|(block, heads)| *heads = heads_of_k(sixteen(block, 0)));
    }

    #[inline(always)]
    fn numbers(&self, part: usize, heads: &Self::Heads) -> [Vector; 2] {
        let (scale, offset, shift) = (&heads[part], Vector::splat(heads[8 + part]), 4 * (part % 2) as u32);
        let fifth = Vector::splat(*scale).times(Vector::splat(16.0));
        let (first, bit) = (48 + part / 2 * 32, part as u32);
        // What four bits stand for and what the fifth adds are exact: only the minimum rounds.
        let low = Vector::of_nibbles(sixteen(self, first), shift, scale, &0.0);
        let high = Vector::of_nibbles(sixteen(self, first + LANES), shift, scale, &0.0);
        [
            low.plus_where_bit(sixteen(self, 16), bit, fifth).plus(offset),
            high.plus_where_bit(sixteen(self, 16 + LANES), bit, fifth).plus(offset),
        ]
    }
}

/// The fifth bits of the first and the second sixteen numbers of a block.
#[inline(always)]
fn fifth_bits([a, b, c, d]: [u8; 4]) -> [u16; 2] {
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// Sixteen times the scale more where the fifth bit is set.
#[inline(always)]
fn with_fifth_bits([low, high]: [Vector; 2], bits: [u8; 4], scale: f32) -> [Vector; 2] {
    let ([of_low, of_high], fifth) = (fifth_bits(bits), Vector::splat(scale).times(Vector::splat(16.0)));
    [low.plus_where(of_low, fifth), high.plus_where(of_high, fifth)]
}

impl Block for Q5_0 {
    const PARTS: usize = 1;
    type Heads = [f32; 1];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        halves_in_front(blocks, heads);
    }

    #[inline(always)]
    fn numbers(&self, _: usize, [scale]: &Self::Heads) -> [Vector; 2] {
        let [_, _, h0, h1, h2, h3, nibbles @ ..] = self;
        with_fifth_bits(Vector::of_nibbles_from(nibbles, -16.0, scale), [*h0, *h1, *h2, *h3], *scale)
    }
}

impl Block for Q5_1 {
    const PARTS: usize = 1;
    type Heads = [f32; 2];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        halves_in_front(blocks, heads);
    }

    #[inline(always)]
    fn numbers(&self, _: usize, [scale, minimum]: &Self::Heads) -> [Vector; 2] {
        let [_, _, _, _, h0, h1, h2, h3, nibbles @ ..] = self;
        let minimum = Vector::splat(*minimum);
        let [low, high] = with_fifth_bits(Vector::of_nibbles_from(nibbles, 0.0, scale), [*h0, *h1, *h2, *h3], *scale);
        [low.plus(minimum), high.plus(minimum)]
    }
}

impl Block for Q6K {
    const PARTS: usize = 8;
    type Heads = [f32; 16];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        for (block, heads) in blocks.iter().zip(heads) {
            let (factors, scale) = (sixteen(block, 192), half([block[208], block[209]]));
            *heads = factors.map(|factor| scale * f32::from(factor.cast_signed()));
        }
    }

    #[inline(always)]
    fn numbers(&self, part: usize, heads: &Self::Heads) -> [Vector; 2] {
        // Of each half: parts 0 and 1 in the low nibbles, 2 and 3 in the high ones; two bits of each in one byte.
        let (of_half, quarter) = (part / 4, part % 4);
        let shifts = [4 * (quarter / 2) as u32, 2 * quarter as u32];
        let (low, high) = (of_half * 64 + quarter % 2 * 32, 128 + of_half * 32);
        let numbers = [
            Vector::of_six_bits(sixteen(self, low), sixteen(self, high), shifts),
            Vector::of_six_bits(sixteen(self, low + LANES), sixteen(self, high + LANES), shifts),
        ];
        [numbers[0].times(Vector::splat(heads[part * 2])), numbers[1].times(Vector::splat(heads[part * 2 + 1]))]
    }
}

impl Block for Q8_0 {
    const PARTS: usize = 1;
    type Heads = [f32; 1];

    fn heads(blocks: &[Self], heads: &mut [Self::Heads]) {
        halves_in_front(blocks, heads);
    }

    #[inline(always)]
    fn numbers(&self, _: usize, [scale]: &Self::Heads) -> [Vector; 2] {
        let scale = Vector::splat(*scale);
        [Vector::of_signed(sixteen(self, 2)).times(scale), Vector::of_signed(sixteen(self, 2 + LANES)).times(scale)]
    }
}

/// Blocks that are turned into f32 at a time.
const AT_ONCE: usize = 16;

/// The numbers of some blocks.
fn write<B: Block>(blocks: &[B], out: &mut [f32]) {
    let mut heads = [B::Heads::default(); AT_ONCE];
    for (blocks, out) in blocks.chunks(AT_ONCE).zip(out.chunks_mut(AT_ONCE * B::PARTS * PART)) {
        B::heads(blocks, &mut heads);
        for ((block, heads), out) in blocks.iter().zip(&heads).zip(out.chunks_mut(B::PARTS * PART)) {
            for (part, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
                let (halves, _) = out.as_chunks_mut::<LANES>();
                block.numbers(part, heads).into_iter().zip(halves).for_each(|(numbers, half)| numbers.store(half));
            }
        }
    }
}

/// Products of rows of so many blocks each with `t` rows of `x`, at most eight, `[rows, t]`; the bits of
/// [`crate::cpu::dot`] with their numbers.
fn dots<B: Block>(rows: &[B], blocks: usize, x: &[f32], t: usize, out: &mut [f32]) {
    let (x, _) = x.as_chunks::<PART>();
    // Each row has two sums for each row of `x`: several wait for none, and read a row of `x` once for all.
    match t {
        1 => groups::<4, 1, _>(rows, blocks, x, out),
        2 => groups::<2, 2, _>(rows, blocks, x, out),
        3 => groups::<2, 3, _>(rows, blocks, x, out),
        4 => groups::<1, 4, _>(rows, blocks, x, out),
        5 => groups::<1, 5, _>(rows, blocks, x, out),
        6 => groups::<1, 6, _>(rows, blocks, x, out),
        7 => groups::<1, 7, _>(rows, blocks, x, out),
        8 => groups::<1, 8, _>(rows, blocks, x, out),
        more => unreachable!("{more} rows are more than few"),
    }
}

/// R rows at a time, and those that remain one by one.
fn groups<const R: usize, const T: usize, B: Block>(rows: &[B], blocks: usize, x: &[[f32; PART]], out: &mut [f32]) {
    let parts = blocks * B::PARTS;
    let x: [&[[f32; PART]]; T] = std::array::from_fn(|i| &x[i * parts..(i + 1) * parts]);
    let mut heads = vec![B::Heads::default(); R * blocks];
    for (rows, out) in rows.chunks(R * blocks).zip(out.chunks_mut(R * T)) {
        B::heads(rows, &mut heads);
        if out.len() == R * T {
            out.copy_from_slice(products::<R, T, B>(rows, x, &heads).as_flattened());
            continue;
        }
        let each = rows.chunks(blocks).zip(heads.chunks(blocks)).zip(out.chunks_mut(T));
        each.for_each(|((row, heads), out)| out.copy_from_slice(products::<1, T, B>(row, x, heads).as_flattened()));
    }
}

#[inline(always)]
fn products<const R: usize, const T: usize, B: Block>(
    rows: &[B],
    x: [&[[f32; PART]]; T],
    heads: &[B::Heads],
) -> [[f32; T]; R] {
    const LINE: usize = 64;
    let blocks = rows.len() / R;
    let row: [&[B]; R] = std::array::from_fn(|r| &rows[r * blocks..(r + 1) * blocks]);
    let heads: [&[B::Heads]; R] = std::array::from_fn(|r| &heads[r * blocks..(r + 1) * blocks]);
    let mut sums = [[[Vector::splat(0.0); 2]; T]; R];
    for at in 0..blocks {
        // In the order of addresses, some way into the next rows.
        let ahead = rows.as_ptr_range().end.wrapping_byte_add(AHEAD + at * R * size_of::<B>());
        (0..R * size_of::<B>()).step_by(LINE).for_each(|line| fetch(ahead.wrapping_byte_add(line)));
        for part in 0..B::PARTS {
            let x: [[Vector; 2]; T] = std::array::from_fn(|i| {
                let (x, _) = x[i][at * B::PARTS + part].as_chunks::<LANES>();
                [Vector::load(&x[0]), Vector::load(&x[1])]
            });
            for r in 0..R {
                let [low, high] = row[r][at].numbers(part, &heads[r][at]);
                for (sums, x) in sums[r].iter_mut().zip(&x) {
                    *sums = [sums[0].plus_product(low, x[0]), sums[1].plus_product(high, x[1])];
                }
            }
        }
    }
    sums.map(|of_row| of_row.map(|[low, high]| low.plus(high).sum()))
}
