//! What can be wrong with a GGUF file.

use std::path::PathBuf;

use kernels::StorageType;

/// What can be wrong with a GGUF file or with a question put to it. Offsets are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's message says what its fields are")]
pub enum GgufError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("not a GGUF file: expected it to begin with \"GGUF\", found \"{}\"", found.escape_ascii())]
    Magic { found: [u8; 4] },
    #[error("GGUF version: expected 2 or 3 (little endian), found {found}")]
    Version { found: u32 },
    #[error("{what} at offset {offset}: expected {needed} bytes, found {available} before the end of the file")]
    Truncated { what: String, offset: usize, needed: u64, available: usize },
    #[error("{what} at offset {offset}: expected at most {limit}, found {found}")]
    Limit { what: String, offset: usize, limit: u64, found: u64 },
    #[error("{what} at offset {offset}: expected UTF-8 text")]
    Utf8 { what: String, offset: usize },
    #[error("{what} at offset {offset}: expected a value type from 0 to 12, found {found}")]
    ValueType { what: String, offset: usize, found: u32 },
    #[error("{what} at offset {offset}: expected an array of scalars or strings, found an array of arrays")]
    NestedArray { what: String, offset: usize },
    #[error("{what} at offset {offset}: expected the boolean 0 or 1, found {found}")]
    Bool { what: String, offset: usize, found: u8 },
    #[error("{what} `{name}` at offset {offset}: expected each name once, found it twice")]
    Duplicate { what: &'static str, name: String, offset: usize },
    #[error("general.alignment: expected a power of two up to {limit}, found {found}")]
    Alignment { limit: u32, found: u32 },
    #[error("tensor `{name}`: expected 1 to {limit} dimensions, found {found}")]
    DimensionCount { name: String, limit: u32, found: u32 },
    #[error("tensor `{name}`: expected dimensions above zero, found {shape:?}")]
    ZeroDimension { name: String, shape: Vec<u64> },
    #[error("tensor `{name}`: expected a size that can be addressed, found the shape {shape:?}")]
    TooLarge { name: String, shape: Vec<u64> },
    #[error("tensor `{name}`: expected rows of whole {storage:?} blocks of {block_size} numbers, found rows of {row}")]
    PartialBlock { name: String, storage: StorageType, block_size: usize, row: usize },
    #[error("tensor `{name}`: expected a data offset that is a multiple of {alignment}, found {offset}")]
    Misaligned { name: String, alignment: u32, offset: u64 },
    #[error(
        "tensor `{name}`: expected its {num_bytes} bytes from data offset {offset} inside the file of {file_bytes} bytes"
    )]
    OutOfFile { name: String, num_bytes: u64, offset: u64, file_bytes: usize },
    #[error("tensor `{name}`: the GGML type number {type_number} is unknown or not supported")]
    UnknownTensorType { name: String, type_number: u32 },
    #[error("tensor `{name}`: expected in the file, not found")]
    MissingTensor { name: String },
    #[error("metadata key `{key}`: expected in the file, not found")]
    MissingKey { key: String },
    #[error("metadata key `{key}`: expected {expected}, found {found}")]
    WrongType { key: String, expected: &'static str, found: String },
}
