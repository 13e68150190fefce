//! The decoder's operations with their backward passes: tensors in, tensors out.
//!
//! The only crate that names the tensor library and the only one with `unsafe`. Every op is a
//! contract, a plain reference, a fast path and a backward; frozen weights get no gradient work.
//!
//! Shape letters: T query tokens, S key tokens, D hidden_size, N attention heads, K key/value heads,
//! H head_dim, F intermediate_size, V vocabulary.

mod adamw;
mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
mod bf16;
mod buffer;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(target_arch = "x86_64")]
mod f32_product;
mod fetch;
mod kv;
mod matrix;
pub mod ops;
mod quantised;
mod storage_type;
mod vector;

pub use adamw::{AdamW, Moments, Update, adamw, sums_of_squares};
pub use allocator::Allocator;
pub use candle_core::{Device, Error, Result, Tensor, Var, backprop::GradStore};
pub use cpu::{Given, matmul};
pub use fetch::Fetch;
pub use kv::KvLayer;
pub use matrix::Matrix;
pub use memmap2::Mmap;
pub use storage_type::StorageType;

/// The GPU of this number, from 0.
///
/// # Errors
/// When the program was built without the feature `cuda`, there is no driver or no such GPU.
pub fn cuda_device(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("GPU {ordinal} was asked for, of a program that was built without GPUs (feature `cuda`)");
}

/// Waits until a device has done all that it was asked for.
///
/// # Errors
/// When something of it failed.
pub fn synchronize(device: &Device) -> Result<()> {
    device.synchronize()
}

/// The most memory that tensors have held on the first GPU so far, bytes; `None` where no GPU has been opened.
pub fn gpu_peak_bytes() -> Option<u64> {
    #[cfg(feature = "cuda")]
    return cuda::peak_bytes();
    #[cfg(not(feature = "cuda"))]
    None
}

/// Maps a file into memory, read-only. It must not be changed in place while it is mapped; model files are replaced
/// by renaming.
///
/// # Errors
/// When the operating system refuses.
pub fn map_file(file: &std::fs::File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to its owner; that nobody rewrites the file in place is asked of the
    // caller above, and a file that shrinks ends the process by a signal, not by wrong numbers.
    unsafe { Mmap::map(file) }
}

/// Seconds of CPU time that the threads of this process have taken together; `None` where the system does not tell.
pub fn process_cpu_secs() -> Option<f64> {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes the one value it is given, and keeps no pointer to it.
        let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        (status == 0).then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
    }
    #[cfg(not(unix))]
    None
}

/// Runs `work` on one of the threads that products are shared out to: what it runs in parallel begins there at once,
/// where another thread would wait to be woken again each time. Work of several callers may nest on one thread's stack, for
/// a thread that waits takes what comes next; [`prepare_process`] makes room for it.
pub fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    // A scope runs on a thread of the pool, and nothing is spawned in it.
    rayon::scope(|_| work())
}

/// Prepares the process for training and embedding: call it first in `main`, before any thread is started.
///
/// The C allocator keeps freed memory for the next step (the same large buffers are taken again and again, and pages
/// that go back to the system must be cleared anew each time) and takes it in huge pages where the system has them
/// (weights are read from end to end: with small pages a quarter of the time goes into finding them). Candle's own thread
/// pool is switched off: its workers spin at a barrier against the threads of the products. Those get stacks on which the
/// walk over the graph of a deep model, or of many passes, has room.
pub fn prepare_process() {
    // SAFETY: no other thread runs yet, which is asked of the caller above, so that none reads the environment.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: `mallopt` takes plain numbers and changes settings of the allocator, none of them about memory in use;
        // a refused setting leaves things as they were.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1); // never
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        ask_for_huge_pages();
    }
    // Last: a thread that is there before would have an arena of its own. A pool that is there already stays as it is.
    let _ = rayon::ThreadPoolBuilder::new().stack_size(64 << 20).build_global();
}

/// Whether the CPU has units for products of bf16 numbers (AMX, AVX-512-BF16).
pub fn has_bf16_units() -> bool {
    bf16::Units::best(bf16::Format::Bf16) != bf16::Units::Portable
}

/// Bytes of the machine's memory, where the system tells.
pub fn physical_memory() -> Option<usize> {
    #[cfg(unix)]
    {
        // SAFETY: the calls read two settings of the system.
        let (pages, page_size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        usize::try_from(pages).ok()?.checked_mul(usize::try_from(page_size).ok()?)
    }
    #[cfg(not(unix))]
    None
}

/// Lets the heap grow by half of the machine's memory, none of which is touched, asks for huge pages there, and frees it:
/// what is allocated from now on lies there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn ask_for_huge_pages() {
    const HUGE: usize = 2 << 20;
    let Some(bytes) = physical_memory() else { return };
    let mut room: Vec<u8> = Vec::new();
    if room.try_reserve_exact(bytes / 2).is_err() {
        return;
    }
    let first = room.as_ptr().align_offset(HUGE);
    if let Some(count) = room.capacity().checked_sub(first) {
        // SAFETY: the range lies within the allocation, and is none but this function's; the advice changes no content.
        unsafe { libc::madvise(room.as_mut_ptr().add(first).cast(), count / HUGE * HUGE, libc::MADV_HUGEPAGE) };
    }
}
