//! Lines of UTF-8 text, numbered, each held to a maximum length.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::MAX_ROW_BYTES;
use super::error::{DataError, RowRef};
use super::source::{Stream, open_text};

/// Reads a text file line by line.
pub(super) struct Lines {
    file: Arc<Path>,
    reader: BufReader<Stream>,
    buffer: Vec<u8>,
    line: u64,
}

impl Lines {
    /// Opens `file`, decompressing it by its name.
    pub(super) fn open(file: Arc<Path>) -> Result<Self, DataError> {
        let reader = BufReader::with_capacity(64 << 10, open_text(&file)?);
        Ok(Self { file, reader, buffer: Vec::new(), line: 0 })
    }

    /// The next line without its `\n` or `\r\n`, and its number; `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(&str, RowRef)>, DataError> {
        self.buffer.clear();
        self.line += 1;
        let at = RowRef { file: Arc::clone(&self.file), row: self.line };
        if !self.fill(&at)? {
            return Ok(None);
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((text, at))),
            Err(error) => Err(DataError::Utf8 { at, offset: error.valid_up_to() }),
        }
    }

    /// Appends bytes up to the next `\n` to the buffer; false if there are none left.
    fn fill(&mut self, at: &RowRef) -> Result<bool, DataError> {
        let mut any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(DataError::Read { at: at.clone(), source });
                }
            };
            if available.is_empty() {
                return Ok(any);
            }
            any = true;
            let newline = available.iter().position(|&byte| byte == b'\n');
            let taken = newline.unwrap_or(available.len());
            if self.buffer.len() + taken > MAX_ROW_BYTES {
                return Err(DataError::TooLong { at: at.clone(), limit_bytes: MAX_ROW_BYTES });
            }
            self.buffer.extend_from_slice(&available[..taken]);
            self.reader.consume(taken + usize::from(newline.is_some()));
            if newline.is_some() {
                return Ok(true);
            }
        }
    }
}
