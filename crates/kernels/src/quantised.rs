//! Rows of blocks of quantised numbers, turned into f32 in registers, 32 at a time.

use crate::vector::{LANES, Vector, fetch};
use half::f16;

/// Numbers of a part of a block.
const PART: usize = 2 * LANES;
/// Bytes between a block and what is fetched meanwhile: the weights of a model come from memory.
const AHEAD: usize = 8192;

/// A GGML format whose rows are blocks of 32 numbers or of a multiple.
pub(crate) trait Block {
    /// Parts of 32 numbers.
    const PARTS: usize;

    /// The numbers of a part.
    fn numbers(&self, part: usize) -> [Vector; 2];
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

    #[inline(always)]
    fn numbers(&self, _: usize) -> [Vector; 2] {
        let [d0, d1, nibbles @ ..] = self;
        let scale = half([*d0, *d1]);
        let offset = -8.0 * scale;
        [Vector::of_low_nibbles(nibbles, scale, offset), Vector::of_high_nibbles(nibbles, scale, offset)]
    }
}

impl Block for Q4_1 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn numbers(&self, _: usize) -> [Vector; 2] {
        let [d0, d1, m0, m1, nibbles @ ..] = self;
        let (scale, offset) = (half([*d0, *d1]), half([*m0, *m1]));
        [Vector::of_low_nibbles(nibbles, scale, offset), Vector::of_high_nibbles(nibbles, scale, offset)]
    }
}

/// Factor and minimum of a part: six bits each, those of the last four parts in halves.
#[inline(always)]
fn factors_of_part(factors: &[u8], part: usize) -> [f32; 2] {
    let found = match part {
        0..4 => [factors[part] & 63, factors[part + 4] & 63],
        _ => [factors[part + 4] & 15 | factors[part - 4] >> 6 << 4, factors[part + 4] >> 4 | factors[part] >> 6 << 4],
    };
    found.map(f32::from)
}

impl Block for Q4K {
    const PARTS: usize = 8;

    #[inline(always)]
    fn numbers(&self, part: usize) -> [Vector; 2] {
        let [d0, d1, m0, m1, rest @ ..] = self;
        let (factors, nibbles) = rest.split_at(12);
        let [factor, minimum] = factors_of_part(factors, part);
        let (scale, offset) = (half([*d0, *d1]) * factor, -(half([*m0, *m1]) * minimum));
        let bytes = [0, LANES].map(|first| sixteen(nibbles, part / 2 * 32 + first));
        if part.is_multiple_of(2) {
            bytes.map(|bytes| Vector::of_low_nibbles(bytes, scale, offset))
        } else {
            bytes.map(|bytes| Vector::of_high_nibbles(bytes, scale, offset))
        }
    }
}

impl Block for Q5K {
    const PARTS: usize = 8;

    #[inline(always)]
    fn numbers(&self, part: usize) -> [Vector; 2] {
        let [d0, d1, m0, m1, rest @ ..] = self;
        let (factors, rest) = rest.split_at(12);
        let (high, nibbles) = rest.split_at(32);
        let [factor, minimum] = factors_of_part(factors, part);
        let (scale, offset) = (half([*d0, *d1]) * factor, -(half([*m0, *m1]) * minimum));
        [0, LANES].map(|first| {
            let (bytes, high) = (sixteen(nibbles, part / 2 * 32 + first), sixteen(high, first));
            // What four bits stand for and what the fifth adds are exact: only the minimum rounds.
            let four = if part.is_multiple_of(2) {
                Vector::of_low_nibbles(bytes, scale, 0.0)
            } else {
                Vector::of_high_nibbles(bytes, scale, 0.0)
            };
            four.plus_where(bits_of(high, part), 16.0 * scale).plus(Vector::splat(offset))
        })
    }
}

/// Bit `bit` of each byte.
#[inline(always)]
fn bits_of(bytes: &[u8; LANES], bit: usize) -> u16 {
    let mut bits = 0;
    for (i, byte) in bytes.iter().enumerate() {
        bits |= u16::from(byte >> bit & 1) << i;
    }
    bits
}

/// The fifth bits of the first and the second sixteen numbers of a block.
#[inline(always)]
fn fifth_bits([a, b, c, d]: [u8; 4]) -> [u16; 2] {
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

impl Block for Q5_0 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn numbers(&self, _: usize) -> [Vector; 2] {
        let [d0, d1, h0, h1, h2, h3, nibbles @ ..] = self;
        let scale = half([*d0, *d1]);
        let [low, high] = fifth_bits([*h0, *h1, *h2, *h3]);
        [
            Vector::of_low_nibbles(nibbles, scale, -16.0 * scale).plus_where(low, 16.0 * scale),
            Vector::of_high_nibbles(nibbles, scale, -16.0 * scale).plus_where(high, 16.0 * scale),
        ]
    }
}

