//! Rows of a CSV or TSV file under its header.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use super::MAX_ROW_BYTES;
use super::error::{DataError, RowRef};
use super::row::Row;
use super::source::{Stream, open_text};

/// Reads a CSV or TSV file row by row; the first row names the columns.
pub(super) struct CsvRows {
    file: Arc<Path>,
    reader: csv::Reader<Budgeted>,
    shared: Arc<Shared>,
    header: Vec<String>,
    record: csv::StringRecord,
}

impl CsvRows {
    /// Opens `file` and reads its header.
    pub(super) fn open(file: Arc<Path>, delimiter: u8) -> Result<Self, DataError> {
        let shared = Arc::new(Shared::default());
        shared.left.store(MAX_ROW_BYTES, Ordering::Relaxed);
        let stream = Budgeted { inner: open_text(&file)?, shared: Arc::clone(&shared), seen_line_end: false };
        let reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(stream);
        let mut rows = Self { file, reader, shared, header: Vec::new(), record: csv::StringRecord::new() };
        match rows.reader.headers() {
            Ok(header) => rows.header = header.iter().map(str::to_owned).collect(),
            Err(error) => return Err(rows.wrong(error)),
        }
        Ok(rows)
    }

    /// The column names; none for an empty file.
    pub(super) fn header(&self) -> &[String] {
        &self.header
    }

    /// The next row, of its `selected` columns or all; `None` at the end.
    pub(super) fn next_row(&mut self, selected: &[String]) -> Result<Option<Row>, DataError> {
        self.shared.left.store(MAX_ROW_BYTES, Ordering::Relaxed);
        match self.reader.read_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(self.wrong(error)),
        }
        let at = self.at(self.record.position());
        if self.record.as_slice().len() > MAX_ROW_BYTES {
            return Err(too_long(at));
        }
        let fields = self
            .header
            .iter()
            .zip(&self.record)
            .filter(|(name, _)| selected.is_empty() || selected.contains(name))
            .map(|(name, value)| (name.clone(), Value::from(value)))
            .collect();
        Ok(Some(Row { fields, at }))
    }

    fn at(&self, position: Option<&csv::Position>) -> RowRef {
        let position = position.unwrap_or(self.reader.position());
        // the reader takes the `\n` of `\r\n` for the beginning of the next row
        let crlf = self.shared.crlf.load(Ordering::Relaxed) && position.byte() > 0;
        RowRef { file: Arc::clone(&self.file), row: position.line() + u64::from(crlf) }
    }

    fn wrong(&self, error: csv::Error) -> DataError {
        let at = self.at(error.position());
        let reason = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(_) if self.shared.left.load(Ordering::Relaxed) == 0 => too_long(at),
            csv::ErrorKind::Io(source) => DataError::Read { at, source },
            csv::ErrorKind::Utf8 { err, .. } => DataError::Utf8 { at, offset: err.valid_up_to() },
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                DataError::Csv { at, reason: format!("expected {expected_len} fields as in the header, found {len}") }
            }
            _ => DataError::Csv { at, reason },
        }
    }
}

fn too_long(at: RowRef) -> DataError {
    DataError::TooLong { at, limit_bytes: MAX_ROW_BYTES }
}

/// What the rows and the stream below the CSV parser tell each other.
#[derive(Default)]
struct Shared {
    /// Bytes the current row may still take.
    left: AtomicUsize,
    /// Whether the first line ends with `\r\n`.
    crlf: AtomicBool,
}

/// Ends with an error when one row has used up its bytes: an unclosed quote would otherwise take
/// the rest of the file into memory.
struct Budgeted {
    inner: Stream,
    shared: Arc<Shared>,
    seen_line_end: bool,
}

impl Read for Budgeted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.shared.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(std::io::Error::other("row too long"));
        }
        let wanted = buffer.len().min(left);
        let read = self.inner.read(&mut buffer[..wanted])?;
        self.shared.left.store(left - read, Ordering::Relaxed);
        if !self.seen_line_end
            && let Some(end) = buffer[..read].iter().position(|&byte| byte == b'\n')
        {
            self.seen_line_end = true;
            let crlf = buffer[..end].last() == Some(&b'\r');
            self.shared.crlf.store(crlf, Ordering::Relaxed);
        }
        Ok(read)
    }
}
