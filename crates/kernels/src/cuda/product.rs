//! Matrix products by cuBLAS.

use super::{Gpu, Pointer};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{Result, bail};
use std::ffi::c_void;

/// What the operands of a product are, and what it is computed in. Sums are f32 throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32.
    F32,
    /// f32, rounded to 10 bits of mantissa on the way in.
    Tf32,
    /// bf16.
    Bf16,
}

/// A row-major matrix on the GPU, rows `stride` numbers apart, as it is or transposed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat {
    pointer: Pointer,
    stride: usize,
    transposed: bool,
}

impl Mat {
    pub(crate) fn rows(pointer: Pointer, stride: usize) -> Self {
        Self { pointer, stride, transposed: false }
    }

    pub(crate) fn transposed(pointer: Pointer, stride: usize) -> Self {
        Self { pointer, stride, transposed: true }
    }
}

/// `c = alpha a b`, or added to `c`: `[m, k] x [k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) mnk: (usize, usize, usize),
    pub(crate) a: Mat,
    pub(crate) b: Mat,
    /// Row-major, of f32 or, where it `rounds`, of bf16.
    pub(crate) c: Pointer,
    /// How many numbers apart its rows are.
    pub(crate) c_stride: usize,
    pub(crate) rounds: bool,
    pub(crate) alpha: f32,
    pub(crate) add: bool,
    pub(crate) precision: Precision,
}

impl Product {
    /// `c = a b` in this precision, f32, its rows one behind the other.
    pub(crate) fn new(precision: Precision, mnk: (usize, usize, usize), a: Mat, b: Mat, c: Pointer) -> Self {
        Self { mnk, a, b, c, c_stride: mnk.1, rounds: false, alpha: 1.0, add: false, precision }
    }

    /// # Safety
    /// The pointers lead to matrices of these sizes, of numbers of the precision.
    pub(crate) unsafe fn run(self, gpu: &Gpu) -> Result<()> {
        let (m, n, k) = self.mnk;
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            if self.add {
                return Ok(());
            }
            if self.rounds || self.c_stride != n {
                bail!("product: {:?} has no summands", self.mnk);
            }
            // SAFETY: as the caller says: `c` leads to so many numbers.
            return unsafe { gpu.clear(self.c, m * n) };
        }
        let int = |x: usize| i32::try_from(x);
        let (Ok(m), Ok(n), Ok(k)) = (int(m), int(n), int(k)) else { bail!("product: {:?} is too large", self.mnk) };
        let (Ok(a_stride), Ok(b_stride), Ok(c_stride)) = (int(self.a.stride), int(self.b.stride), int(self.c_stride))
        else {
            let [a, b, c] = [self.a.stride, self.b.stride, self.c_stride];
            bail!("product: rows of {a}, {b} and {c} numbers are too long");
        };
        // cuBLAS is column-major, where a row-major matrix is its own transpose: c^T = b^T a^T.
        let operation = |mat: Mat| {
            if mat.transposed { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
        };
        let (kind, compute) = match self.precision {
            Precision::F32 => (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
            Precision::Tf32 => {
                (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32)
            }
            Precision::Bf16 => (sys::cudaDataType_t::CUDA_R_16BF, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        };
        let (alpha, beta) = (self.alpha, f32::from(u8::from(self.add)));
        gpu.stream.context().bind_to_thread().w()?;
        // SAFETY: the handle is the device's own; for the matrices the caller answers.
        unsafe {
            result::gemm_ex(
                *gpu.device.cublas_handle().handle(),
                operation(self.b),
                operation(self.a),
                n,
                m,
                k,
                (&raw const alpha).cast::<c_void>(),
                self.b.pointer as *const c_void,
                kind,
                b_stride,
                self.a.pointer as *const c_void,
                kind,
                a_stride,
                (&raw const beta).cast::<c_void>(),
                self.c as *mut c_void,
                if self.rounds { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_32F },
                c_stride,
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}
