//! Frozen weights on the GPU.

use super::pointwise::to_bf16;
use super::{Gpu, Mat, Pointer, Precision, Product};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use half::bf16;

/// A frozen matrix `[rows, cols]` on the GPU: bf16 where it is packed for products of bf16 numbers, f32 else.
pub(crate) enum DeviceMatrix {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

impl DeviceMatrix {
    pub(crate) fn new(gpu: &Gpu, numbers: &[f32], as_bf16: bool) -> Result<Self> {
        if as_bf16 {
            let rounded: Vec<bf16> = numbers.iter().map(|x| bf16::from_f32(*x)).collect();
            return Ok(Self::Bf16(gpu.upload(&rounded)?));
        }
        Ok(Self::F32(gpu.upload(numbers)?))
    }

    pub(crate) fn pointer(&self, gpu: &Gpu) -> Pointer {
        match self {
            Self::F32(numbers) => gpu.pointer(numbers),
            Self::Bf16(numbers) => gpu.pointer(numbers),
        }
    }

    pub(crate) fn is_bf16(&self) -> bool {
        matches!(self, Self::Bf16(_))
    }

    /// What products with it are computed in.
    pub(crate) fn precision(&self) -> Precision {
        if self.is_bf16() { Precision::Bf16 } else { Precision::F32 }
    }

    /// What products of a low-rank update beside it are computed in, outside of groups: its operands are f32.
    pub(crate) fn update_precision(&self) -> Precision {
        if self.is_bf16() { Precision::Tf32 } else { Precision::F32 }
    }

    /// `x` in the format of the products, for [`Self::product`].
    ///
    /// # Safety
    /// `x` leads to `count` numbers.
    unsafe fn rounded(&self, gpu: &Gpu, x: Pointer, count: usize) -> Result<(Pointer, Option<CudaSlice<bf16>>)> {
        if !self.is_bf16() {
            return Ok((x, None));
        }
        // SAFETY: as the caller says.
        let rounded = unsafe { to_bf16(gpu, x, count)? };
        Ok((gpu.pointer(&rounded), Some(rounded)))
    }

    /// `y = x W^T`, or added to `y`: `[t, cols] -> [t, rows]`; `x` in the format of the products.
    ///
    /// # Safety
    /// `x` and `y` lead to as many numbers, and the matrix is of `(rows, cols)`.
    pub(crate) unsafe fn product(
        &self,
        gpu: &Gpu,
        (x, y): (Pointer, Pointer),
        (t, rows, cols): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        let (a, b) = (Mat::rows(x, cols), Mat::transposed(self.pointer(gpu), cols));
        let product = Product::new(self.precision(), (t, rows, cols), a, b, y);
        // SAFETY: as the caller says.
        unsafe { Product { add, ..product }.run(gpu) }
    }

    /// `x W^T` for f32 rows.
    ///
    /// # Safety
    /// `x` leads to `[t, cols]` numbers, and the matrix is of `(rows, cols)`.
    pub(crate) unsafe fn forward(
        &self,
        gpu: &Gpu,
        x: Pointer,
        (t, rows, cols): (usize, usize, usize),
    ) -> Result<CudaSlice<f32>> {
        let y = gpu.alloc(t * rows)?;
        // SAFETY: as the caller says; `y` was made of its size.
        unsafe {
            let (x, _kept) = self.rounded(gpu, x, t * cols)?;
            self.product(gpu, (x, gpu.pointer(&y)), (t, rows, cols), false)?;
        }
        Ok(y)
    }

    /// `dy W`: `[t, rows] -> [t, cols]` for f32 rows.
    ///
    /// # Safety
    /// `dy` leads to `[t, rows]` numbers, and the matrix is of `(rows, cols)`.
    pub(crate) unsafe fn backward(
        &self,
        gpu: &Gpu,
        dy: Pointer,
        (t, rows, cols): (usize, usize, usize),
    ) -> Result<CudaSlice<f32>> {
        let dx = gpu.alloc(t * cols)?;
        // SAFETY: as the caller says; `dx` was made of its size.
        unsafe {
            let (dy, _kept) = self.rounded(gpu, dy, t * rows)?;
            let (a, b) = (Mat::rows(dy, rows), Mat::rows(self.pointer(gpu), cols));
            Product::new(self.precision(), (t, cols, rows), a, b, gpu.pointer(&dx)).run(gpu)?;
        }
        Ok(dx)
    }
}
