//! Sixteen f32 numbers side by side: one register where the program is compiled for AVX-512, else an array, whose loops
//! the compiler turns into narrower registers. Where the machine has fused multiply-adds both give the same bits.

#[cfg(not(target_feature = "avx512f"))]
pub(crate) use array::{Vector, halves_in_front};
#[cfg(target_feature = "avx512f")]
pub(crate) use register::{Vector, halves_in_front};

/// Numbers of a [`Vector`].
pub(crate) const LANES: usize = 16;

/// Asks for the cache line of an address, which need not be one of ours.
#[inline(always)]
pub(crate) fn fetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing and does not fail.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(target_feature = "avx512f")]
mod register;

#[cfg(not(target_feature = "avx512f"))]
mod array;

#[cfg(test)]
mod tests {
    use super::{LANES, Vector};

    #[test]
    fn rows_become_columns_and_sums_of_four_are_those_of_each() {
        let number = |row: usize, column: usize| (row * LANES + column) as f32 + 0.3;
        let vector = |row: usize| Vector::load(&std::array::from_fn(|column| number(row, column)));
        let rows: [Vector; LANES] = std::array::from_fn(vector);
        for (column, found) in Vector::transposed(rows).into_iter().enumerate() {
            let mut numbers = [0f32; LANES];
            found.store(&mut numbers);
            assert_eq!(numbers, std::array::from_fn(|row| number(row, column)));
        }
        let four = [rows[0], rows[3], rows[7], rows[15]];
        assert_eq!(Vector::sums(four).map(f32::to_bits), four.map(|vector| vector.sum().to_bits()));
    }
}
