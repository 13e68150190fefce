//! A matrix of quantised blocks, as the machine at hand multiplies it fastest.

#[cfg(target_arch = "x86_64")]
use super::interleaved::{self, Interleave};
use super::{AT_ONCE, Block, PART, dots, write};
use rayon::prelude::*;

/// Formats whose blocks can lie side by side, where there are units for their products.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) trait Interleave: Block {}
#[cfg(not(target_arch = "x86_64"))]
impl<B: Block> Interleave for B {}

/// Rows of input that rows of blocks one after the other are multiplied with at a time.
pub(crate) const FEW_ROWS: usize = 8;
/// Up to so many rows of input, products of bits are faster than turning weights into f32 for a product of those.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS_OF_BITS: usize = 48;

/// A matrix of rows of quantised blocks.
pub(crate) trait Quantised: Send + Sync {
    /// The numbers of row `i`.
    fn write(&self, i: usize, out: &mut [f32]);

    /// Up to how many rows of input [`Self::dots`] is faster than a product of f32 numbers.
    fn few_rows(&self) -> usize;

    /// Products of all rows with `t` rows of `x`, at most [`Self::few_rows`], `[rows, t]`.
    fn dots(&self, x: &[f32], t: usize, out: &mut [f32]);
}

/// From rows of so many blocks of SIZE bytes each.
pub(crate) fn of_blocks<const SIZE: usize>(bytes: &[u8], of_row: usize) -> Box<dyn Quantised>
where
    [u8; SIZE]: Interleave,
{
    Box::new(Rows::<SIZE>::new(bytes, of_row))
}

/// Rows of blocks of so many bytes.
struct Rows<const SIZE: usize> {
    blocks: Vec<[u8; SIZE]>,
    /// Blocks of a row.
    of_row: usize,
    /// Whether sixteen rows lie side by side.
    #[cfg(target_arch = "x86_64")]
    interleaved: bool,
}

impl<const SIZE: usize> Rows<SIZE>
where
    [u8; SIZE]: Interleave,
{
    fn new(bytes: &[u8], of_row: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if interleaved::has_units() {
            return Self { blocks: interleaved::interleave(bytes, of_row), of_row, interleaved: true };
        }
        Self::one_by_one(bytes, of_row)
    }

    fn one_by_one(bytes: &[u8], of_row: usize) -> Self {
        let blocks = bytes.as_chunks().0.to_vec();
        Self {
            blocks,
            of_row,
            #[cfg(target_arch = "x86_64")]
            interleaved: false,
        }
    }
}

