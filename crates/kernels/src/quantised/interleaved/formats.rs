//! The formats whose blocks can lie side by side: where a block's parts lie, and what bits and scales they make.

use super::{QUADS, ROWS};
use crate::quantised::{Block, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi8, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_loadu_si512, _mm512_mask_add_epi8, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_set4_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_slli_epi32, _mm512_sllv_epi32,
    _mm512_srai_epi32, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_sub_ps, _mm512_test_epi8_mask, _mm512_xor_si512,
};

/// A format whose blocks can lie side by side: of a block of each of the rows, each f16 number in turn, then each 32 bits
/// in turn.
pub(crate) trait Interleave: Block {
    /// First byte and count of a block's f16 numbers: a scale, and what is added to its numbers where there is such.
    const HALVES: (usize, usize);
    /// First byte and count of the pieces of 32 bits, which are the rest.
    const WORDS: (usize, usize);
    /// Fours of numbers in a piece.
    const QUADS: usize = QUADS;
    /// What a number's bits stand for more than the number.
    const OFFSET: i32 = 0;
    /// Whether the pieces of a block have factors of six bits, as of Q4_K.
    const HAS_FACTORS: bool = false;
    /// Bytes between what is multiplied and what is asked for meanwhile into the nearest cache.
    const AHEAD: usize = 1024;

    /// # Safety
    /// The CPU has what [`super::group`] needs; a block of each row lies at `block`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn scales(block: *const u8) -> Scales {
        if Self::HAS_FACTORS {
            // SAFETY: as the caller says.
            return unsafe { scales_of_k::<Self>(block) };
        }
        // SAFETY: as the caller says.
        let (scale, second) = unsafe { (half(block, 0), half(block, Self::HALVES.1 - 1)) };
        let minimum = (Self::HALVES.1 == 2).then_some(second);
        Scales { scale, minimum, factors: [_mm512_setzero_si512(); 4] }
    }

    /// The scale of a piece, and what is added to each of its numbers.
    ///
    /// # Safety
    /// The CPU has what [`super::group`] needs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn of_piece(scales: &Scales, piece: usize) -> (__m512, Option<__m512>) {
        if Self::HAS_FACTORS { of_piece_of_k(scales, piece) } else { (scales.scale, scales.minimum) }
    }

    /// The bits of four numbers of a piece, in bytes.
    ///
    /// # Safety
    /// As of [`Self::scales`]; the piece has such four.
    unsafe fn quad(block: *const u8, piece: usize, quad: usize) -> __m512i;
}

/// What the scales of a block's pieces are made of, of each row.
pub(crate) struct Scales {
    scale: __m512,
    minimum: Option<__m512>,
    /// Whole numbers of pieces, in bytes.
    factors: [__m512i; 4],
}

/// f16 number `i` of a block of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn half(block: *const u8, i: usize) -> __m512 {
    // SAFETY: as the caller says.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(block.add(i * 2 * ROWS).cast())) }
}

/// 32 bits `i` of a block of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn word<B: Interleave>(block: *const u8, i: usize) -> __m512i {
    // SAFETY: as the caller says.
    unsafe { _mm512_loadu_si512(block.add((B::HALVES.1 * 2 + i * 4) * ROWS).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn shifted(bits: __m512i, by: usize) -> __m512i {
    _mm512_srlv_epi32(bits, _mm512_set1_epi32(by as i32))
}

/// Four bits of each byte: the low ones or the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn nibbles(bits: __m512i, high: bool) -> __m512i {
    _mm512_and_si512(shifted(bits, 4 * usize::from(high)), _mm512_set1_epi32(0x0f0f_0f0f))
}

/// Four numbers of a block of 32 of four bits, which lie in four words from `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn four_bits<B: Interleave>(block: *const u8, first: usize, quad: usize) -> __m512i {
    // SAFETY: as the caller says.
    nibbles(unsafe { word::<B>(block, first + quad % 4) }, quad >= 4)
}

/// The same of five bits: the fifth of number `i` is bit `i` of the first word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn five_bits<B: Interleave>(block: *const u8, quad: usize) -> __m512i {
    // SAFETY: as the caller says.
    let (fifth, bits) = unsafe { (word::<B>(block, 0), four_bits::<B>(block, 1, quad)) };
    // The byte that has those of the four numbers, four times.
    let byte = _mm512_set1_epi32((quad / 2) as i32 * 0x0101_0101);
    let places = _mm512_add_epi8(_mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0), byte);
    let each = if quad.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32.cast_signed() };
    let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, places), _mm512_set1_epi32(each));
    _mm512_mask_add_epi8(bits, set, bits, _mm512_set1_epi32(0x1010_1010))
}

impl Interleave for Q4_0 {
    const HALVES: (usize, usize) = (0, 1);
    const WORDS: (usize, usize) = (2, 4);
    const OFFSET: i32 = 8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, _: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        unsafe { four_bits::<Self>(block, 0, quad) }
    }
}

impl Interleave for Q4_1 {
    const HALVES: (usize, usize) = (0, 2);
    const WORDS: (usize, usize) = (4, 4);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, _: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        unsafe { four_bits::<Self>(block, 0, quad) }
    }
}

