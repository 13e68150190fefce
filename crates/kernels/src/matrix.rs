//! Frozen matrices in the format in which they were stored; numbers become f32 a block at a time, inside the products.

use crate::StorageType;
use crate::bf16::{Format, Packed, Units};
use crate::cpu::{self, View, rows_of};
#[cfg(feature = "cuda")]
use crate::cuda::{DeviceMatrix, Gpu};
use crate::quantised::{self, Quantised, of_blocks};
use candle_core::quantized::{GgmlType, k_quants};
use candle_core::{Result, bail};
use half::{bf16, f16};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Numbers made f32 at a time: a block of rows stays in cache between its conversion and its product.
const BLOCK_NUMBERS: usize = 1 << 19;

enum Storage {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Quantised(Box<dyn Quantised>),
    Q2K(Vec<k_quants::BlockQ2K>),
    Q3K(Vec<k_quants::BlockQ3K>),
    /// Rounded for faster products: W^T for the forward pass, and W as bf16 once a backward pass asks for it.
    Packed {
        forward: Packed,
        backward: OnceLock<Packed>,
    },
}

/// A frozen matrix `[rows, cols]`, row-major, in its storage format.
pub struct Matrix {
    storage: Storage,
    storage_type: StorageType,
    rows: usize,
    cols: usize,
    #[cfg(feature = "cuda")]
    on_gpu: OnceLock<DeviceMatrix>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix[{}, {}] {:?}", self.rows, self.cols, self.storage_type)
    }
}

/// Copies little-endian bytes into values of a plain type for which every bit pattern is valid.
fn copy_as<T: Clone>(bytes: &[u8]) -> Vec<T> {
    let count = bytes.len() / size_of::<T>();
    let mut values: Vec<T> = Vec::with_capacity(count);
    // SAFETY: the vector owns room for `count` values; `T` is one of the integer, float or block types of
    // this file, plain data without padding for which every bit pattern is a value.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast::<u8>(), count * size_of::<T>());
        values.set_len(count);
    }
    values
}

