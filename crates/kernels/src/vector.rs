//! Sixteen f32 numbers side by side: one register where the program is compiled for AVX-512, else an array, whose loops
//! the compiler turns into narrower registers. Where the machine has fused multiply-adds both give the same bits.

#[cfg(not(target_feature = "avx512f"))]
pub(crate) use array::Vector;
#[cfg(target_feature = "avx512f")]
pub(crate) use register::Vector;

/// Numbers of a [`Vector`].
pub(crate) const LANES: usize = 16;

#[cfg(target_feature = "avx512f")]
mod register {
    use super::LANES;
    use std::arch::x86_64::{__m512, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};

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
    }
}

#[cfg(not(target_feature = "avx512f"))]
mod array {
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
    }
}
