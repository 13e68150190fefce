//! Embeddings as Parquet: a text column and a list column that readers of Arrow see as a
//! fixed-size list of f32.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, VOffsetT, WIPOffset};
use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, Type};

use super::OutputError;
use super::atomic::AtomicFile;

/// A row group is written once it holds this many numbers or bytes of text.
const ROW_GROUP_VALUES: usize = 4 << 20;
const ROW_GROUP_TEXT_BYTES: usize = 32 << 20;

/// Key under which Parquet files carry the Arrow schema they were written from.
const ARROW_SCHEMA_KEY: &str = "ARROW:schema";

/// Writes row groups of texts and embeddings.
pub(super) struct ParquetVectors {
    path: PathBuf,
    writer: SerializedFileWriter<AtomicFile>,
    list_size: usize,
    include_text: bool,
    texts: Vec<ByteArray>,
    text_levels: Vec<i16>,
    text_bytes: usize,
    values: Vec<f32>,
}

impl ParquetVectors {
    /// Starts a file of lists of `list_size` numbers, at least 1.
    pub(super) fn create(path: &Path, list_size: i32, include_text: bool) -> Result<Self, OutputError> {
        let file = AtomicFile::create(path)?;
        let schema = schema(include_text).map_err(wrong(path))?;
        let arrow_schema = STANDARD.encode(arrow_schema(list_size, include_text));
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // floats do not repeat: neither a dictionary nor compression shrinks them
            .set_column_compression(embedding_path(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(embedding_path(), false)
            .set_created_by("lapidary".to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new(ARROW_SCHEMA_KEY.to_owned(), arrow_schema)]))
            .build();
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(wrong(path))?;
        Ok(Self {
            path: path.to_owned(),
            writer,
            list_size: list_size as usize,
            include_text,
            texts: Vec::new(),
            text_levels: Vec::new(),
            text_bytes: 0,
            values: Vec::new(),
        })
    }

    /// The path the file will have.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one row of `list_size` numbers.
    pub(super) fn push(&mut self, text: Option<&str>, row: &[f32]) -> Result<(), OutputError> {
        debug_assert_eq!(row.len(), self.list_size);
        self.text_levels.push(i16::from(text.is_some()));
        if let Some(text) = text {
            self.texts.push(ByteArray::from(text));
            self.text_bytes += text.len();
        }
        self.values.extend_from_slice(row);
        if self.values.len() >= ROW_GROUP_VALUES || self.text_bytes >= ROW_GROUP_TEXT_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    /// Writes the rest and the footer.
    pub(super) fn finish(mut self) -> Result<AtomicFile, OutputError> {
        if !self.values.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner().map_err(wrong(&self.path))
    }

    fn write_group(&mut self) -> Result<(), OutputError> {
        self.encode_group().map_err(wrong(&self.path))?;
        self.texts.clear();
        self.text_levels.clear();
        self.text_bytes = 0;
        self.values.clear();
        Ok(())
    }

    fn encode_group(&mut self) -> Result<(), ParquetError> {
        let missing = || ParquetError::General("a column is missing".to_owned());
        let mut group = self.writer.next_row_group()?;
        if self.include_text {
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column.typed::<ByteArrayType>().write_batch(&self.texts, Some(&self.text_levels), None)?;
            column.close()?;
        }
        let definitions = vec![1; self.values.len()];
        let repetitions: Vec<i16> =
            (0..self.values.len()).map(|index| i16::from(index % self.list_size != 0)).collect();
        let mut column = group.next_column()?.ok_or_else(missing)?;
        column.typed::<FloatType>().write_batch(&self.values, Some(&definitions), Some(&repetitions))?;
        column.close()?;
        group.close()?;
        Ok(())
    }
}

fn wrong(path: &Path) -> impl FnOnce(ParquetError) -> OutputError {
    let path = path.to_owned();
    move |error| match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => OutputError::Io { action: "write", path, source: *source },
            Err(other) => OutputError::Parquet { path, reason: other.to_string() },
        },
        other => OutputError::Parquet { path, reason: other.to_string() },
    }
}

