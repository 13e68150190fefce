//! Parsing of the GGUF header: counts, metadata and tensor descriptions.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use kernels::StorageType;

use super::metadata::{Kind, Value};
use super::{
    GgufError, MAX_ALIGNMENT, MAX_DIMENSIONS, MAX_KEY_BYTES, MAX_METADATA_ENTRIES, MAX_STRING_BYTES,
    MAX_TENSOR_NAME_BYTES, MAX_TENSORS, TensorInfo,
};

/// The alignment of files that do not give one.
const DEFAULT_ALIGNMENT: u32 = 32;

/// All that stands before the tensor data.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads the header of a whole file.
pub(super) fn header(bytes: &[u8]) -> Result<Header, GgufError> {
    let mut cursor = Cursor { bytes, offset: 0 };
    let magic = cursor.array::<4>("magic")?;
    if &magic != b"GGUF" {
        return Err(GgufError::Magic { found: magic });
    }
    let version = cursor.u32("version")?;
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { found: version });
    }
    let num_tensors = cursor.count("tensor_count", MAX_TENSORS)?;
    let num_entries = cursor.count("metadata_kv_count", MAX_METADATA_ENTRIES)?;
    let mut metadata = BTreeMap::new();
    for index in 0..num_entries {
        let offset = cursor.offset;
        let key = cursor.string(&format!("metadata key {index}"), MAX_KEY_BYTES)?;
        let value = cursor.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(GgufError::Duplicate { what: "metadata key", name: key, offset });
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(bytes, &metadata)?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 0..num_tensors {
        let offset = cursor.offset;
        let raw = cursor.tensor(index)?;
        if !names.insert(raw.name.clone()) {
            return Err(GgufError::Duplicate { what: "tensor", name: raw.name, offset });
        }
        tensors.push(raw);
    }
    let data_start = cursor.offset.checked_next_multiple_of(alignment as usize).unwrap_or(usize::MAX);
    let tensors =
        tensors.into_iter().map(|raw| raw.check(data_start, alignment, bytes.len())).collect::<Result<_, _>>()?;
    Ok(Header { version, metadata, tensors })
}

/// The alignment of the tensor data, checked.
fn alignment(bytes: &[u8], metadata: &BTreeMap<String, Value>) -> Result<u32, GgufError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    let found = value.as_u32(bytes, "general.alignment")?;
    if !found.is_power_of_two() || found > MAX_ALIGNMENT {
        return Err(GgufError::Alignment { limit: MAX_ALIGNMENT, found });
    }
    Ok(found)
}

/// A tensor description before its data range is known to be sound.
struct RawTensor {
    name: String,
    /// Dimensions in GGML's order: the row length first.
    dimensions: Vec<u64>,
    type_number: u32,
    offset: u64,
}

impl RawTensor {
    fn check(self, data_start: usize, alignment: u32, file_bytes: usize) -> Result<TensorInfo, GgufError> {
        if self.dimensions.contains(&0) {
            return Err(GgufError::ZeroDimension { name: self.name, shape: self.dimensions });
        }
        if !self.offset.is_multiple_of(u64::from(alignment)) {
            return Err(GgufError::Misaligned { name: self.name, alignment, offset: self.offset });
        }
        let Some(shape) = row_major(&self.dimensions) else {
            return Err(GgufError::TooLarge { name: self.name, shape: self.dimensions });
        };
        let range = match StorageType::from_ggml(self.type_number) {
            Some(storage) => Some(self.range(&shape, storage, data_start, file_bytes)?),
            None => None,
        };
        Ok(TensorInfo { name: self.name, shape, type_number: self.type_number, range })
    }

    fn range(
        &self,
        shape: &[usize],
        storage: StorageType,
        data_start: usize,
        file_bytes: usize,
    ) -> Result<Range<usize>, GgufError> {
        let row = shape.last().copied().unwrap_or(1);
        let block_size = storage.block_size();
        if !row.is_multiple_of(block_size) {
            return Err(GgufError::PartialBlock { name: self.name.clone(), storage, block_size, row });
        }
        let blocks = shape.iter().product::<usize>() / block_size;
        let Some(num_bytes) = blocks.checked_mul(storage.type_size()) else {
            return Err(GgufError::TooLarge { name: self.name.clone(), shape: self.dimensions.clone() });
        };
        let start = usize::try_from(self.offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(num_bytes)).filter(|&end| end <= file_bytes);
        match (start, end) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(GgufError::OutOfFile {
                name: self.name.clone(),
                num_bytes: num_bytes as u64,
                offset: self.offset,
                file_bytes,
            }),
        }
    }
}

