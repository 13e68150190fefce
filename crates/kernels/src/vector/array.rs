//! An array, where the program is not compiled for AVX-512.

use super::LANES;
use crate::cpu::fma;

#[derive(Clone, Copy)]
pub(crate) struct Vector([f32; LANES]);

impl Vector {
    #[inline(always)]
    pub(crate) fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    pub(crate) fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    pub(crate) fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    /// `self + a * b`, rounded once where the machine can.
    #[inline(always)]
    pub(crate) fn plus_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| fma(a.0[i], b.0[i], self.0[i])))
    }

    #[inline(always)]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    pub(crate) fn times(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    pub(crate) fn over(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] / other.0[i]))
    }

    /// Sum of all: the first half plus the second, and again.
    #[inline(always)]
    pub(crate) fn sum(self) -> f32 {
        let (mut sums, mut width) = (self.0, LANES / 2);
        while width > 0 {
            for i in 0..width {
                sums[i] += sums[i + width];
            }
            width /= 2;
        }
        sums[0]
    }

    /// [`Self::sum`] of each.
    #[inline(always)]
    pub(crate) fn sums(vectors: [Self; 4]) -> [f32; 4] {
        vectors.map(Self::sum)
    }

    /// Number j of vector i becomes number i of vector j.
    #[inline(always)]
    pub(crate) fn transposed(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|column| Self(rows.map(|row| row.0[column])))
    }

    /// The greater number of each pair.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    /// What is no number stays so.
    #[inline(always)]
    pub(crate) fn clamp(self, low: f32, high: f32) -> Self {
        Self(self.0.map(|x| x.clamp(low, high)))
    }

    /// The bits shifted to the left, and a whole number added to them.
    #[inline(always)]
    pub(crate) fn shifted<const BY: u32>(self, plus: i32) -> Self {
        Self(self.0.map(|x| f32::from_bits((x.to_bits() << BY).wrapping_add(plus.cast_unsigned()))))
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    /// The bits, read as whole numbers.
    #[inline(always)]
    pub(crate) fn of_whole_bits(self) -> Self {
        Self(self.0.map(|x| x.to_bits().cast_signed() as f32))
    }

    /// The nearest whole numbers, which lie between -128 and 127, as signed bytes.
    #[inline(always)]
    pub(crate) fn store_signed(self, to: &mut [u8; LANES]) {
        // Added to a number below 2^22, it leaves the nearest whole number in the lowest bits.
        to.iter_mut().zip(self.0).for_each(|(to, x)| *to = (x + 12_582_912.0).to_bits() as u8);
    }

    /// Signed bytes as numbers.
    #[inline(always)]
    pub(crate) fn of_signed(bytes: &[u8; LANES]) -> Self {
        Self(bytes.map(|byte| f32::from(byte.cast_signed())))
    }

    /// `scale * nibble + offset` of the four bits of each byte from `shift` on; the product is exact.
    #[inline(always)]
    pub(crate) fn of_nibbles(bytes: &[u8; LANES], shift: u32, scale: &f32, offset: &f32) -> Self {
        Self(bytes.map(|byte| f32::from(byte >> shift & 15) * scale + offset))
    }

    /// `scale * (nibble + first)`, which is exact, of the low and of the high halves of the bytes.
    #[inline(always)]
    pub(crate) fn of_nibbles_from(bytes: &[u8; LANES], first: f32, scale: &f32) -> [Self; 2] {
        [0, 4].map(|shift| Self(bytes.map(|byte| (f32::from(byte >> shift & 15) + first) * scale)))
    }

    /// Six bits each, less 32: the lower four those of bytes from a shift on, the other two those of others from
    /// another on.
    #[inline(always)]
    pub(crate) fn of_six_bits(low: &[u8; LANES], high: &[u8; LANES], shifts: [u32; 2]) -> Self {
        let mut numbers = [0f32; LANES];
        for (number, (low, high)) in numbers.iter_mut().zip(low.iter().zip(high)) {
            *number = f32::from(low >> shifts[0] & 15 | (high >> shifts[1] & 3) << 4) - 32.0;
        }
        Self(numbers)
    }

    /// Itself, and `x` more where a bit of `places` is set.
    #[inline(always)]
    pub(crate) fn plus_where(self, places: u16, x: Self) -> Self {
        let mut numbers = self.0;
        for (i, (number, x)) in numbers.iter_mut().zip(x.0).enumerate() {
            *number += if places >> i & 1 == 1 { x } else { 0.0 };
        }
        Self(numbers)
    }

    /// Itself, and `x` more where this bit of a byte is set.
    #[inline(always)]
    pub(crate) fn plus_where_bit(self, bytes: &[u8; LANES], bit: u32, x: Self) -> Self {
        let mut numbers = self.0;
        for ((number, byte), x) in numbers.iter_mut().zip(bytes).zip(x.0) {
            *number += if byte >> bit & 1 == 1 { x } else { 0.0 };
        }
        Self(numbers)
    }
}

/// The f16 numbers in front of some blocks.
pub(crate) fn halves_in_front<const SIZE: usize, const COUNT: usize>(
    blocks: &[[u8; SIZE]],
    heads: &mut [[f32; COUNT]],
) {
    for (block, heads) in blocks.iter().zip(heads) {
        *heads = std::array::from_fn(|i| half::f16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32());
    }
}