fn embedding_path() -> ColumnPath {
    ColumnPath::new(["embedding", "list", "element"].map(str::to_owned).to_vec())
}

/// `optional text (String)`, `required embedding (List) { repeated list { required element } }`.
fn schema(include_text: bool) -> Result<Type, ParquetError> {
    let element =
        Type::primitive_type_builder("element", PhysicalType::FLOAT).with_repetition(Repetition::REQUIRED).build()?;
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(element)])
        .build()?;
    let embedding = Type::group_type_builder("embedding")
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let mut fields = Vec::new();
    if include_text {
        let text = Type::primitive_type_builder("text", PhysicalType::BYTE_ARRAY)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(Some(LogicalType::String))
            .build()?;
        fields.push(Arc::new(text));
    }
    fields.push(Arc::new(embedding));
    Type::group_type_builder("schema").with_fields(fields).build()
}

/// Members of the Arrow format's `Type` union (`Schema.fbs`).
const FLOATING_POINT: u8 = 3;
const UTF8: u8 = 5;
const FIXED_SIZE_LIST: u8 = 16;

/// Offset of a table's member in its vtable.
const fn slot(member: VOffsetT) -> VOffsetT {
    4 + 2 * member
}

/// The Arrow schema of the file as an encapsulated IPC message (Arrow columnar format, section
/// "Encapsulated message format"). Written by hand: two tables deep, it is not worth the Arrow
/// crates.
fn arrow_schema(list_size: i32, include_text: bool) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let float = {
        let table = builder.start_table();
        builder.push_slot::<i16>(slot(0), 1, 0); // precision: single
        builder.end_table(table).as_union_value()
    };
    let element = field(&mut builder, ("element", false), (FLOATING_POINT, float), &[]);
    let list = {
        let table = builder.start_table();
        builder.push_slot::<i32>(slot(0), list_size, 0);
        builder.end_table(table).as_union_value()
    };
    let mut fields = Vec::new();
    if include_text {
        let table = builder.start_table();
        let utf8 = builder.end_table(table).as_union_value();
        fields.push(field(&mut builder, ("text", true), (UTF8, utf8), &[]));
    }
    fields.push(field(&mut builder, ("embedding", false), (FIXED_SIZE_LIST, list), &[element]));
    let fields = builder.create_vector(&fields);
    let schema = {
        let table = builder.start_table();
        builder.push_slot_always(slot(1), fields);
        builder.end_table(table)
    };
    let message = {
        let table = builder.start_table();
        builder.push_slot::<i16>(slot(0), 4, 0); // metadata version 5
        builder.push_slot::<u8>(slot(1), 1, 0); // the header is a schema
        builder.push_slot_always(slot(2), schema);
        builder.end_table(table)
    };
    builder.finish_minimal(message);
    let message = builder.finished_data();
    let padded = message.len().next_multiple_of(8);
    let mut bytes = vec![0xff; 4]; // continuation marker
    bytes.extend_from_slice(&(padded as u32).to_le_bytes());
    bytes.extend_from_slice(message);
    bytes.resize(8 + padded, 0);
    bytes
}

/// An Arrow `Field`: name and whether it may be null, type, children.
fn field<'a>(
    builder: &mut FlatBufferBuilder<'a>,
    (name, nullable): (&str, bool),
    (kind, data): (u8, WIPOffset<UnionWIPOffset>),
    children: &[WIPOffset<flatbuffers::TableFinishedWIPOffset>],
) -> WIPOffset<flatbuffers::TableFinishedWIPOffset> {
    let name = builder.create_string(name);
    let children = builder.create_vector(children);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), name);
    builder.push_slot::<bool>(slot(1), nullable, false);
    builder.push_slot::<u8>(slot(2), kind, 0);
    builder.push_slot_always(slot(3), data);
    builder.push_slot_always(slot(5), children);
    builder.end_table(table)
}
