//! A register of AVX-512.

use super::LANES;
use std::arch::x86_64::{
    __m512, __m512d, __m512i, _mm_loadu_si128, _mm_storeu_ps, _mm_storeu_si128, _mm512_abs_ps, _mm512_add_epi32,
    _mm512_add_ps, _mm512_and_si512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_castps512_ps128,
    _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_div_ps,
    _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_add_ps,
    _mm512_mask_i32gather_epi32, _mm512_mask_storeu_ps, _mm512_maskz_compress_ps, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_or_si512, _mm512_permute_ps, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_srlv_epi32, _mm512_storeu_ps,
    _mm512_sub_ps, _mm512_test_epi32_mask, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};

#[derive(Clone, Copy)]
pub(crate) struct Vector(__m512);

impl Vector {
    #[inline(always)]
    pub(crate) fn splat(x: f32) -> Self {
        // SAFETY: the program is compiled for the instruction.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    pub(crate) fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: as above; 16 numbers are read.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    pub(crate) fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: as above; 16 numbers are written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) };
    }

    /// `self + a * b`, rounded once.
    #[inline(always)]
    pub(crate) fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    pub(crate) fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    pub(crate) fn minus(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    pub(crate) fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    pub(crate) fn over(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    /// Sum of all: the first half plus the second, and again.
    #[inline(always)]
    pub(crate) fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    /// [`Self::sum`] of each.
    #[inline(always)]
    pub(crate) fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            let halves = |x: __m512, y: __m512| {
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(x, y), _mm512_shuffle_f32x4::<0xee>(x, y))
            };
            let (ab, cd) = (halves(a.0, b.0), halves(c.0, d.0));
            let quarters = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let eighths = _mm512_add_ps(quarters, _mm512_permute_ps::<0x4e>(quarters));
            let sums = _mm512_add_ps(eighths, _mm512_permute_ps::<0xb1>(eighths));
            let firsts = _mm512_maskz_compress_ps(0x1111, sums);
            let mut four = [0f32; 4];
            _mm_storeu_ps(four.as_mut_ptr(), _mm512_castps512_ps128(firsts));
            four
        }
    }

    /// Number j of vector i becomes number i of vector j.
    #[inline(always)]
    pub(crate) fn transposed(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: as above.
        unsafe {
            let (ps, pd) = (|x: __m512d| _mm512_castpd_ps(x), |x: __m512| _mm512_castps_pd(x));
            let pairs: [__m512; LANES] = std::array::from_fn(|i| match (rows[i / 2 * 2].0, rows[i / 2 * 2 + 1].0) {
                (a, b) if i % 2 == 0 => _mm512_unpacklo_ps(a, b),
                (a, b) => _mm512_unpackhi_ps(a, b),
            });
            // Quarter q of number 4 i + j: column 4 q + j of rows 4 i to 4 i + 3.
            let fours: [__m512; LANES] = std::array::from_fn(|i| {
                let first = i / 4 * 4 + i % 4 / 2;
                match (pd(pairs[first]), pd(pairs[first + 2])) {
                    (a, b) if i % 2 == 0 => ps(_mm512_unpacklo_pd(a, b)),
                    (a, b) => ps(_mm512_unpackhi_pd(a, b)),
                }
            });
            let even = |a: __m512, b: __m512| _mm512_shuffle_f32x4::<0x88>(a, b);
            let odd = |a: __m512, b: __m512| _mm512_shuffle_f32x4::<0xdd>(a, b);
            std::array::from_fn(|column| {
                let j = column % 4;
                let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
                Self(match column / 4 {
                    0 => even(even(a, b), even(c, d)),
                    1 => even(odd(a, b), odd(c, d)),
                    2 => odd(even(a, b), even(c, d)),
                    _ => odd(odd(a, b), odd(c, d)),
                })
            })
        }
    }

    /// The greater number of each pair.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    /// What is no number stays so.
    #[inline(always)]
    pub(crate) fn clamp(self, low: f32, high: f32) -> Self {
        // SAFETY: as above. Both give their second operand where one is no number.
        Self(unsafe { _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), self.0)) })
    }

    /// The bits shifted to the left, and a whole number added to them.
    #[inline(always)]
    pub(crate) fn shifted<const BY: u32>(self, plus: i32) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            let bits = _mm512_slli_epi32::<BY>(_mm512_castps_si512(self.0));
            _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(plus)))
        })
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    /// The bits, read as whole numbers.
    #[inline(always)]
    pub(crate) fn of_whole_bits(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(self.0)) })
    }

    /// The nearest whole numbers, which lie between -128 and 127, as signed bytes.
    #[inline(always)]
    pub(crate) fn store_signed(self, to: &mut [u8; LANES]) {
        // SAFETY: as above; 16 bytes are written.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) };
    }

    /// Signed bytes as numbers.
    #[inline(always)]
    pub(crate) fn of_signed(bytes: &[u8; LANES]) -> Self {
        // SAFETY: as above; 16 bytes are read.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) })
    }

    /// `scale * nibble + offset` of the four bits of each byte from `shift` on; the product is exact.
    #[inline(always)]
    pub(crate) fn of_nibbles(bytes: &[u8; LANES], shift: u32, scale: &f32, offset: &f32) -> Self {
        Self::splat(*offset).plus_product(Self::counted_from(0.0), Self::splat(*scale)).named(bytes, shift)
    }

    /// `scale * (nibble + first)`, which is exact, of the low and of the high halves of the bytes.
    #[inline(always)]
    pub(crate) fn of_nibbles_from(bytes: &[u8; LANES], first: f32, scale: &f32) -> [Self; 2] {
        let table = Self::counted_from(first).times(Self::splat(*scale));
        [table.named(bytes, 0), table.named(bytes, 4)]
    }

    /// Six bits each, less 32: the lower four those of bytes from a shift on, the other two those of others from
    /// another on.
    #[inline(always)]
    pub(crate) fn of_six_bits(low: &[u8; LANES], high: &[u8; LANES], shifts: [u32; 2]) -> Self {
        let four = Self::from_bit(low, shifts[0]);
        let two = Self::from_bit(high, shifts[1]);
        // SAFETY: as above.
        unsafe {
            let low = _mm512_and_si512(four, _mm512_set1_epi32(15));
            let high = _mm512_slli_epi32::<4>(_mm512_and_si512(two, _mm512_set1_epi32(3)));
            let bits = _mm512_add_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(-32));
            Self(_mm512_cvtepi32_ps(bits))
        }
    }

    /// Itself, and `x` more where a bit of `places` is set.
    #[inline(always)]
    pub(crate) fn plus_where(self, places: u16, x: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_mask_add_ps(self.0, places, self.0, x.0) })
    }

    /// Itself, and `x` more where this bit of a byte is set.
    #[inline(always)]
    pub(crate) fn plus_where_bit(self, bytes: &[u8; LANES], bit: u32, x: Self) -> Self {
        // SAFETY: as above; 16 bytes are read.
        let places = unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            _mm512_test_epi32_mask(bytes, _mm512_set1_epi32(1 << bit))
        };
        self.plus_where(places, x)
    }

    /// What bytes have from a bit on, as whole numbers.
    #[inline(always)]
    fn from_bit(bytes: &[u8; LANES], shift: u32) -> __m512i {
        // SAFETY: as above; 16 bytes are read.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            _mm512_srlv_epi32(bytes, _mm512_set1_epi32(shift.cast_signed()))
        }
    }

    /// A number and those that follow it by one.
    #[inline(always)]
    fn counted_from(first: f32) -> Self {
        Self::load(&std::array::from_fn(|i| first + i as f32))
    }

    /// Of all sixteen numbers that a nibble can stand for, those that nibbles name.
    #[inline(always)]
    fn named(self, bytes: &[u8; LANES], shift: u32) -> Self {
        // SAFETY: as above. Of a place in the table the lowest four bits count.
        Self(unsafe { _mm512_permutexvar_ps(Self::from_bit(bytes, shift), self.0) })
    }
}

