//! f32 numbers of one device, which grow at their end.

use crate::cpu;
#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::{Result, Tensor};
use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Pointer, Read, at};
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;

/// Numbers of the host, until numbers of a GPU are added to none.
#[derive(Clone)]
pub(crate) enum Buffer {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Gpu(GpuBuffer),
}

#[cfg(feature = "cuda")]
#[derive(Clone)]
pub(crate) struct GpuBuffer {
    gpu: &'static Gpu,
    slice: CudaSlice<f32>,
    /// Numbers in use, at the start of the slice.
    len: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} numbers", self.len())
    }
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Host(numbers) => numbers.len(),
            #[cfg(feature = "cuda")]
            Self::Gpu(buffer) => buffer.len,
        }
    }

    /// Whether an operation on `tensor` can read from here.
    pub(crate) fn is_beside(&self, tensor: &Tensor) -> bool {
        match self {
            Self::Host(numbers) => numbers.is_empty() || tensor.device().is_cpu(),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => tensor.device().is_cuda(),
        }
    }

    /// The numbers on the host.
    ///
    /// # Errors
    /// When they lie on a GPU.
    pub(crate) fn host(&self) -> Result<&[f32]> {
        match self {
            Self::Host(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("expected numbers on the CPU, found {self:?} on a GPU"),
        }
    }

    /// As [`Self::host`], to be changed.
    ///
    /// # Errors
    /// When they lie on a GPU.
    pub(crate) fn host_mut(&mut self) -> Result<&mut [f32]> {
        match self {
            Self::Host(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("expected numbers on the CPU, found {self:?} on a GPU"),
        }
    }

    /// A copy of the numbers on the host.
    pub(crate) fn to_vec(&self) -> Result<Vec<f32>> {
        match self {
            Self::Host(numbers) => Ok(numbers.clone()),
            #[cfg(feature = "cuda")]
            Self::Gpu(buffer) => {
                let mut numbers = buffer.gpu.download(&buffer.slice)?;
                numbers.truncate(buffer.len);
                Ok(numbers)
            }
        }
    }

    /// The address of the numbers on the GPU; without any, of none.
    ///
    /// # Errors
    /// When there are numbers on the host.
    #[cfg(feature = "cuda")]
    pub(crate) fn pointer(&self) -> Result<Pointer> {
        match self {
            Self::Gpu(buffer) => Ok(buffer.gpu.pointer(&buffer.slice)),
            Self::Host(numbers) if numbers.is_empty() => Ok(0),
            Self::Host(_) => bail!("expected numbers on a GPU, found {self:?} on the CPU"),
        }
    }

    /// Moves the numbers to the GPU, where they are not yet there.
    #[cfg(feature = "cuda")]
    pub(crate) fn move_to(&mut self, gpu: &'static Gpu) -> Result<()> {
        if let Self::Host(numbers) = self {
            *self = Self::Gpu(GpuBuffer { gpu, slice: gpu.upload(numbers)?, len: numbers.len() });
        }
        Ok(())
    }

    /// The address of numbers on the GPU, so many at least: zeros where there were none, unless they are
    /// all to be written.
    ///
    /// # Errors
    /// When there are numbers on the host, or the GPU has no memory for more.
    #[cfg(feature = "cuda")]
    pub(crate) fn room(&mut self, gpu: &'static Gpu, end: usize, is_filled: bool) -> Result<Pointer> {
        if self.len() == 0 {
            self.move_to(gpu)?;
        }
        if let Self::Gpu(buffer) = self {
            buffer.grow(end, is_filled)?;
        }
        self.pointer()
    }

    /// Adds the numbers of a tensor.
    ///
    /// # Errors
    /// When the two lie on different devices.
    pub(crate) fn extend(&mut self, tensor: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = Gpu::with(tensor)? {
            if self.len() == 0 && matches!(self, Self::Host(_)) {
                self.move_to(gpu)?;
            }
            let Self::Gpu(buffer) = self else { bail!("numbers of a GPU after {self:?} on the CPU") };
            return buffer.extend(tensor);
        }
        match self {
            Self::Host(numbers) => cpu::with_values(tensor, |values| numbers.extend_from_slice(values)),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("numbers of the CPU after {self:?} on a GPU"),
        }
    }

    /// Writes the numbers of a tensor in runs: each takes the next of them to the place where it starts. What lies between
    /// the end and a place beyond it becomes zero.
    ///
    /// # Errors
    /// When the two lie on different devices.
    ///
    /// # Panics
    /// When the runs are not as many numbers as the tensor has.
    pub(crate) fn write(&mut self, tensor: &Tensor, runs: &[Range<usize>]) -> Result<()> {
        let (count, end): (usize, usize) =
            (runs.iter().map(Range::len).sum(), runs.iter().map(|run| run.end).max().unwrap_or(0));
        assert_eq!(tensor.elem_count(), count, "write: runs of other numbers");
        #[cfg(feature = "cuda")]
        if let Some(gpu) = Gpu::with(tensor)? {
            if self.len() == 0 && matches!(self, Self::Host(_)) {
                self.move_to(gpu)?;
            }
            let Self::Gpu(buffer) = self else { bail!("numbers of a GPU into {self:?} on the CPU") };
            return buffer.write(tensor, runs);
        }
        match self {
            Self::Host(numbers) => {
                numbers.resize(numbers.len().max(end), 0.0);
                cpu::with_values(tensor, |values| {
                    let mut rest = values;
                    for run in runs {
                        let (now, later) = rest.split_at(run.len());
                        numbers[run.clone()].copy_from_slice(now);
                        rest = later;
                    }
                })
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("numbers of the CPU into {self:?} on a GPU"),
        }
    }

    /// Forgets all numbers from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(numbers) => numbers.truncate(len),
            #[cfg(feature = "cuda")]
            Self::Gpu(buffer) => buffer.len = buffer.len.min(len),
        }
    }

    /// A copy of the numbers of all `ranges`, end to end.
    ///
    /// # Errors
    /// When the GPU has no memory for the copy.
    ///
    /// # Panics
    /// When a range reaches beyond the numbers.
    pub(crate) fn select(&self, ranges: &[Range<usize>]) -> Result<Self> {
        Ok(match self {
            Self::Host(numbers) => {
                Self::Host(ranges.iter().flat_map(|range| &numbers[range.clone()]).copied().collect())
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(buffer) => Self::Gpu(buffer.select(ranges)?),
        })
    }
}

#[cfg(feature = "cuda")]
impl GpuBuffer {
    /// Makes room for so many numbers in all.
    fn reserve(&mut self, needed: usize) -> Result<()> {
        if needed > self.slice.len() {
            let slice = self.gpu.alloc(needed.max(2 * self.len))?;
            // SAFETY: the new slice has room for what the old one has in use.
            unsafe { self.gpu.copy(self.gpu.pointer(&self.slice), self.gpu.pointer(&slice), self.len)? };
            self.slice = slice;
        }
        Ok(())
    }

    /// Numbers up to `end`, where there are fewer: zeros, unless all of them are to be written.
    fn grow(&mut self, end: usize, is_filled: bool) -> Result<()> {
        if end > self.len {
            self.reserve(end)?;
        }
        if end > self.len && !is_filled {
            let to = at(self.gpu.pointer(&self.slice), self.len);
            // SAFETY: there is room for the zeros behind the numbers in use.
            unsafe { self.gpu.clear(to, end - self.len)? };
        }
        self.len = self.len.max(end);
        Ok(())
    }

    fn write(&mut self, tensor: &Tensor, runs: &[Range<usize>]) -> Result<()> {
        let end = runs.iter().map(|run| run.end).max().unwrap_or(0);
        let num_added: usize = runs.iter().map(|run| run.end.max(self.len) - run.start.max(self.len)).sum();
        self.grow(end, num_added == end.saturating_sub(self.len))?;
        let read = Read::of(tensor)?;
        let mut from = read.pointer;
        for run in runs {
            // SAFETY: the tensor has the numbers of all runs, as was asserted, and each run lies within the slice.
            unsafe { self.gpu.copy(from, at(self.gpu.pointer(&self.slice), run.start), run.len())? };
            from = at(from, run.len());
        }
        Ok(())
    }

    fn extend(&mut self, tensor: &Tensor) -> Result<()> {
        let (read, count) = (Read::of(tensor)?, tensor.elem_count());
        let needed = self.len + count;
        self.reserve(needed)?;
        let end = at(self.gpu.pointer(&self.slice), self.len);
        // SAFETY: the tensor has so many numbers, and there is room for them behind those in use.
        unsafe { self.gpu.copy(read.pointer, end, count)? };
        self.len = needed;
        Ok(())
    }

    fn select(&self, ranges: &[Range<usize>]) -> Result<Self> {
        let len = ranges.iter().map(Range::len).sum();
        let slice = self.gpu.alloc(len)?;
        let mut to = self.gpu.pointer(&slice);
        for range in ranges {
            assert!(range.end <= self.len, "{range:?} of {} numbers", self.len);
            let from = at(self.gpu.pointer(&self.slice), range.start);
            // SAFETY: the range lies within the numbers, and the copy was made for all ranges.
            unsafe { self.gpu.copy(from, to, range.len())? };
            to = at(to, range.len());
        }
        Ok(Self { gpu: self.gpu, slice, len })
    }
}