impl<const SIZE: usize> Quantised for Rows<SIZE>
where
    [u8; SIZE]: Interleave,
{
    fn write(&self, i: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.interleaved {
            let mut some = [[0u8; SIZE]; AT_ONCE];
            let numbers = <[u8; SIZE]>::PARTS * PART;
            for (first, out) in (0..self.of_row).step_by(AT_ONCE).zip(out.chunks_mut(AT_ONCE * numbers)) {
                let some = &mut some[..out.len() / numbers];
                let each = some.iter_mut().enumerate();
                each.for_each(|(at, block)| *block = interleaved::block(&self.blocks, self.of_row, i, first + at));
                write(some, out);
            }
            return;
        }
        write(&self.blocks[i * self.of_row..(i + 1) * self.of_row], out);
    }

    fn few_rows(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.interleaved {
            return FEW_ROWS_OF_BITS;
        }
        FEW_ROWS
    }

    fn dots(&self, x: &[f32], t: usize, out: &mut [f32]) {
        const ROWS: usize = 64;
        assert_eq!(x.len(), t * self.of_row * <[u8; SIZE]>::PARTS * PART, "product: numbers of {t} rows");
        assert!(out.len().is_multiple_of(t) && out.len() / t * self.of_row <= self.blocks.len(), "product: outputs");
        let each = out.par_chunks_mut(ROWS * t).zip(self.blocks.par_chunks(ROWS * self.of_row));
        #[cfg(target_arch = "x86_64")]
        if self.interleaved {
            let x = interleaved::pieces::<[u8; SIZE]>(x);
            each.for_each(|(out, rows)| interleaved::dots(rows, self.of_row, &x, t, out));
            return;
        }
        each.for_each(|(out, rows)| dots(rows, self.of_row, x, t, out));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    use super::*;
    use half::f16;
    use rand::Rng;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// Blocks of random bytes, but for f16 numbers of ordinary size where a format has such.
    fn random_blocks<const SIZE: usize>(rng: &mut ChaCha8Rng, count: usize, halves: &[usize]) -> Vec<u8> {
        let mut bytes = vec![0u8; count * SIZE];
        rng.fill(bytes.as_mut_slice());
        // All bits of some blocks are set, and of Q8_0 some numbers are the least.
        bytes.chunks_mut(SIZE).step_by(7).for_each(|block| block.fill(0xff));
        bytes.chunks_mut(SIZE).skip(1).step_by(7).for_each(|block| block.fill(0x80));
        for block in bytes.as_chunks_mut::<SIZE>().0 {
            for at in halves {
                block[*at..at + 2].copy_from_slice(&f16::from_f32(rng.random_range(-0.01..0.01)).to_le_bytes());
            }
        }
        bytes
    }

    /// Either way of lying gives the numbers of the other, and products as near to exact ones as f32 sums are; a row of input
    /// has the same products in any company.
    fn either_way<const SIZE: usize>(rows: usize, halves: &[usize])
    where
        [u8; SIZE]: Interleave,
    {
        const MOST: usize = 19;
        let (mut rng, blocks) = (ChaCha8Rng::seed_from_u64(SIZE as u64), 21);
        let bytes = random_blocks::<SIZE>(&mut rng, rows * blocks, halves);
        let cols = blocks * <[u8; SIZE]>::PARTS * PART;
        let mut x: Vec<f32> = (0..MOST * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        x[..PART].fill(1.0);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let ways = [Rows::<SIZE>::new(&bytes, blocks), Rows::one_by_one(&bytes, blocks)];
        let mut numbers = vec![0f32; rows * cols];
        numbers.chunks_mut(cols).enumerate().for_each(|(i, row)| ways[1].write(i, row));
        for way in &ways {
            let mut row = vec![0f32; cols];
            for (i, expected) in numbers.chunks(cols).enumerate() {
                way.write(i, &mut row);
                assert_eq!(bits(&row), bits(expected), "{SIZE} bytes, row {i}");
            }
            let most = way.few_rows().min(MOST);
            let mut together = vec![0f32; rows * most];
            way.dots(&x[..most * cols], most, &mut together);
            for t in 1..most {
                let mut some = vec![0f32; rows * t];
                way.dots(&x[..t * cols], t, &mut some);
                for (some, all) in some.chunks(t).zip(together.chunks(most)) {
                    assert_eq!(bits(some), bits(&all[..t]), "{SIZE} bytes, {t} rows");
                }
            }
            for (row, found) in numbers.chunks(cols).zip(together.chunks(most)) {
                for (x, found) in x.chunks(cols).zip(found) {
                    let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    // Some roundings of each term and of the sums; what is added to a block's numbers may cancel them.
                    assert!((f64::from(*found) - sum).abs() <= 2e-6 * size, "{SIZE} bytes: {found}, expected {sum}");
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_numbers_whichever_way_rows_lie() {
        either_way::<{ size_of::<Q4_0>() }>(83, &[0]);
        either_way::<{ size_of::<Q4_1>() }>(64, &[0, 2]);
        either_way::<{ size_of::<Q5_0>() }>(16, &[0]);
        either_way::<{ size_of::<Q5_1>() }>(1, &[0, 2]);
        either_way::<{ size_of::<Q8_0>() }>(33, &[0]);
        either_way::<{ size_of::<Q4K>() }>(5, &[0, 2]);
        either_way::<{ size_of::<Q5K>() }>(130, &[0, 2]);
        either_way::<{ size_of::<Q6K>() }>(20, &[208]);
    }

    /// Q4_1 of ones, but for the first of each row, which is zero.
    fn ones() -> [Rows<20>; 2] {
        let mut block = [0x11; 20];
        block[..5].copy_from_slice(&[0, 0x3c, 0, 0, 0x10]);
        let bytes = block.repeat(16);
        [Rows::new(&bytes, 1), Rows::one_by_one(&bytes, 1)]
    }

    fn product(rows: &Rows<20>, x: &[f32; 32]) -> f32 {
        let mut out = [0f32; 16];
        rows.dots(x, 1, &mut out);
        assert!(out.iter().all(|y| y.to_bits() == out[0].to_bits()));
        out[0]
    }

    /// From 1e-30 on numbers keep their precision, and what is no finite number stays none.
    #[test]
    fn input_of_any_size_is_multiplied() {
        for rows in &ones() {
            for size in [1e-30, 1.0, 1e35] {
                assert!((product(rows, &[size; 32]) / size - 31.0).abs() < 1e-5, "{size}");
                let mut alone = [0f32; 32];
                alone[17] = -size;
                assert!((product(rows, &alone) / size + 1.0).abs() < 1e-6, "{size}");
            }
            assert_eq!(product(rows, &[0.0; 32]), 0.0);
            for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1f32; 32];
                x[9] = strange;
                assert!(!product(rows, &x).is_finite());
            }
        }
    }

    /// Beside a large number that meets a zero, small ones are off by what one rounding of the large one is.
    #[test]
    fn small_numbers_beside_a_large_one_keep_its_precision() {
        for rows in &ones() {
            let mut x = [0.3f32; 32];
            x[0] = 1e4;
            assert!((product(rows, &x) - 31.0 * 0.3).abs() <= 31.0 * 1e4 / (1 << 24) as f32);
        }
    }
}