impl Matrix {
    /// A matrix from stored bytes.
    ///
    /// # Errors
    /// When `cols` is no multiple of the format's block, or the byte count is not that of `[rows, cols]`.
    pub fn new(storage_type: StorageType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self> {
        if cols == 0 || rows == 0 || !cols.is_multiple_of(storage_type.block_size()) {
            bail!(
                "{storage_type:?} matrix [{rows}, {cols}]: rows of {} numbers are stored together",
                storage_type.block_size()
            );
        }
        let blocks = cols / storage_type.block_size();
        let expected = blocks.checked_mul(storage_type.type_size()).and_then(|row| row.checked_mul(rows));
        if expected != Some(bytes.len()) {
            bail!("{storage_type:?} matrix [{rows}, {cols}]: expected {expected:?} bytes, found {}", bytes.len());
        }
        let storage = match storage_type {
            StorageType::F32 => Storage::F32(copy_as(bytes)),
            StorageType::F16 => Storage::F16(copy_as(bytes)),
            StorageType::BF16 => Storage::BF16(copy_as(bytes)),
            StorageType::Q4_0 => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q4_0>() }>(bytes, blocks)),
            StorageType::Q4_1 => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q4_1>() }>(bytes, blocks)),
            StorageType::Q5_0 => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q5_0>() }>(bytes, blocks)),
            StorageType::Q5_1 => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q5_1>() }>(bytes, blocks)),
            StorageType::Q8_0 => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q8_0>() }>(bytes, blocks)),
            StorageType::Q4_K => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q4K>() }>(bytes, blocks)),
            StorageType::Q5_K => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q5K>() }>(bytes, blocks)),
            StorageType::Q6_K => Storage::Quantised(of_blocks::<{ size_of::<quantised::Q6K>() }>(bytes, blocks)),
            StorageType::Q2_K => Storage::Q2K(copy_as(bytes)),
            StorageType::Q3_K => Storage::Q3K(copy_as(bytes)),
        };
        Ok(Self::of(storage, storage_type, rows, cols))
    }

    fn of(storage: Storage, storage_type: StorageType, rows: usize, cols: usize) -> Self {
        Self {
            storage,
            storage_type,
            rows,
            cols,
            #[cfg(feature = "cuda")]
            on_gpu: OnceLock::new(),
        }
    }

    /// Its copy on the GPU, made when it is first asked for.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, gpu: &Gpu) -> Result<&DeviceMatrix> {
        if let Some(matrix) = self.on_gpu.get() {
            return Ok(matrix);
        }
        if self.packed().is_some_and(|packed| packed.format() == Format::Int8) {
            bail!("{self:?} in eight bits: there are such products on the CPU alone");
        }
        let matrix = DeviceMatrix::new(gpu, &self.to_f32(), self.packed().is_some())?;
        Ok(self.on_gpu.get_or_init(|| matrix))
    }

    /// A matrix of f32 values.
    ///
    /// # Errors
    /// When there are not `rows * cols` values.
    pub fn from_f32(values: Vec<f32>, rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) || values.is_empty() {
            bail!("f32 matrix [{rows}, {cols}]: found {} numbers", values.len());
        }
        Ok(Self::of(Storage::F32(values), StorageType::F32, rows, cols))
    }

    /// The same numbers rounded to bf16, packed for products of bf16 numbers with f32 sums: the other operand is
    /// rounded to bf16 on its way in. Twice the rate of f32 products and more on a CPU with units for it.
    pub fn to_bf16(&self) -> Self {
        let (rows, cols) = (self.rows, self.cols);
        let forward = Packed::new(&self.to_f32(), (cols, rows), |i, j| j * cols + i);
        let storage = Storage::Packed { forward, backward: OnceLock::new() };
        Self::of(storage, StorageType::BF16, rows, cols)
    }

    /// The same numbers rounded to eight bits for products of whole numbers: each 64 summands and more are turned by a
    /// Hadamard matrix, then every row of the matrix has a scale of its own, and so has, on its way in, every row of the
    /// other operand. Twice the rate of bf16 on a CPU with units for it (AVX-512-VNNI, AMX).
    ///
    /// # Errors
    /// When there are so many columns that a sum could pass 32 bits.
    pub fn to_int8(&self) -> Result<Self> {
        const MOST: usize = i32::MAX as usize / (255 * 127);
        if self.cols > MOST {
            bail!("{self:?}: sums of eight-bit products hold at most {MOST} columns");
        }
        let forward = Packed::int8(&self.to_f32(), (self.cols, self.rows));
        let storage = Storage::Packed { forward, backward: OnceLock::new() };
        Ok(Self::of(storage, StorageType::BF16, self.rows, self.cols))
    }

    /// W^T as it is packed for faster products, where it is.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        match &self.storage {
            Storage::Packed { forward, .. } => Some(forward),
            _ => None,
        }
    }

    /// As [`Self::packed`], where it is of bf16 numbers.
    pub(crate) fn packed_bf16(&self) -> Option<&Packed> {
        self.packed().filter(|packed| packed.format() == Format::Bf16)
    }

    /// Number of rows (output features).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The storage format.
    pub fn storage_type(&self) -> StorageType {
        self.storage_type
    }

    /// Row `i` as f32, `[cols]`.
    ///
    /// # Panics
    /// When `i` or the length of `out` is out of range.
    pub fn dequantise_row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.cols, "row {i} of {self:?} into {} numbers", out.len());
        let blocks = self.cols / self.storage_type.block_size();
        let range = i * blocks..(i + 1) * blocks;
        match &self.storage {
            Storage::F32(v) => out.copy_from_slice(&v[range]),
            Storage::F16(v) => v[range].iter().zip(out).for_each(|(x, y)| *y = x.to_f32()),
            Storage::BF16(v) => v[range].iter().zip(out).for_each(|(x, y)| *y = x.to_f32()),
            Storage::Quantised(rows) => rows.write(i, out),
            Storage::Q2K(v) => GgmlType::to_float(&v[range], out),
            Storage::Q3K(v) => GgmlType::to_float(&v[range], out),
            Storage::Packed { forward, .. } => forward.column(i, out),
        }
    }

    /// All numbers as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.rows * self.cols];
        values.par_chunks_mut(self.cols).enumerate().for_each(|(i, row)| self.dequantise_row(i, row));
        values
    }

    /// Runs `f` over blocks of consecutive rows, in order.
    pub(crate) fn for_blocks(&self, mut f: impl FnMut(Block<'_>)) {
        let block_rows = (BLOCK_NUMBERS / self.cols).max(1).next_multiple_of(crate::bf16::BLOCK);
        let (cols, mut scratch) = (self.cols, Vec::new());
        for first in (0..self.rows).step_by(block_rows) {
            let rows = block_rows.min(self.rows - first);
            let numbers = match &self.storage {
                Storage::F32(v) => Numbers::F32(&v[first * cols..(first + rows) * cols]),
                Storage::Packed { forward, .. } => Numbers::Packed(self, forward),
                _ => {
                    scratch.resize(rows * cols, 0f32);
                    scratch.par_chunks_mut(16 * cols).enumerate().for_each(|(c, chunk)| {
                        for (r, row) in chunk.chunks_mut(cols).enumerate() {
                            self.dequantise_row(first + c * 16 + r, row);
                        }
                    });
                    Numbers::F32(&scratch)
                }
            };
            f(Block { first, rows, cols, numbers });
        }
    }

    /// `y = x W^T`: `[t, cols] -> [t, rows]`.
    pub(crate) fn forward(&self, x: &[f32], t: usize) -> Vec<f32> {
        assert_eq!(x.len(), t * self.cols, "{self:?}: rows of input");
        if t == 0 {
            return Vec::new();
        }
        if t <= self.few_rows() {
            let mut y = vec![0f32; t * self.rows];
            self.forward_few(x, t, &mut y);
            return y;
        }
        let mut y = Vec::with_capacity(t * self.rows);
        let whole = |numbers| Block { first: 0, rows: self.rows, cols: self.cols, numbers };
        match &self.storage {
            Storage::Packed { forward, .. } => {
                whole(Numbers::Packed(self, forward)).forward(x, t, y.spare_capacity_mut(), self.rows);
            }
            _ => self.for_blocks(|block| {
                block.forward(x, t, &mut y.spare_capacity_mut()[block.first..], self.rows);
            }),
        }
        // SAFETY: the blocks are all rows of the matrix, and each wrote its columns of every row of `y`; a matrix has
        // at least one row and one column.
        unsafe { y.set_len(t * self.rows) };
        y
    }

    /// Up to so many rows of input, one pass over the weights as they are stored is fastest.
    fn few_rows(&self) -> usize {
        match &self.storage {
            Storage::Quantised(rows) => rows.few_rows(),
            Storage::Packed { .. } => 0,
            _ => quantised::FEW_ROWS,
        }
    }

    fn forward_few(&self, x: &[f32], t: usize, y: &mut [f32]) {
        // [rows, t], transposed at the end: a thread owns whole rows of it.
        let mut by_row = vec![0f32; self.rows * t];
        match &self.storage {
            Storage::Quantised(rows) => rows.dots(x, t, &mut by_row),
            _ => by_row.par_chunks_mut(64 * t).enumerate().for_each(|(chunk, out)| {
                let mut row = vec![0f32; self.cols];
                for (r, out) in out.chunks_mut(t).enumerate() {
                    self.dequantise_row(chunk * 64 + r, &mut row);
                    out.iter_mut().zip(x.chunks(self.cols)).for_each(|(out, x)| *out = cpu::dot(&row, x));
                }
            }),
        }
        for (r, values) in by_row.chunks(t).enumerate() {
            for (i, value) in values.iter().enumerate() {
                y[i * self.rows + r] = *value;
            }
        }
    }

    /// `dx = dy W`: `[t, rows] -> [t, cols]`.
    pub(crate) fn backward(&self, dy: &[f32], t: usize) -> Vec<f32> {
        assert_eq!(dy.len(), t * self.rows, "{self:?}: rows of gradient");
        let mut dx = Vec::with_capacity(t * self.cols);
        if let Storage::Packed { .. } = &self.storage {
            let (sums, columns) = (0..self.rows, 0..self.cols);
            // SAFETY: nothing is kept, so that nothing is read.
            unsafe {
                self.packed_backward().product(
                    Units::best(Format::Bf16),
                    dy,
                    (sums, columns),
                    dx.spare_capacity_mut(),
                    self.cols,
                    false,
                );
            }
        } else {
            self.for_blocks(|block| {
                let Numbers::F32(numbers) = block.numbers else { unreachable!("packed matrices are handled above") };
                let shape = (t, self.cols, block.rows);
                let dy = View { values: &dy[block.first..], row_stride: self.rows, col_stride: 1 };
                let dx = dx.spare_capacity_mut();
                // SAFETY: the first block has written what the others add to.
                unsafe { cpu::product(dx, self.cols, shape, dy, rows_of(numbers, self.cols), block.first > 0) };
            });
        }
        // SAFETY: the product wrote every column of every row; a matrix has at least one row to sum over.
        unsafe { dx.set_len(t * self.cols) };
        dx
    }

    /// W as it is packed for the gradient of rows; asked of packed matrices alone.
    pub(crate) fn packed_backward(&self) -> &Packed {
        let Storage::Packed { backward, .. } = &self.storage else { unreachable!("asked of packed matrices alone") };
        if let Some(packed) = backward.get() {
            return packed;
        }
        // Made outside of the lock: the threads that share the work may be taken by a step that waits for the same packing.
        let cols = self.cols;
        let packed = Packed::new(&self.to_f32(), (self.rows, cols), |i, j| i * cols + j);
        backward.get_or_init(|| packed)
    }
}

