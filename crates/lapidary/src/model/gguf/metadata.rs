//! Typed access to the metadata of a GGUF file.

use super::read::Cursor;
use super::{GgufError, GgufFile, MAX_STRING_BYTES};

/// The type of a metadata value, or of the items of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Kind {
    /// The type with this number in the format; arrays (9) are not among them.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value; for strings, of the length before the text.
    pub(super) fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// Where a metadata value stands and what it is; the header's parser has made sure that it lies inside the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    pub(super) kind: Kind,
    /// Number of items, for arrays.
    pub(super) array: Option<usize>,
    /// Offset of the value or of the first item.
    pub(super) start: usize,
}

impl Value {
    fn describe(&self) -> String {
        match self.array {
            None => format!("{:?}", self.kind),
            Some(num_items) => format!("an array of {num_items} {:?}", self.kind),
        }
    }

    fn wrong(&self, key: &str, expected: &'static str) -> GgufError {
        GgufError::WrongType { key: key.to_owned(), expected, found: self.describe() }
    }

    fn item<const N: usize>(&self, bytes: &[u8], index: usize) -> [u8; N] {
        let start = self.start + index * N;
        bytes[start..start + N].try_into().expect("a slice of N bytes")
    }

    /// The item as an integer wide enough for all integer types; `None` for other types.
    fn integer(&self, bytes: &[u8], index: usize) -> Option<i128> {
        Some(match self.kind {
            Kind::U8 => u8::from_le_bytes(self.item(bytes, index)).into(),
            Kind::I8 => i8::from_le_bytes(self.item(bytes, index)).into(),
            Kind::U16 => u16::from_le_bytes(self.item(bytes, index)).into(),
            Kind::I16 => i16::from_le_bytes(self.item(bytes, index)).into(),
            Kind::U32 => u32::from_le_bytes(self.item(bytes, index)).into(),
            Kind::I32 => i32::from_le_bytes(self.item(bytes, index)).into(),
            Kind::U64 => u64::from_le_bytes(self.item(bytes, index)).into(),
            Kind::I64 => i64::from_le_bytes(self.item(bytes, index)).into(),
            Kind::F32 | Kind::F64 | Kind::Bool | Kind::String => return None,
        })
    }

    /// The item narrowed to the integer type `T`.
    fn narrow<T: TryFrom<i128>>(
        &self,
        bytes: &[u8],
        key: &str,
        index: usize,
        expected: &'static str,
    ) -> Result<T, GgufError> {
        let wide = self.integer(bytes, index).ok_or_else(|| self.wrong(key, expected))?;
        T::try_from(wide).map_err(|_| GgufError::WrongType { key: key.to_owned(), expected, found: wide.to_string() })
    }

    /// A scalar as a 32-bit unsigned integer.
    pub(super) fn as_u32(&self, bytes: &[u8], key: &str) -> Result<u32, GgufError> {
        self.scalar(key, "a 32-bit unsigned integer")?.narrow(bytes, key, 0, "a 32-bit unsigned integer")
    }

    fn scalar(&self, key: &str, expected: &'static str) -> Result<&Self, GgufError> {
        if self.array.is_some() { Err(self.wrong(key, expected)) } else { Ok(self) }
    }

    fn num_items(&self, key: &str, expected: &'static str) -> Result<usize, GgufError> {
        self.array.ok_or_else(|| self.wrong(key, expected))
    }
}

