//! The operations on NVIDIA GPUs: our kernels (`cuda/*.cuh`), and cuBLAS for matrix products.
//!
//! All work of a process on a GPU goes through one stream, in the order in which it is asked for: what an operation
//! reads has been written, and memory that is freed is taken again only by what comes after.

mod attention;
mod few_rows;
mod group;
mod linear;
mod losses;
mod matrix;
mod pointwise;
mod product;
mod rows;
mod staging;

pub(crate) use attention::{Attention, AttentionSums, DeviceMask, Kind, attention, attention_backward};
pub(crate) use few_rows::{FewLayer, FewRows, NONE, Pack};
pub(crate) use group::{Group, RoundedRows, backward as group_backward, forward as group_forward};
pub(crate) use linear::{Map, Norm, Update, add_linear, feed_forward, norm_linears};
pub(crate) use losses::{Rows, cross_entropy, dense_cross_entropy, dense_cross_entropy_backward};
pub(crate) use matrix::DeviceMatrix;
pub(crate) use pointwise::{AdamWRun, adamw, add, angles, gated, gated_backward, multiply, rope, sums_of_squares};
pub(crate) use product::{Mat, Precision, Product};
pub(crate) use rows::{
    add_to_rows, clear_rows, gather_rows, place_rows, rms_norm, rms_norm_backward, scale_rows, weighted_rows,
};

pub(crate) use staging::Download;

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, sys,
};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A device address.
pub(crate) type Pointer = u64;
/// Blocks, threads of a block, and bytes of its shared memory.
pub(crate) type LaunchShape = ((usize, usize, usize), u32, usize);
/// Gradients of two operands, those that are wanted.
pub(crate) type Gradients2 = (Option<CudaSlice<f32>>, Option<CudaSlice<f32>>);

/// A GPU with what has been loaded onto it.
pub(crate) struct Gpu {
    pub(crate) device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    staging: Mutex<staging::Staging>,
}

/// What a kernel is given.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Pointer(Pointer),
    Int(i32),
    Size(usize),
    Float(f32),
    Attention(Attention),
    FewRows(FewRows),
    Runs(group::Runs),
}

// SAFETY: a plain struct of numbers, laid out as its twin in cuda/attention.cuh.
unsafe impl DeviceRepr for Attention {}
// SAFETY: a plain struct of numbers, laid out as its twin in cuda/few_rows.cuh.
unsafe impl DeviceRepr for FewRows {}

/// Threads of a block where nothing speaks for another number.
pub(crate) const BLOCK_THREADS: u32 = 256;

static GPUS: Mutex<Vec<(DeviceId, &'static Gpu)>> = Mutex::new(Vec::new());

/// Compiled by build.rs from `cuda/all.cu`.
const MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The GPU of this number, from 0.
///
/// # Errors
/// When the driver or one of CUDA's libraries cannot be opened, or there is no such GPU.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    static OPENED: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(number, _)| *number == ordinal) {
        return Ok(device.clone());
    }
    if let Some((other, _)) = opened.first() {
        bail!("GPU {ordinal} was asked for beside GPU {other}: one at a time, for copies of weights are kept on it");
    }
    for library in ["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"] {
        find_library(library)?;
    }
    check_driver()?;
    let device = match Device::new_cuda_with_stream(ordinal) {
        Ok(device) => device,
        Err(error) => bail!("GPU {ordinal} cannot be used: {error}"),
    };
    let cuda = device.as_cuda_device()?;
    // SAFETY: there is one stream, so that there is nothing to keep in order between several.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(cuda)?;
    Gpu::of(cuda)?;
    opened.push((ordinal, device.clone()));
    Ok(device)
}