/// The numbers of a block of rows.
enum Numbers<'a> {
    F32(&'a [f32]),
    Packed(&'a Matrix, &'a Packed),
}

/// Some consecutive rows of a matrix, ready for products.
pub(crate) struct Block<'a> {
    /// Number of its first row in the matrix.
    pub(crate) first: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    cols: usize,
    numbers: Numbers<'a>,
}

impl Block<'_> {
    /// `y = x W^T`: `[t, cols] -> [t, rows]`; row i of `y` starts at `i * y_stride`.
    pub(crate) fn forward(&self, x: &[f32], t: usize, y: &mut [MaybeUninit<f32>], y_stride: usize) {
        match self.numbers {
            Numbers::F32(numbers) => {
                let shape = (t, self.rows, self.cols);
                cpu::gemm_into(y, y_stride, shape, rows_of(x, self.cols), cpu::transposed(numbers, self.cols));
            }
            Numbers::Packed(_, packed) => {
                let (units, columns) = (Units::best(packed.format()), self.first..self.first + self.rows);
                // SAFETY: nothing is kept, so that nothing is read.
                unsafe { packed.product(units, x, (0..self.cols, columns), y, y_stride, false) };
            }
        }
    }

    /// `dx += dy W`: `[t, rows] -> [t, cols]`.
    pub(crate) fn add_backward(&self, dy: &[f32], t: usize, dx: &mut [f32]) {
        match self.numbers {
            Numbers::F32(numbers) => {
                let shape = (t, self.cols, self.rows);
                cpu::gemm(dx, self.cols, shape, rows_of(dy, self.rows), rows_of(numbers, self.cols), true);
            }
            Numbers::Packed(matrix, _) => {
                let rows = self.first..self.first + self.rows;
                // SAFETY: `dx` was a slice of numbers, and a product writes numbers only.
                unsafe {
                    let dx = cpu::as_uninit(dx);
                    let units = Units::best(Format::Bf16);
                    matrix.packed_backward().product(units, dy, (rows, 0..self.cols), dx, self.cols, true);
                }
            }
        }
    }
}