impl<S: AsRef<[u8]>> GgufFile<S> {
    /// All metadata keys, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// Whether the metadata has this key.
    pub fn has_key(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    fn value(&self, key: &str) -> Result<&Value, GgufError> {
        self.metadata.get(key).ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// The number of elements of an array; `None` when the key is missing or no array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        self.metadata.get(key)?.array
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.storage.as_ref()
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// When the key is missing, or its value is no integer or does not fit.
    pub fn get_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.value(key)?.as_u32(self.bytes(), key)
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// When the key is missing, or its value is no integer or does not fit.
    pub fn get_u64(&self, key: &str) -> Result<u64, GgufError> {
        let expected = "a 64-bit unsigned integer";
        self.value(key)?.scalar(key, expected)?.narrow(self.bytes(), key, 0, expected)
    }

    /// A floating-point number; doubles are rounded.
    ///
    /// # Errors
    /// When the key is missing, or its value is no floating-point number.
    pub fn get_f32(&self, key: &str) -> Result<f32, GgufError> {
        let value = self.value(key)?.scalar(key, "a floating-point number")?;
        match value.kind {
            Kind::F32 => Ok(f32::from_le_bytes(value.item(self.bytes(), 0))),
            Kind::F64 => Ok(f64::from_le_bytes(value.item(self.bytes(), 0)) as f32),
            _ => Err(value.wrong(key, "a floating-point number")),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// When the key is missing, or its value is no boolean.
    pub fn get_bool(&self, key: &str) -> Result<bool, GgufError> {
        let value = self.value(key)?.scalar(key, "a boolean")?;
        match value.kind {
            Kind::Bool => Ok(value.item::<1>(self.bytes(), 0) != [0]),
            _ => Err(value.wrong(key, "a boolean")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When the key is missing, or its value is no string or not UTF-8.
    pub fn get_str(&self, key: &str) -> Result<&str, GgufError> {
        let value = self.value(key)?.scalar(key, "a string")?;
        let mut strings = self.string_items(key, value, 1, "a string")?;
        Ok(strings.pop().unwrap_or_default())
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When the key is missing, or its value is no array of strings or one of them is not UTF-8.
    pub fn get_strings(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        let value = self.value(key)?;
        let num_items = value.num_items(key, "an array of strings")?;
        self.string_items(key, value, num_items, "an array of strings")
    }

    fn string_items(
        &self,
        key: &str,
        value: &Value,
        num_items: usize,
        expected: &'static str,
    ) -> Result<Vec<&str>, GgufError> {
        if value.kind != Kind::String {
            return Err(value.wrong(key, expected));
        }
        let mut cursor = Cursor { bytes: self.bytes(), offset: value.start };
        let mut strings = Vec::with_capacity(num_items);
        for index in 0..num_items {
            let offset = cursor.offset;
            let raw = cursor.raw_string(key, MAX_STRING_BYTES)?;
            let what = || format!("metadata key `{key}`, string {index}");
            strings.push(std::str::from_utf8(raw).map_err(|_| GgufError::Utf8 { what: what(), offset })?);
        }
        Ok(strings)
    }

    /// An array of floating-point numbers; doubles are rounded.
    ///
    /// # Errors
    /// When the key is missing, or its value is no such array.
    pub fn get_f32s(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        let value = self.value(key)?;
        let num_items = value.num_items(key, "an array of floating-point numbers")?;
        let bytes = self.bytes();
        match value.kind {
            Kind::F32 => Ok((0..num_items).map(|i| f32::from_le_bytes(value.item(bytes, i))).collect()),
            Kind::F64 => Ok((0..num_items).map(|i| f64::from_le_bytes(value.item(bytes, i)) as f32).collect()),
            _ => Err(value.wrong(key, "an array of floating-point numbers")),
        }
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// When the key is missing, its value is no such array, or an item does not fit.
    pub fn get_i32s(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.integers(key, "an array of 32-bit signed integers")
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// When the key is missing, its value is no such array, or an item does not fit.
    pub fn get_u32s(&self, key: &str) -> Result<Vec<u32>, GgufError> {
        self.integers(key, "an array of 32-bit unsigned integers")
    }

    fn integers<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Vec<T>, GgufError> {
        let value = self.value(key)?;
        let num_items = value.num_items(key, expected)?;
        (0..num_items).map(|i| value.narrow(self.bytes(), key, i, expected)).collect()
    }
}