/// Opens a shared library, which stays open: the first call of one of its functions would otherwise end the process.
fn find_library(name: &str) -> Result<()> {
    let c_name = CString::new(name).map_err(candle_core::Error::wrap)?;
    // SAFETY: opening one of CUDA's libraries runs its set-up code, which asks nothing of us.
    let library = unsafe { libc::dlopen(c_name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if library.is_null() {
        bail!(
            "no GPU can be used: {name} is not there (an NVIDIA driver of CUDA 13.0 or later, and its libraries, are)"
        );
    }
    Ok(())
}

/// Refuses a driver that is older than the CUDA which the program was built for.
fn check_driver() -> Result<()> {
    /// 1000 times the major version and 10 times the minor one.
    const NEEDED: i32 = 13_000;
    let mut version = 0;
    // SAFETY: the call is given a place for a number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().w()?;
    if version < NEEDED {
        bail!(
            "no GPU can be used: the driver is of CUDA {}.{}, expected 13.0 or later",
            version / 1000,
            version % 1000 / 10
        );
    }
    Ok(())
}

/// The pool that a GPU's memory is taken from.
fn memory_pool(stream: &CudaStream) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the call is given a place for a pool.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }.result().w()?;
    Ok(pool)
}

/// Memory that is freed stays with the process: every step takes the same again. With one stream nothing has to be asked
/// about others before it is taken.
fn keep_freed_memory(cuda: &CudaDevice) -> Result<()> {
    use sys::CUmemPool_attribute_enum::{
        CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
        CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES,
    };
    let pool = memory_pool(&cuda.cuda_stream())?;
    let set = |attribute, value: *mut std::ffi::c_void| {
        // SAFETY: the call is given a pool, and a place with a number of the attribute's width.
        unsafe { sys::cuMemPoolSetAttribute(pool, attribute, value) }.result().w()
    };
    let (mut threshold, mut no) = (u64::MAX, 0i32);
    set(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut threshold).cast())?;
    set(CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES, (&raw mut no).cast())?;
    set(CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, (&raw mut no).cast())?;
    set(CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, (&raw mut no).cast())
}

/// The most memory of the first GPU that has been in use.
pub(crate) fn peak_bytes() -> Option<u64> {
    let gpu = GPUS.lock().unwrap_or_else(PoisonError::into_inner).first()?.1;
    let pool = memory_pool(&gpu.stream).ok()?;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let mut bytes = 0u64;
    // SAFETY: the call is given a pool, and a place for a 64-bit number.
    unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result().ok()?;
    Some(bytes)
}