/// The dimensions reversed, if their product can be counted.
fn row_major(dimensions: &[u64]) -> Option<Vec<usize>> {
    let shape = dimensions.iter().rev().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
    shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d))?;
    Some(shape)
}

/// A position in the file from which fields are taken one after another.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offset: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.offset)
    }

    fn take(&mut self, what: &str, num_bytes: u64) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(num_bytes).ok().and_then(|n| self.offset.checked_add(n));
        let Some(taken) = end.and_then(|end| self.bytes.get(self.offset..end)) else {
            let available = self.left();
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                offset: self.offset,
                needed: num_bytes,
                available,
            });
        };
        self.offset += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let taken = self.take(what, N as u64)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, GgufError> {
        let offset = self.offset;
        let found = self.u64(what)?;
        if found > limit {
            return Err(GgufError::Limit { what: what.to_owned(), offset, limit, found });
        }
        Ok(found)
    }

    /// The bytes of a string.
    pub(super) fn raw_string(&mut self, what: &str, limit: u64) -> Result<&'a [u8], GgufError> {
        let num_bytes = self.count(what, limit)?;
        self.take(what, num_bytes)
    }

    fn string(&mut self, what: &str, limit: u64) -> Result<String, GgufError> {
        let offset = self.offset;
        let raw = self.raw_string(what, limit)?;
        let text = std::str::from_utf8(raw).map_err(|_| GgufError::Utf8 { what: what.to_owned(), offset })?;
        Ok(text.to_owned())
    }

    /// Steps over a metadata value, noting its type and where it stands.
    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        const ARRAY: u32 = 9;
        let kind_offset = self.offset;
        let number = self.u32(key)?;
        if number != ARRAY {
            let kind = kind(key, kind_offset, number)?;
            let start = self.offset;
            self.skip(key, kind, 1)?;
            return Ok(Value { kind, array: None, start });
        }
        let kind_offset = self.offset;
        let number = self.u32(key)?;
        if number == ARRAY {
            return Err(GgufError::NestedArray { what: key.to_owned(), offset: kind_offset });
        }
        let kind = kind(key, kind_offset, number)?;
        let num_items = self.count(key, u64::MAX)?;
        let start = self.offset;
        let needed = num_items.saturating_mul(kind.min_bytes());
        if needed > self.left() as u64 {
            return Err(GgufError::Truncated { what: key.to_owned(), offset: start, needed, available: self.left() });
        }
        self.skip(key, kind, num_items)?;
        let num_items = usize::try_from(num_items).expect("no more items than bytes in memory");
        Ok(Value { kind, array: Some(num_items), start })
    }

    fn skip(&mut self, key: &str, kind: Kind, num_items: u64) -> Result<(), GgufError> {
        match kind {
            Kind::String => {
                for _ in 0..num_items {
                    self.raw_string(key, MAX_STRING_BYTES)?;
                }
            }
            Kind::Bool => {
                let offset = self.offset;
                let flags = self.take(key, num_items)?;
                if let Some(i) = flags.iter().position(|&flag| flag > 1) {
                    return Err(GgufError::Bool { what: key.to_owned(), offset: offset + i, found: flags[i] });
                }
            }
            _ => {
                self.take(key, num_items.saturating_mul(kind.min_bytes()))?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, index: u64) -> Result<RawTensor, GgufError> {
        let name = self.string(&format!("name of tensor {index}"), MAX_TENSOR_NAME_BYTES)?;
        let what = format!("description of tensor `{name}`");
        let num_dimensions = self.u32(&what)?;
        if num_dimensions == 0 || num_dimensions > MAX_DIMENSIONS {
            return Err(GgufError::DimensionCount { name, limit: MAX_DIMENSIONS, found: num_dimensions });
        }
        let dimensions = (0..num_dimensions).map(|_| self.u64(&what)).collect::<Result<_, _>>()?;
        Ok(RawTensor { name, dimensions, type_number: self.u32(&what)?, offset: self.u64(&what)? })
    }
}

fn kind(key: &str, offset: usize, number: u32) -> Result<Kind, GgufError> {
    Kind::from_number(number).ok_or_else(|| GgufError::ValueType { what: key.to_owned(), offset, found: number })
}
