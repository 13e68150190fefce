//! The weights of a Hugging Face model directory: one safetensors file, or shards listed in an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use kernels::Mmap;
use kernels::StorageType;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError};
use serde::Deserialize;
use thiserror::Error;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1024;

/// What can be wrong with the weights in a model directory.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Neither a single file nor an index.
    #[error("{}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither", dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// An index that cannot be used.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file that is not well-formed.
    #[error("{}: expected a safetensors file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafeTensorError,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: expected the tensor `{tensor}`, which {INDEX_FILE} places here; found none", path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// No file holds the tensor.
    #[error("{}: expected the tensor `{tensor}`, found none among {num_tensors}", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many there are.
        num_tensors: usize,
    },
    /// Numbers in a format that is not computed with.
    #[error("{}: tensor `{tensor}`: expected F32, F16 or BF16, found {found}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format in the file.
        found: Dtype,
    },
}

/// One tensor as it lies in the file: little-endian, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorBytes<'a> {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// Format of the numbers: F32, F16 or BF16.
    pub storage: StorageType,
    /// The numbers; as many as the shape says.
    pub bytes: &'a [u8],
}

/// One file, mapped into memory, its header read and checked.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

/// The weights of a model directory, mapped into memory.
#[derive(Debug)]
pub struct SafetensorsDir {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to the shard that holds it.
    shard_of: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsDir {
    /// Opens the weights in `dir`. Files must not change while they are mapped.
    ///
    /// # Errors
    /// [`SafetensorsError`], naming the file: no weights, a malformed file, an index that names a file
    /// outside the directory or a tensor that its shard does not hold.
    pub fn open(dir: &Path) -> Result<Self, SafetensorsError> {
        let index_path = dir.join(INDEX_FILE);
        let single_path = dir.join(SINGLE_FILE);
        if single_path.is_file() {
            let shard = Shard::open(single_path)?;
            let shard_of = shard.metadata.tensors().into_keys().map(|name| (name, 0)).collect();
            return Ok(Self { dir: dir.to_owned(), shards: vec![shard], shard_of });
        }
        if !index_path.is_file() {
            return Err(SafetensorsError::NoWeights { dir: dir.to_owned() });
        }
        let weight_map = read_index(&index_path)?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut opened: BTreeMap<String, usize> = BTreeMap::new();
        let mut shard_of = BTreeMap::new();
        for (tensor, file_name) in weight_map {
            let index = match opened.get(&file_name) {
                Some(&index) => index,
                None if shards.len() == MAX_SHARDS => {
                    let reason = format!("expected at most {MAX_SHARDS} files, found more");
                    return Err(SafetensorsError::Index { path: index_path, reason });
                }
                None => {
                    shards.push(Shard::open(confined(dir, &index_path, &file_name)?)?);
                    opened.insert(file_name, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let shard = &shards[index];
            if shard.metadata.info(&tensor).is_none() {
                return Err(SafetensorsError::NotInShard { path: shard.path.clone(), tensor });
            }
            shard_of.insert(tensor, index);
        }
        Ok(Self { dir: dir.to_owned(), shards, shard_of })
    }

    /// The bytes of each file of weights, in the order of their names.
    pub(crate) fn shard_bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.shards.iter().map(|shard| &shard.map[..])
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`SafetensorsError::Missing`] or [`SafetensorsError::Dtype`].
    pub fn tensor(&self, name: &str) -> Result<TensorBytes<'_>, SafetensorsError> {
        let missing = || SafetensorsError::Missing {
            dir: self.dir.clone(),
            tensor: name.to_owned(),
            num_tensors: self.shard_of.len(),
        };
        let shard = &self.shards[*self.shard_of.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let storage = match info.dtype {
            Dtype::F32 => StorageType::F32,
            Dtype::F16 => StorageType::F16,
            Dtype::BF16 => StorageType::BF16,
            found => {
                let (path, tensor) = (shard.path.clone(), name.to_owned());
                return Err(SafetensorsError::Dtype { path, tensor, found });
            }
        };
        let (start, end) = info.data_offsets;
        let data = &shard.map[shard.data_start..];
        Ok(TensorBytes { shape: info.shape.clone(), storage, bytes: &data[start..end] })
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, SafetensorsError> {
        let io = |source| SafetensorsError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        let map = kernels::map_file(&file).map_err(io)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| SafetensorsError::Format { path: path.clone(), source })?;
        // The header is preceded by its length, 8 bytes.
        Ok(Self { data_start: header_bytes + 8, path, map, metadata })
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, SafetensorsError> {
    let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
    let bad = |reason| SafetensorsError::Index { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_INDEX_BYTES {
        return Err(bad(format!("expected at most {MAX_INDEX_BYTES} bytes, found {size}")));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let index: Index = serde_json::from_str(&text).map_err(|error| bad(format!("expected an index: {error}")))?;
    if index.weight_map.is_empty() {
        return Err(bad("weight_map: expected tensors, found none".into()));
    }
    Ok(index.weight_map)
}

/// The path of a shard: a plain name, and a file that lies in `dir` itself or, in a cache that keeps
/// contents apart from names, in the directory of contents that belongs to the same model.
fn confined(dir: &Path, index_path: &Path, name: &str) -> Result<PathBuf, SafetensorsError> {
    let outside = || SafetensorsError::Index {
        path: index_path.to_owned(),
        reason: format!(
            "weight_map: expected file names inside the model directory, found `{}`",
            name.chars().take(200).collect::<String>()
        ),
    };
    let relative = Path::new(name);
    let mut components = relative.components();
    let (Some(Component::Normal(_)), None) = (components.next(), components.next()) else {
        return Err(outside());
    };
    let path = dir.join(relative);
    let io = |source| SafetensorsError::Io { path: path.clone(), source };
    let real_path = path.canonicalize().map_err(io)?;
    let real_dir = dir.canonicalize().map_err(io)?;
    if real_path.starts_with(&real_dir) || in_hub_cache(&real_dir, &real_path) {
        return Ok(path);
    }
    Err(outside())
}

/// The cache of the hub holds `REPOSITORY/snapshots/COMMIT/NAME` as links to `REPOSITORY/blobs/HASH`.
fn in_hub_cache(real_dir: &Path, real_path: &Path) -> bool {
    let Some(snapshots) = real_dir.parent() else {
        return false;
    };
    snapshots.file_name().is_some_and(|name| name == "snapshots")
        && snapshots.parent().is_some_and(|repository| real_path.parent() == Some(&repository.join("blobs")))
}
