//! Copies between host and GPU that the host does not wait for: through memory of the host that stays where it is, which the
//! GPU reads and writes by itself. A copy from or to other memory waits for all work that was asked for before it.

use super::{Gpu, Pointer};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, result, sys};
use candle_core::{Result, bail};
use std::sync::{MutexGuard, PoisonError};

/// Memory of the host that stays where it is.
struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, which belongs to its holder alone.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(stream: &CudaStream, bytes: usize) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        // SAFETY: whoever asks for the memory writes it before it is read.
        let memory = unsafe { result::malloc_host(bytes, 0) }.w()?.cast::<u8>();
        Ok(Self { memory, bytes })
    }
}

/// Bytes in two halves, of which one is filled while the other is read.
pub(super) struct Ring {
    memory: Pinned,
    half: usize,
    filled: usize,
    /// Reached when what lies in a half has been read.
    read: [Option<CudaEvent>; 2],
}

/// Of a ring.
const HALF_BYTES: usize = 4 << 20;
/// More bytes than this at once are copied from where they lie.
pub(super) const MOST_BYTES: usize = 1 << 20;

impl Ring {
    /// A place for so many bytes, at most [`MOST_BYTES`].
    fn place(&mut self, stream: &CudaStream, bytes: usize) -> Result<*mut u8> {
        if self.filled + bytes > HALF_BYTES {
            self.read[self.half] = Some(stream.record_event(None).w()?);
            (self.half, self.filled) = (1 - self.half, 0);
            if let Some(read) = self.read[self.half].take() {
                read.synchronize().w()?;
            }
        }
        let at = self.half * HALF_BYTES + self.filled;
        self.filled += bytes.next_multiple_of(64);
        // SAFETY: the ring has two halves of such a size.
        Ok(unsafe { self.memory.memory.add(at) })
    }
}

/// What a GPU copies through.
#[derive(Default)]
pub(super) struct Staging {
    ring: Option<Ring>,
    free: Vec<Pinned>,
}

/// Numbers on their way to the host.
pub(crate) struct Download {
    gpu: &'static Gpu,
    memory: Option<Pinned>,
    count: usize,
    arrived: CudaEvent,
}

impl Gpu {
    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies plain numbers to the GPU.
    ///
    /// # Errors
    /// When they take more than [`MOST_BYTES`].
    ///
    /// # Safety
    /// The pointer leads to room for them.
    pub(super) unsafe fn send<T>(&self, values: &[T], to: Pointer) -> Result<()> {
        let bytes = size_of_val(values);
        if bytes == 0 {
            return Ok(());
        }
        if bytes > MOST_BYTES {
            bail!("expected at most {MOST_BYTES} bytes at once, found {bytes}");
        }
        let mut staging = self.staging();
        let ring = match &mut staging.ring {
            Some(ring) => ring,
            none => none.insert(Ring {
                memory: Pinned::new(&self.stream, 2 * HALF_BYTES)?,
                half: 0,
                filled: 0,
                read: [None, None],
            }),
        };
        let from = ring.place(&self.stream, bytes)?;
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: there is room for so many bytes at either end, and nobody else uses this place until they are read.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), from, bytes);
            sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream.cu_stream())
        }
        .result()
        .w()
    }

    /// Begins to copy numbers to the host.
    ///
    /// # Safety
    /// The pointer leads to so many numbers.
    pub(crate) unsafe fn start_download(&'static self, from: Pointer, count: usize) -> Result<Download> {
        let bytes = (count * size_of::<f32>()).max(1);
        let mut staging = self.staging();
        let fits = staging.free.iter().position(|memory| memory.bytes >= bytes);
        let memory = match fits {
            Some(at) => staging.free.swap_remove(at),
            None => Pinned::new(&self.stream, bytes.next_power_of_two())?,
        };
        drop(staging);
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: as the caller says; the memory has room for the bytes.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(memory.memory.cast(), from, count * size_of::<f32>(), self.stream.cu_stream())
        };
        copied.result().w()?;
        Ok(Download { gpu: self, memory: Some(memory), count, arrived: self.stream.record_event(None).w()? })
    }
}

impl Download {
    /// The numbers, when they have arrived.
    pub(crate) fn finish(self) -> Result<Vec<f32>> {
        self.arrived.synchronize().w()?;
        let memory = self.memory.as_ref().map_or(std::ptr::null(), |memory| memory.memory.cast_const());
        let mut numbers = vec![0f32; self.count];
        // SAFETY: so many numbers have been written there.
        unsafe { std::ptr::copy_nonoverlapping(memory.cast::<f32>(), numbers.as_mut_ptr(), self.count) };
        Ok(numbers)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Memory that is still written to is not given to another; where that cannot be known, it is left.
        if let (Ok(()), Some(memory)) = (self.arrived.synchronize(), self.memory.take()) {
            self.gpu.staging().free.push(memory);
        }
    }
}