impl Gpu {
    /// The GPU that a device stands for.
    pub(crate) fn of(device: &CudaDevice) -> Result<&'static Self> {
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = gpus.iter().find(|(id, _)| *id == device.id()) {
            return Ok(gpu);
        }
        let stream = device.cuda_stream();
        let image = candle_core::cuda_backend::cudarc::nvrtc::Ptx::from_binary(MODULE.to_vec());
        let module = stream.context().load_module(image).w()?;
        // One for each GPU of the process, until its end.
        let gpu = Box::leak(Box::new(Self {
            device: device.clone(),
            stream,
            module,
            functions: Mutex::default(),
            staging: Mutex::default(),
        }));
        gpus.push((device.id(), gpu));
        Ok(gpu)
    }

    /// The GPU that a tensor lies on, if it lies on one.
    pub(crate) fn with(tensor: &Tensor) -> Result<Option<&'static Self>> {
        match tensor.device() {
            Device::Cuda(device) => Self::of(device).map(Some),
            _ => Ok(None),
        }
    }

    fn function(&self, name: &'static str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).w()?;
        functions.insert(name, function.clone());
        Ok(function)
    }

    /// Runs a kernel on `blocks` blocks of `threads` threads with `shared` bytes of shared memory.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, in its order, and its pointers lead to as many numbers as it reads
    /// and writes.
    pub(crate) unsafe fn launch(&self, name: &'static str, shape: LaunchShape, args: &[Arg]) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { self.start(name, shape, args, false) }
    }

    /// As [`Self::launch`], of blocks that run at the same time and may wait for each other.
    ///
    /// # Safety
    /// As of [`Self::launch`].
    pub(crate) unsafe fn launch_together(&self, name: &'static str, shape: LaunchShape, args: &[Arg]) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { self.start(name, shape, args, true) }
    }

    unsafe fn start(
        &self,
        name: &'static str,
        (blocks, threads, shared): LaunchShape,
        args: &[Arg],
        together: bool,
    ) -> Result<()> {
        /// What every kernel may have without asking, beside what it holds for itself.
        const PLAIN_SHARED: usize = 40 << 10;
        if [blocks.0, blocks.1, blocks.2].contains(&0) {
            return Ok(());
        }
        let function = self.function(name)?;
        if shared > PLAIN_SHARED {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            if let Err(error) = function.set_attribute(attribute, shared as i32) {
                bail!("{name}: this GPU does not give a block {shared} bytes of shared memory: {error}");
            }
        }
        let count = |blocks: usize| u32::try_from(blocks);
        let (Ok(x), Ok(y), Ok(z)) = (count(blocks.0), count(blocks.1), count(blocks.2)) else {
            bail!("{name}: {blocks:?} blocks are more than a GPU counts");
        };
        let mut builder = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Pointer(pointer) => builder.arg(pointer),
                Arg::Int(number) => builder.arg(number),
                Arg::Size(number) => builder.arg(number),
                Arg::Float(number) => builder.arg(number),
                Arg::Attention(attention) => builder.arg(attention),
                Arg::FewRows(few_rows) => builder.arg(few_rows),
                Arg::Runs(runs) => builder.arg(runs),
            };
        }
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes: shared as u32 };
        // SAFETY: as the caller says.
        unsafe { if together { builder.launch_cooperative(config) } else { builder.launch(config) } }.w()?;
        Ok(())
    }

    /// As [`Self::launch`], with threads enough for `count` numbers in a grid of one dimension.
    ///
    /// # Safety
    /// As of [`Self::launch`].
    pub(crate) unsafe fn launch_over(&self, name: &'static str, count: usize, args: &[Arg]) -> Result<()> {
        /// Each thread takes several numbers beyond this many blocks.
        const MOST_BLOCKS: usize = 1 << 14;
        let blocks = count.div_ceil(BLOCK_THREADS as usize).min(MOST_BLOCKS);
        // SAFETY: as the caller says.
        unsafe { self.launch(name, ((blocks, 1, 1), BLOCK_THREADS, 0), args) }
    }

    /// Memory for `count` numbers, which are to be written.
    pub(crate) fn alloc<T: DeviceRepr>(&self, count: usize) -> Result<CudaSlice<T>> {
        // A slice of no numbers has no memory, and yet some address is asked of it.
        // SAFETY: the numbers are plain data; whoever asks for them writes them before they are read.
        unsafe { self.device.alloc::<T>(count.max(1)) }
    }

    pub(crate) fn zeros(&self, count: usize) -> Result<CudaSlice<f32>> {
        self.device.alloc_zeros::<f32>(count.max(1))
    }

    pub(crate) fn upload<T: DeviceRepr + Clone + Default + 'static>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        if size_of_val(values) > staging::MOST_BYTES {
            return self.device.clone_htod(values);
        }
        let slice = self.alloc(values.len())?;
        // SAFETY: the slice was made for the values, which are not too many.
        unsafe { self.send(values, self.pointer(&slice))? };
        Ok(slice)
    }

    pub(crate) fn download<T: DeviceRepr>(&self, slice: &CudaSlice<T>) -> Result<Vec<T>> {
        self.device.clone_dtoh(slice)
    }

    /// Where the numbers of a slice lie.
    pub(crate) fn pointer<T>(&self, slice: &CudaSlice<T>) -> Pointer {
        slice.device_ptr(&self.stream).0
    }

    /// Copies numbers within the GPU's memory.
    ///
    /// # Safety
    /// Both pointers lead to `count` numbers, and the two do not overlap.
    pub(crate) unsafe fn copy(&self, from: Pointer, to: Pointer, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: as the caller says.
        unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, count * size_of::<f32>(), self.stream.cu_stream()) }.result().w()
    }

    /// Zeros.
    ///
    /// # Safety
    /// The pointer leads to `count` numbers.
    pub(crate) unsafe fn clear(&self, to: Pointer, count: usize) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: as the caller says.
        unsafe { sys::cuMemsetD8Async(to, 0, count * size_of::<f32>(), self.stream.cu_stream()) }.result().w()
    }

    /// Numbers as a tensor.
    pub(crate) fn tensor(&self, values: CudaSlice<f32>, shape: impl Into<Shape>) -> Tensor {
        let storage = Storage::Cuda(self.storage(values));
        Tensor::from_storage(storage, shape, BackpropOp::none(), false)
    }

    fn storage(&self, values: CudaSlice<f32>) -> CudaStorage {
        CudaStorage { slice: CudaStorageSlice::F32(values), device: self.device.clone() }
    }

    /// Numbers as the result of a custom op.
    pub(crate) fn output(&self, values: CudaSlice<f32>, shape: impl Into<Shape>) -> (CudaStorage, Shape) {
        (self.storage(values), shape.into())
    }
}