impl Block for Q5_1 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn numbers(&self, _: usize) -> [Vector; 2] {
        let [d0, d1, m0, m1, h0, h1, h2, h3, nibbles @ ..] = self;
        let (scale, minimum) = (half([*d0, *d1]), Vector::splat(half([*m0, *m1])));
        let [low, high] = fifth_bits([*h0, *h1, *h2, *h3]);
        [
            Vector::of_low_nibbles(nibbles, scale, 0.0).plus_where(low, 16.0 * scale).plus(minimum),
            Vector::of_high_nibbles(nibbles, scale, 0.0).plus_where(high, 16.0 * scale).plus(minimum),
        ]
    }
}

impl Block for Q6K {
    const PARTS: usize = 8;

    #[inline(always)]
    fn numbers(&self, part: usize) -> [Vector; 2] {
        let (low, rest) = self.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (factors, scale) = rest.split_at(16);
        let scale = half([scale[0], scale[1]]);
        // Of each half: parts 0 and 1 in the low nibbles, 2 and 3 in the high ones; two bits of each in one byte.
        let (of_half, quarter) = (part / 4, part % 4);
        [0, 1].map(|i| {
            let low = sixteen(low, of_half * 64 + quarter % 2 * 32 + i * LANES);
            let high = sixteen(high, of_half * 32 + i * LANES);
            let factor = f32::from(factors[part * 2 + i].cast_signed());
            Vector::of_six_bits(low, quarter > 1, high, 2 * quarter as u8).times(Vector::splat(scale * factor))
        })
    }
}

impl Block for Q8_0 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn numbers(&self, _: usize) -> [Vector; 2] {
        let [d0, d1, bytes @ ..] = self;
        let ([low, high], _) = bytes.as_chunks::<LANES>() else { unreachable!("32 bytes are two halves") };
        let scale = Vector::splat(half([*d0, *d1]));
        [Vector::of_signed(low).times(scale), Vector::of_signed(high).times(scale)]
    }
}

/// The numbers of a row.
pub(crate) fn write<B: Block>(row: &[B], out: &mut [f32]) {
    for (block, out) in row.iter().zip(out.chunks_mut(B::PARTS * PART)) {
        for (part, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
            let (halves, _) = out.as_chunks_mut::<LANES>();
            block.numbers(part).into_iter().zip(halves).for_each(|(numbers, half)| numbers.store(half));
        }
    }
}

/// Products of a row with `out.len()` rows of `x`, at most eight; the bits of [`crate::cpu::dot`] with its numbers.
pub(crate) fn dots(row: &[impl Block], x: &[f32], out: &mut [f32]) {
    let (x, _) = x.as_chunks::<PART>();
    match out.len() {
        1 => out.copy_from_slice(&dots_of::<1, _>(row, x)),
        2 => out.copy_from_slice(&dots_of::<2, _>(row, x)),
        3 => out.copy_from_slice(&dots_of::<3, _>(row, x)),
        4 => out.copy_from_slice(&dots_of::<4, _>(row, x)),
        5 => out.copy_from_slice(&dots_of::<5, _>(row, x)),
        6 => out.copy_from_slice(&dots_of::<6, _>(row, x)),
        7 => out.copy_from_slice(&dots_of::<7, _>(row, x)),
        8 => out.copy_from_slice(&dots_of::<8, _>(row, x)),
        more => unreachable!("{more} rows are more than few"),
    }
}

#[inline(always)]
fn dots_of<const T: usize, B: Block>(row: &[B], x: &[[f32; PART]]) -> [f32; T] {
    const LINE: usize = 64;
    let parts = row.len() * B::PARTS;
    let x: [&[[f32; PART]]; T] = std::array::from_fn(|i| &x[i * parts..(i + 1) * parts]);
    let mut sums = [[Vector::splat(0.0); 2]; T];
    for (at, block) in row.iter().enumerate() {
        for line in (0..size_of::<B>()).step_by(LINE) {
            fetch(std::ptr::from_ref(block).wrapping_byte_add(AHEAD + line));
        }
        for part in 0..B::PARTS {
            let numbers = block.numbers(part);
            for (sums, x) in sums.iter_mut().zip(x) {
                let (x, _) = x[at * B::PARTS + part].as_chunks::<LANES>();
                for ((sum, numbers), x) in sums.iter_mut().zip(numbers).zip(x) {
                    *sum = sum.plus_product(numbers, Vector::load(x));
                }
            }
        }
    }
    std::array::from_fn(|i| sums[i][0].plus(sums[i][1]).sum())
}
