//! Rows of a Parquet file: scalar columns, lists of scalars and groups of such lists, read column by column in batches.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use serde_json::{Map, Value};

use super::MAX_ROW_BYTES;
use super::error::{DataError, RowRef};
use super::row::Row;
use super::source::{Seekable, open_seekable};

/// Rows decoded at once; small because a row may hold a long text.
const BATCH_ROWS: usize = 64;
/// Largest ratio of uncompressed to compressed bytes of a column chunk beyond 64 MiB.
const MAX_EXPANSION_RATIO: i64 = 1000;

/// A scalar, a list of scalars, or one of the lists that a top-level group holds.
struct Leaf {
    name: String,
    /// The list's name in its group.
    inner: Option<String>,
    index: usize,
    is_text: bool,
}

/// Reads the selected columns of a Parquet file row by row.
pub(super) struct ParquetRows {
    file: Arc<Path>,
    reader: Box<dyn FileReader>,
    leaves: Vec<Leaf>,
    open: Vec<ColumnReader>,
    next_group: usize,
    left_in_group: usize,
    ready: VecDeque<Map<String, Value>>,
    row: u64,
}

impl ParquetRows {
    /// Reads the metadata of `file`; all columns are selected.
    pub(super) fn open(file: Arc<Path>) -> Result<Self, DataError> {
        let source = open_seekable(&file)?;
        let (reader, leaves) = guarded(&file, 0, || {
            let reader: Box<dyn FileReader> = match source {
                Seekable::File(file) => Box::new(SerializedFileReader::new(file)?),
                Seekable::Memory(bytes) => Box::new(SerializedFileReader::new(bytes)?),
            };
            let leaves = leaves(reader.as_ref());
            Ok((reader, leaves))
        })?;
        Ok(Self {
            file,
            reader,
            leaves,
            open: Vec::new(),
            next_group: 0,
            left_in_group: 0,
            ready: VecDeque::new(),
            row: 0,
        })
    }

    /// Names of the readable columns, in file order; with `text_only`, those holding text.
    pub(super) fn columns(&self, text_only: bool) -> Vec<String> {
        let kept = self.leaves.iter().filter(|leaf| leaf.is_text || !text_only);
        let mut names: Vec<String> = kept.map(|leaf| leaf.name.clone()).collect();
        // The lists of a group follow each other.
        names.dedup();
        names
    }

    /// Reads these columns alone.
    pub(super) fn select(&mut self, names: &[&str]) {
        self.leaves.retain(|leaf| names.contains(&leaf.name.as_str()));
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        while self.ready.is_empty() {
            if self.left_in_group == 0 {
                if self.next_group == self.reader.num_row_groups() {
                    return Ok(None);
                }
                self.open_group()?;
            } else {
                self.read_batch()?;
            }
        }
        self.row += 1;
        let at = self.at(self.row);
        Ok(self.ready.pop_front().map(|fields| Row { fields, at }))
    }

    fn at(&self, row: u64) -> RowRef {
        RowRef { file: Arc::clone(&self.file), row }
    }

    /// Opens the next row group; an error leaves the reader unusable.
    fn open_group(&mut self) -> Result<(), DataError> {
        let file = Arc::clone(&self.file);
        guarded(&file, self.row + 1, || {
            let group = self.reader.get_row_group(self.next_group)?;
            let num_rows = group.metadata().num_rows();
            self.left_in_group =
                usize::try_from(num_rows).map_err(|_| ParquetError::General(format!("{num_rows} rows")))?;
            self.open.clear();
            for leaf in &self.leaves {
                let chunk = group.metadata().column(leaf.index);
                let limit = chunk.compressed_size().saturating_mul(MAX_EXPANSION_RATIO);
                if chunk.uncompressed_size() > limit.max(64 << 20) {
                    return Err(ParquetError::General(format!(
                        "column `{}` expands from {} to {} bytes: not ordinary text",
                        leaf.name,
                        chunk.compressed_size(),
                        chunk.uncompressed_size()
                    )));
                }
                self.open.push(group.get_column_reader(leaf.index)?);
            }
            self.next_group += 1;
            Ok(())
        })
    }

    /// Decodes the next rows of the group; the error names the first of them.
    fn read_batch(&mut self) -> Result<(), DataError> {
        let file = Arc::clone(&self.file);
        guarded(&file, self.row + 1, || {
            let num_rows = self.left_in_group.min(BATCH_ROWS);
            let schema = self.reader.metadata().file_metadata().schema_descr_ptr();
            let mut rows = vec![Map::new(); num_rows];
            for (leaf, column) in self.leaves.iter().zip(&mut self.open) {
                let descriptor = schema.column(leaf.index);
                let values = read_values(column, &descriptor, num_rows)
                    .map_err(|error| ParquetError::General(format!("column `{}`: {}", leaf.name, reason(&error))))?;
                for (row, value) in rows.iter_mut().zip(values) {
                    match &leaf.inner {
                        None => row.insert(leaf.name.clone(), value),
                        Some(inner) => {
                            let group = row.entry(leaf.name.clone()).or_insert_with(|| Value::Object(Map::new()));
                            group.as_object_mut().and_then(|group| group.insert(inner.clone(), value))
                        }
                    };
                }
            }
            self.left_in_group -= num_rows;
            self.ready.extend(rows);
            Ok(())
        })
    }
}

/// Runs `read`, turning its errors into ours. The `parquet` crate holds some of its checks of the
/// file's contents as assertions, so a panic is an error of the file as well.
fn guarded<T>(file: &Arc<Path>, row: u64, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
    let reason = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => reason(&error),
        Err(_) => "the data contradict themselves".to_owned(),
    };
    Err(DataError::Parquet { at: RowRef { file: Arc::clone(file), row }, reason })
}