/// The address so many f32 numbers on.
pub(crate) fn at(pointer: Pointer, numbers: usize) -> Pointer {
    pointer + (numbers * size_of::<f32>()) as Pointer
}

/// A contiguous operand as handed to a custom op, with its GPU.
pub(crate) fn operand(storage: &CudaStorage, layout: &Layout, op: &str) -> Result<(&'static Gpu, Pointer)> {
    let gpu = Gpu::of(&storage.device)?;
    let slice = f32::as_cuda_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((from, _)) => Ok((gpu, at(gpu.pointer(slice), from))),
        None => bail!("{op}: expected a contiguous operand, found {:?}", layout.shape()),
    }
}

/// A tensor whose numbers are read from, kept while that may be.
pub(crate) struct Read {
    pub(crate) pointer: Pointer,
    _tensor: Tensor,
}

impl Read {
    /// # Errors
    /// When the tensor is not of f32 numbers on a GPU.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let pointer = {
            let (storage, layout) = tensor.storage_and_layout();
            match &*storage {
                Storage::Cuda(storage) => operand(storage, layout, "read")?.1,
                _ => bail!("expected a tensor of shape {:?} on a GPU, found one elsewhere", tensor.shape()),
            }
        };
        Ok(Self { pointer, _tensor: tensor })
    }
}

/// A copy on the GPU of what does not change on the host, made when it is first asked for.
pub(crate) struct Uploaded<T>(OnceLock<CudaSlice<T>>);

impl<T: DeviceRepr + Clone + Default + 'static> Uploaded<T> {
    pub(crate) fn get(&self, gpu: &Gpu, values: impl FnOnce() -> Vec<T>) -> Result<Pointer> {
        self.get_or_make(gpu, || gpu.upload(&values()))
    }

    /// As [`Self::get`], of numbers that are made there.
    pub(crate) fn get_or_make(&self, gpu: &Gpu, make: impl FnOnce() -> Result<CudaSlice<T>>) -> Result<Pointer> {
        if let Some(slice) = self.0.get() {
            return Ok(gpu.pointer(slice));
        }
        let slice = make()?;
        Ok(gpu.pointer(self.0.get_or_init(|| slice)))
    }
}

impl<T> Default for Uploaded<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

/// What is kept on the GPU beside a value: no part of it when it is copied, compared or shown.
#[derive(Default)]
pub(crate) struct Beside<T>(pub(crate) T);

impl<T: Default> Clone for Beside<T> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<T> PartialEq for Beside<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Beside<T> {}

impl<T> std::fmt::Debug for Beside<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}