impl Interleave for Q5_0 {
    const HALVES: (usize, usize) = (0, 1);
    const WORDS: (usize, usize) = (2, 5);
    const OFFSET: i32 = 16;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, _: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        unsafe { five_bits::<Self>(block, quad) }
    }
}

impl Interleave for Q5_1 {
    const HALVES: (usize, usize) = (0, 2);
    const WORDS: (usize, usize) = (4, 5);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, _: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        unsafe { five_bits::<Self>(block, quad) }
    }
}

impl Interleave for Q8_0 {
    const HALVES: (usize, usize) = (0, 1);
    const WORDS: (usize, usize) = (2, 8);
    const OFFSET: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, _: usize, quad: usize) -> __m512i {
        // 128 more, without a sign.
        // SAFETY: as the caller says.
        unsafe { _mm512_xor_si512(word::<Self>(block, quad), _mm512_set1_epi32(0x8080_8080_u32.cast_signed())) }
    }
}

/// Of Q4_K and Q5_K: factors of the scale in the first two of four, as [`crate::quantised`] has them, of the minimum in
/// the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn scales_of_k<B: Interleave>(block: *const u8) -> Scales {
    // SAFETY: as the caller says.
    let (scale, minimum, a, b, c) =
        unsafe { (half(block, 0), half(block, 1), word::<B>(block, 0), word::<B>(block, 1), word::<B>(block, 2)) };
    let six = |word: __m512i| _mm512_and_si512(word, _mm512_set1_epi32(0x3f3f_3f3f));
    let last = |low: __m512i, high: __m512i| {
        _mm512_or_si512(low, _mm512_and_si512(_mm512_srli_epi32::<2>(high), _mm512_set1_epi32(0x3030_3030)))
    };
    let factors = [six(a), last(nibbles(c, false), a), six(b), last(nibbles(c, true), b)];
    Scales { scale, minimum: Some(_mm512_sub_ps(_mm512_setzero_ps(), minimum)), factors }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn of_piece_of_k(scales: &Scales, piece: usize) -> (__m512, Option<__m512>) {
    let factor = |of_four: usize| {
        let byte = shifted(scales.factors[of_four + piece / 4], piece % 4 * 8);
        _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(0xff)))
    };
    (_mm512_mul_ps(scales.scale, factor(0)), scales.minimum.map(|minimum| _mm512_mul_ps(minimum, factor(2))))
}

impl Interleave for Q4K {
    const HALVES: (usize, usize) = (0, 2);
    const WORDS: (usize, usize) = (4, 35);
    const HAS_FACTORS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, piece: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        nibbles(unsafe { word::<Self>(block, 3 + piece / 2 * 8 + quad) }, piece % 2 == 1)
    }
}

impl Interleave for Q5K {
    const HALVES: (usize, usize) = (0, 2);
    const WORDS: (usize, usize) = (4, 43);
    const HAS_FACTORS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, piece: usize, quad: usize) -> __m512i {
        // SAFETY: as the caller says.
        let (fifth, bits) = unsafe { (word::<Self>(block, 3 + quad), word::<Self>(block, 11 + piece / 2 * 8 + quad)) };
        let fifth = _mm512_and_si512(shifted(fifth, piece), _mm512_set1_epi32(0x0101_0101));
        _mm512_or_si512(nibbles(bits, piece % 2 == 1), _mm512_slli_epi32::<4>(fifth))
    }
}

/// Pieces of sixteen numbers, which is what has a scale here.
impl Interleave for Q6K {
    const HALVES: (usize, usize) = (208, 1);
    const WORDS: (usize, usize) = (0, 52);
    const QUADS: usize = 4;
    const OFFSET: i32 = 32;
    // The first piece has bits from the end of the block.
    const AHEAD: usize = ROWS * size_of::<Self>();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn scales(block: *const u8) -> Scales {
        // SAFETY: as the caller says.
        let (scale, factors) = unsafe { (half(block, 0), [48, 49, 50, 51].map(|i| word::<Self>(block, i))) };
        Scales { scale, minimum: None, factors }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn of_piece(scales: &Scales, piece: usize) -> (__m512, Option<__m512>) {
        let to_front = _mm512_set1_epi32((24 - piece % 4 * 8) as i32);
        let signed = _mm512_srai_epi32::<24>(_mm512_sllv_epi32(scales.factors[piece / 4], to_front));
        (_mm512_mul_ps(scales.scale, _mm512_cvtepi32_ps(signed)), None)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn quad(block: *const u8, piece: usize, quad: usize) -> __m512i {
        // As in `Block::numbers`, whose parts are two pieces.
        let (of_half, quarter, in_part) = (piece / 8, piece / 2 % 4, piece % 2 * 4 + quad);
        let (low, high) = (of_half * 16 + quarter % 2 * 8 + in_part, 32 + of_half * 8 + in_part);
        // SAFETY: as the caller says.
        let (low, high) = unsafe { (word::<Self>(block, low), word::<Self>(block, high)) };
        let two = _mm512_and_si512(shifted(high, quarter * 2), _mm512_set1_epi32(0x0303_0303));
        _mm512_or_si512(nibbles(low, quarter >= 2), _mm512_slli_epi32::<4>(two))
    }
}
