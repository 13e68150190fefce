//! The decoder's operations with their backward passes: tensors in, tensors out.
//!
//! The only crate that names the tensor library and the only one with `unsafe`. Every op is a
//! contract, a plain reference, a fast path and a backward; frozen weights get no gradient work.
//!
//! Shape letters: T query tokens, S key tokens, D hidden_size, N attention heads, K key/value heads,
//! H head_dim, F intermediate_size, V vocabulary.

mod adamw;
mod cpu;
mod kv;
mod matrix;
pub mod ops;
mod storage_type;

pub use adamw::{AdamW, Moments};
pub use candle_core::{Device, Error, Result, Tensor, Var, backprop::GradStore};
pub use kv::KvLayer;
pub use matrix::Matrix;
pub use memmap2::Mmap;
pub use storage_type::StorageType;

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
