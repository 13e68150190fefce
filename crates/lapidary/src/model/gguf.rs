//! GGUF files (versions 2 and 3, little endian): metadata and tensors, read from untrusted bytes without copying them.
//!
//! Everything the file says about itself is checked before it is used: counts and lengths against caps and against
//! the bytes that are there, tensor ranges against the end of the file. Parsing allocates one small record per
//! metadata entry and per tensor; strings and arrays stay in the file until they are asked for.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod error;
mod metadata;
mod read;
#[cfg(test)]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use kernels::Mmap;
use kernels::StorageType;

pub use error::GgufError;
use metadata::Value;

/// Most metadata entries a file may announce.
pub const MAX_METADATA_ENTRIES: u64 = 1 << 16;
/// Most tensors a file may announce.
pub const MAX_TENSORS: u64 = 1 << 18;
/// Longest metadata key, in bytes.
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Longest tensor name, in bytes.
pub const MAX_TENSOR_NAME_BYTES: u64 = 1 << 10;
/// Longest metadata string, in bytes.
pub const MAX_STRING_BYTES: u64 = 1 << 24;
/// Most dimensions of a tensor.
pub const MAX_DIMENSIONS: u32 = 4;
/// Largest alignment of the tensor data, in bytes.
pub const MAX_ALIGNMENT: u32 = 1 << 12;

/// A parsed GGUF file over its bytes: a memory map by default, any byte container otherwise.
#[derive(Debug)]
pub struct GgufFile<S = Mmap> {
    storage: S,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    type_number: u32,
    range: Option<Range<usize>>,
}

impl TensorInfo {
    /// The tensor's name, as GGML spells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape in row-major order (GGML's dimensions reversed): rows of numbers lie end to end.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The GGML type number.
    pub fn type_number(&self) -> u32 {
        self.type_number
    }

    /// The storage format, if this program knows it.
    pub fn storage(&self) -> Option<StorageType> {
        StorageType::from_ggml(self.type_number)
    }
}

/// One tensor: its stored blocks and how to read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// The tensor's name, as GGML spells it.
    pub name: &'a str,
    /// The shape in row-major order (GGML's dimensions reversed).
    pub shape: Vec<usize>,
    /// The format of the blocks.
    pub storage: StorageType,
    /// The blocks, row after row; exactly as many as the shape needs.
    pub bytes: &'a [u8],
}

impl GgufFile<Mmap> {
    /// Maps the file into memory and parses its header.
    ///
    /// The file must not be changed while it is open.
    ///
    /// # Errors
    /// When the file cannot be opened, or as [`GgufFile::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        let map = kernels::map_file(&file).map_err(io)?;
        Self::parse(map)
    }
}

impl<S: AsRef<[u8]>> GgufFile<S> {
    /// Parses a whole file held in `storage`.
    ///
    /// # Errors
    /// When a count, length, type, name, dimension, offset or alignment is not what the format allows; the error
    /// names the field and where it stands. Tensors of unknown type are refused only by [`GgufFile::tensor`].
    pub fn parse(storage: S) -> Result<Self, GgufError> {
        let header = read::header(storage.as_ref())?;
        let by_name = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { storage, version: header.version, metadata: header.metadata, tensors: header.tensors, by_name })
    }

    /// The format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The descriptions of all tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Whether the file holds a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// When there is no such tensor, or its type is unknown to this program.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        let missing = || GgufError::MissingTensor { name: name.to_owned() };
        let info = self.by_name.get(name).and_then(|&i| self.tensors.get(i)).ok_or_else(missing)?;
        let unknown = || GgufError::UnknownTensorType { name: name.to_owned(), type_number: info.type_number };
        let storage = info.storage().ok_or_else(unknown)?;
        let range = info.range.clone().ok_or_else(unknown)?;
        let bytes = self.storage.as_ref().get(range).ok_or_else(missing)?;
        Ok(TensorView { name: &info.name, shape: info.shape.clone(), storage, bytes })
    }
}
