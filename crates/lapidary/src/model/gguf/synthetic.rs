//! A writer of small GGUF files for tests, sound or broken on purpose.

/// A metadata value.
#[derive(Debug, Clone)]
pub(crate) enum Meta {
    U8(u8),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(u8),
    Str(String),
    Strs(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// Written as they are, after the key: type number, then value.
    Raw(Vec<u8>),
}

/// The parts of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Synthetic {
    pub(crate) metadata: Vec<(String, Meta)>,
    /// Name, GGML dimensions, type number, data offset.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, u64)>,
    pub(crate) data: Vec<u8>,
}

impl Synthetic {
    pub(crate) fn meta(mut self, key: &str, value: Meta) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub(crate) fn tensor(mut self, name: &str, dimensions: &[u64], type_number: u32, offset: u64) -> Self {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), type_number, offset));
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// The file's bytes, its tensor data aligned to `alignment`.
    pub(crate) fn bytes(&self, version: u32, alignment: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        for (name, dimensions, type_number, offset) in &self.tensors {
            put_string(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(type_number.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend(&self.data);
        out
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array(out: &mut Vec<u8>, kind: u32, num_items: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((num_items as u64).to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Meta) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U8(x) => scalar(0, &[*x]),
        Meta::U32(x) => scalar(4, &x.to_le_bytes()),
        Meta::I64(x) => scalar(11, &x.to_le_bytes()),
        Meta::F32(x) => scalar(6, &x.to_le_bytes()),
        Meta::F64(x) => scalar(12, &x.to_le_bytes()),
        Meta::Bool(x) => scalar(7, &[*x]),
        Meta::Str(text) => {
            scalar(8, &[]);
            put_string(out, text);
        }
        Meta::Strs(items) => {
            put_array(out, 8, items.len());
            items.iter().for_each(|text| put_string(out, text));
        }
        Meta::F32s(items) => {
            put_array(out, 6, items.len());
            items.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::I32s(items) => {
            put_array(out, 5, items.len());
            items.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::Raw(bytes) => out.extend(bytes),
    }
}
