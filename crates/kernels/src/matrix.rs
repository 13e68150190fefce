//! Frozen matrices in the format in which they were stored; numbers become f32 a block at a time, inside the products.

use crate::StorageType;
use crate::cpu::{self, View, rows_of};
use candle_core::quantized::{GgmlType, k_quants};
use candle_core::{Result, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers made f32 at a time: a block of rows stays in cache between its conversion and its product.
const BLOCK_NUMBERS: usize = 1 << 19;
/// Up to this many rows of input, one pass over the weights with each row converted in place is fastest.
const FEW_ROWS: usize = 4;

enum Storage {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Q4_0(Vec<k_quants::BlockQ4_0>),
    Q4_1(Vec<u8>),
    Q5_0(Vec<k_quants::BlockQ5_0>),
    Q5_1(Vec<k_quants::BlockQ5_1>),
    Q8_0(Vec<u8>),
    Q2K(Vec<k_quants::BlockQ2K>),
    Q3K(Vec<k_quants::BlockQ3K>),
    Q4K(Vec<k_quants::BlockQ4K>),
    Q5K(Vec<k_quants::BlockQ5K>),
    Q6K(Vec<k_quants::BlockQ6K>),
}

/// A frozen matrix `[rows, cols]`, row-major, in its storage format.
pub struct Matrix {
    storage: Storage,
    storage_type: StorageType,
    rows: usize,
    cols: usize,
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
        let expected = (cols / storage_type.block_size())
            .checked_mul(storage_type.type_size())
            .and_then(|row| row.checked_mul(rows));
        if expected != Some(bytes.len()) {
            bail!("{storage_type:?} matrix [{rows}, {cols}]: expected {expected:?} bytes, found {}", bytes.len());
        }
        let storage = match storage_type {
            StorageType::F32 => Storage::F32(copy_as(bytes)),
            StorageType::F16 => Storage::F16(copy_as(bytes)),
            StorageType::BF16 => Storage::BF16(copy_as(bytes)),
            StorageType::Q4_0 => Storage::Q4_0(copy_as(bytes)),
            StorageType::Q4_1 => Storage::Q4_1(bytes.to_vec()),
            StorageType::Q5_0 => Storage::Q5_0(copy_as(bytes)),
            StorageType::Q5_1 => Storage::Q5_1(copy_as(bytes)),
            StorageType::Q8_0 => Storage::Q8_0(bytes.to_vec()),
            StorageType::Q2_K => Storage::Q2K(copy_as(bytes)),
            StorageType::Q3_K => Storage::Q3K(copy_as(bytes)),
            StorageType::Q4_K => Storage::Q4K(copy_as(bytes)),
            StorageType::Q5_K => Storage::Q5K(copy_as(bytes)),
            StorageType::Q6_K => Storage::Q6K(copy_as(bytes)),
        };
        Ok(Self { storage, storage_type, rows, cols })
    }

    /// A matrix of f32 values.
    ///
    /// # Errors
    /// When there are not `rows * cols` values.
    pub fn from_f32(values: Vec<f32>, rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) || values.is_empty() {
            bail!("f32 matrix [{rows}, {cols}]: found {} numbers", values.len());
        }
        Ok(Self { storage: Storage::F32(values), storage_type: StorageType::F32, rows, cols })
    }

    /// The same numbers rounded to bf16, half the memory.
    ///
    /// # Errors
    /// None in practice; shapes are those of `self`.
    pub fn to_bf16(&self) -> Result<Self> {
        let mut row = vec![0f32; self.cols];
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for i in 0..self.rows {
            self.dequantise_row(i, &mut row);
            values.extend(row.iter().map(|x| bf16::from_f32(*x)));
        }
        Ok(Self { storage: Storage::BF16(values), storage_type: StorageType::BF16, rows: self.rows, cols: self.cols })
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
            Storage::Q4_1(v) => dequantise_q4_1(&v[range.start * 20..range.end * 20], out),
            Storage::Q8_0(v) => dequantise_q8_0(&v[range.start * 34..range.end * 34], out),
            Storage::Q4_0(v) => GgmlType::to_float(&v[range], out),
            Storage::Q5_0(v) => GgmlType::to_float(&v[range], out),
            Storage::Q5_1(v) => GgmlType::to_float(&v[range], out),
            Storage::Q2K(v) => GgmlType::to_float(&v[range], out),
            Storage::Q3K(v) => GgmlType::to_float(&v[range], out),
            Storage::Q4K(v) => GgmlType::to_float(&v[range], out),
            Storage::Q5K(v) => GgmlType::to_float(&v[range], out),
            Storage::Q6K(v) => GgmlType::to_float(&v[range], out),
        }
    }

    /// All numbers as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.rows * self.cols];
        values.par_chunks_mut(self.cols).enumerate().for_each(|(i, row)| self.dequantise_row(i, row));
        values
    }

    /// Runs `f(first_row, block)` over blocks of consecutive rows as row-major f32 `[_, cols]`, in order.
    pub(crate) fn for_blocks(&self, mut f: impl FnMut(usize, &[f32])) {
        let block_rows = (BLOCK_NUMBERS / self.cols).max(1);
        if let Storage::F32(v) = &self.storage {
            for (b, block) in v.chunks(block_rows * self.cols).enumerate() {
                f(b * block_rows, block);
            }
            return;
        }
        let mut scratch = vec![0f32; block_rows.min(self.rows) * self.cols];
        for first in (0..self.rows).step_by(block_rows) {
            let rows = block_rows.min(self.rows - first);
            let block = &mut scratch[..rows * self.cols];
            block.par_chunks_mut(16 * self.cols).enumerate().for_each(|(c, chunk)| {
                for (r, row) in chunk.chunks_mut(self.cols).enumerate() {
                    self.dequantise_row(first + c * 16 + r, row);
                }
            });
            f(first, block);
        }
    }

    /// `y = x W^T`: `[t, cols] -> [t, rows]`.
    pub(crate) fn forward(&self, x: &[f32], t: usize) -> Vec<f32> {
        if t == 0 {
            return Vec::new();
        }
        if t <= FEW_ROWS {
            let mut y = vec![0f32; t * self.rows];
            self.forward_few(x, t, &mut y);
            return y;
        }
        let mut y = Vec::with_capacity(t * self.rows);
        self.for_blocks(|first, block| {
            let n = block.len() / self.cols;
            let columns = &mut y.spare_capacity_mut()[first..];
            let (x, block) = (rows_of(x, self.cols), cpu::transposed(block, self.cols));
            cpu::gemm_into(columns, self.rows, (t, n, self.cols), x, block);
        });
        // SAFETY: the blocks are all rows of the matrix, and each wrote its columns of every row of `y`; a matrix has
        // at least one row and one column.
        unsafe { y.set_len(t * self.rows) };
        y
    }

    fn forward_few(&self, x: &[f32], t: usize, y: &mut [f32]) {
        // [rows, t], transposed at the end: a thread owns whole rows of it.
        let mut by_row = vec![0f32; self.rows * t];
        by_row.par_chunks_mut(64 * t).enumerate().for_each_init(
            || vec![0f32; self.cols],
            |row, (chunk, out)| {
                for (r, out) in out.chunks_mut(t).enumerate() {
                    self.dequantise_row(chunk * 64 + r, row);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = cpu::dot(row, &x[i * self.cols..(i + 1) * self.cols]);
                    }
                }
            },
        );
        for (r, values) in by_row.chunks(t).enumerate() {
            for (i, value) in values.iter().enumerate() {
                y[i * self.rows + r] = *value;
            }
        }
    }

    /// `dx = dy W`: `[t, rows] -> [t, cols]`.
    pub(crate) fn backward(&self, dy: &[f32], t: usize) -> Vec<f32> {
        let mut dx = Vec::with_capacity(t * self.cols);
        self.for_blocks(|first, block| {
            let shape = (t, self.cols, block.len() / self.cols);
            let (dy, block) =
                (View { values: &dy[first..], row_stride: self.rows, col_stride: 1 }, rows_of(block, self.cols));
            if first > 0 {
                cpu::gemm(&mut dx, self.cols, shape, dy, block, true);
                return;
            }
            cpu::gemm_into(dx.spare_capacity_mut(), self.cols, shape, dy, block);
            // SAFETY: the product wrote every column of every row; a matrix has at least one row to sum over.
            unsafe { dx.set_len(t * self.cols) };
        });
        dx
    }
}

/// GGML Q4_1: f16 scale, f16 minimum, 32 nibbles; number = scale * nibble + minimum.
fn dequantise_q4_1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(32)) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let m = f16::from_le_bytes([block[2], block[3]]).to_f32();
        let (low, high) = out.split_at_mut(16);
        for ((q, low), high) in block[4..].iter().zip(low).zip(high) {
            *low = f32::from(q & 15) * d + m;
            *high = f32::from(q >> 4) * d + m;
        }
    }
}

/// GGML Q8_0: f16 scale, 32 signed bytes; number = scale * byte.
fn dequantise_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (q, out) in block[2..].iter().zip(out) {
            *out = f32::from(q.cast_signed()) * d;
        }
    }
}