fn reason(error: &ParquetError) -> String {
    let reason = match error {
        ParquetError::General(reason) | ParquetError::EOF(reason) => reason.clone(),
        other => other.to_string(),
    };
    reason.replace('\n', " ")
}

/// The readable leaves: top-level columns that have a single leaf repeated at most once, and such lists in a group.
fn leaves(reader: &dyn FileReader) -> Vec<Leaf> {
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let root = |index: usize| schema.get_column_root_idx(index);
    let leaf = |index: usize| {
        let column = schema.column(index);
        let path = column.path().parts();
        let top = schema.get_column_root(index);
        let is_alone = (0..schema.num_columns()).filter(|&i| root(i) == root(index)).count() == 1;
        let is_group = top.is_group()
            && top.get_basic_info().converted_type() == ConvertedType::NONE
            && (!top.get_basic_info().has_repetition() || top.get_basic_info().repetition() != Repetition::REPEATED);
        let inner = match (column.max_rep_level(), path) {
            // A list in a group has the path `group.name.list.element`.
            (1, [_, inner, _, _]) if is_group => Some(inner.clone()),
            // A list's own is `name.list.element`.
            (0, [_]) | (1, [_] | [_, _] | [_, _, _]) if is_alone => None,
            _ => return None,
        };
        let is_text = column.max_rep_level() == 0
            && column.physical_type() == PhysicalType::BYTE_ARRAY
            && (matches!(column.converted_type(), ConvertedType::UTF8)
                || matches!(column.logical_type_ref(), Some(LogicalType::String)));
        Some(Leaf { name: top.name().to_owned(), inner, index, is_text })
    };
    let found: Vec<Leaf> = (0..schema.num_columns()).filter_map(leaf).collect();
    // Two leaves of one name are parts of something that is no list of scalars.
    let names = |leaf: &Leaf| (leaf.name.clone(), leaf.inner.clone());
    let counts = found.iter().map(names).fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_insert(0) += 1;
        counts
    });
    found.into_iter().filter(|leaf| counts[&names(leaf)] == 1).collect()
}

/// The next `num_rows` values of a column.
fn read_values(
    column: &mut ColumnReader,
    descriptor: &ColumnDescriptor,
    num_rows: usize,
) -> Result<Vec<Value>, ParquetError> {
    match column {
        ColumnReader::ByteArrayColumnReader(typed) => {
            read_typed(typed, descriptor, num_rows, |bytes| text(bytes.data()))
        }
        ColumnReader::BoolColumnReader(typed) => read_typed(typed, descriptor, num_rows, |&value| Ok(value.into())),
        ColumnReader::Int32ColumnReader(typed) => read_typed(typed, descriptor, num_rows, |&value| Ok(value.into())),
        ColumnReader::Int64ColumnReader(typed) => read_typed(typed, descriptor, num_rows, |&value| Ok(value.into())),
        ColumnReader::FloatColumnReader(typed) => read_typed(typed, descriptor, num_rows, |&value| Ok(value.into())),
        ColumnReader::DoubleColumnReader(typed) => read_typed(typed, descriptor, num_rows, |&value| Ok(value.into())),
        _ => Err(ParquetError::General(format!(
            "expected text, a number or a list of them, found {}",
            descriptor.physical_type()
        ))),
    }
}

fn text(bytes: &[u8]) -> Result<Value, ParquetError> {
    if bytes.len() > MAX_ROW_BYTES {
        return Err(ParquetError::General(format!("a text longer than {MAX_ROW_BYTES} bytes")));
    }
    std::str::from_utf8(bytes).map(Value::from).map_err(|error| {
        ParquetError::General(format!("expected UTF-8, found an invalid byte at {}", error.valid_up_to()))
    })
}

/// Reads `num_rows` records of a leaf and folds its definition and repetition levels into values:
/// null, a scalar, or a list (Dremel encoding, Melnik et al. 2010, section 4.1).
fn read_typed<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    descriptor: &ColumnDescriptor,
    num_rows: usize,
    convert: impl Fn(&T::T) -> Result<Value, ParquetError>,
) -> Result<Vec<Value>, ParquetError> {
    let (mut definitions, mut repetitions, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    let mut num_read = 0;
    while num_read < num_rows {
        let (records, ..) =
            column.read_records(num_rows - num_read, Some(&mut definitions), Some(&mut repetitions), &mut leaves)?;
        if records == 0 {
            return Err(ParquetError::General(format!("ends {} rows early", num_rows - num_read)));
        }
        num_read += records;
    }
    let is_list = descriptor.max_rep_level() > 0;
    let max_definition = descriptor.max_def_level();
    // from this level on, an element is there, though it may be null
    let element_definition = descriptor.repeated_ancestor_def_level();
    let mut leaves = leaves.iter();
    let mut next_leaf = || {
        let leaf = leaves.next().ok_or_else(|| ParquetError::General("fewer values than levels".to_owned()))?;
        convert(leaf)
    };
    let num_levels = if max_definition > 0 { definitions.len() } else { num_rows };
    let mut values: Vec<Value> = Vec::with_capacity(num_rows);
    for level in 0..num_levels {
        let definition = definitions.get(level).copied().unwrap_or(max_definition);
        let value = if definition == max_definition { next_leaf()? } else { Value::Null };
        if !is_list {
            values.push(value);
            continue;
        }
        if repetitions.get(level).copied().unwrap_or(0) == 0 {
            values.push(Value::Array(Vec::new()));
        }
        if let Some(Value::Array(list)) = values.last_mut()
            && definition >= element_definition
        {
            list.push(value);
        }
    }
    if values.len() != num_rows {
        return Err(ParquetError::General(format!("expected {num_rows} rows, found {}", values.len())));
    }
    Ok(values)
}