/// The f16 numbers in front of some blocks.
pub(crate) fn halves_in_front<const SIZE: usize, const COUNT: usize>(
    blocks: &[[u8; SIZE]],
    heads: &mut [[f32; COUNT]],
) {
    const { assert!(SIZE >= 4 && (COUNT == 1 || COUNT == 2), "one or two numbers in four bytes") };
    for (blocks, heads) in blocks.chunks(LANES).zip(heads.chunks_mut(LANES)) {
        let heads = heads[..blocks.len()].as_flattened_mut();
        // SAFETY: as above. Four bytes at the beginning of each block are read, and none for blocks that are not there;
        // so many numbers are written as there are heads, 32 at the most.
        unsafe {
            let places: [i32; LANES] = std::array::from_fn(|i| (i * SIZE) as i32);
            let (places, there) = (_mm512_loadu_si512(places.as_ptr().cast()), !0u16 >> (LANES - blocks.len()));
            let pairs = _mm512_mask_i32gather_epi32::<1>(_mm512_setzero_si512(), there, places, blocks.as_ptr().cast());
            if COUNT == 1 {
                _mm512_mask_storeu_ps(heads.as_mut_ptr(), there, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)));
            } else {
                let (low, high) = (_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64::<1>(pairs));
                let numbers = !0u32 >> (2 * LANES - heads.len());
                _mm512_mask_storeu_ps(heads.as_mut_ptr(), numbers as u16, _mm512_cvtph_ps(low));
                let second = heads.as_mut_ptr().wrapping_add(LANES);
                _mm512_mask_storeu_ps(second, (numbers >> LANES) as u16, _mm512_cvtph_ps(high));
            }
        }
    }
}
