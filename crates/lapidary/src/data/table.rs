//! One data file as rows of named fields, whatever its format.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::csv_rows::CsvRows;
use super::error::{DataError, RowRef};
use super::lines::Lines;
use super::parquet_rows::ParquetRows;
use super::row::{Row, kind};
use super::source::{Format, format};

/// The one column of a plain text file.
const TEXT_COLUMN: &str = "text";

/// A file being read row by row.
pub(super) struct Table {
    file: Arc<Path>,
    rows: Rows,
    /// JSON Lines has no header: the first row is read ahead to learn the columns.
    ahead: Option<Row>,
    selected: Vec<String>,
    num_blank_lines: u64,
}

enum Rows {
    Text(Lines),
    JsonLines(Lines),
    Csv(CsvRows),
    Parquet(ParquetRows),
}

impl Table {
    /// Opens `file` in the format its name tells.
    pub(super) fn open(file: &Path) -> Result<Self, DataError> {
        let format = format(file)?;
        let file: Arc<Path> = Arc::from(file);
        let rows = match format {
            Format::Text => Rows::Text(Lines::open(Arc::clone(&file))?),
            Format::JsonLines => Rows::JsonLines(Lines::open(Arc::clone(&file))?),
            Format::Csv(delimiter) => Rows::Csv(CsvRows::open(Arc::clone(&file), delimiter)?),
            Format::Parquet => Rows::Parquet(ParquetRows::open(Arc::clone(&file))?),
        };
        let mut table = Self { file, rows, ahead: None, selected: Vec::new(), num_blank_lines: 0 };
        if format == Format::JsonLines {
            table.ahead = table.read_row()?;
        }
        Ok(table)
    }

    /// The columns; with `text_only`, those that hold text. None for an empty file.
    pub(super) fn columns(&self, text_only: bool) -> Option<Vec<String>> {
        match &self.rows {
            Rows::Text(_) => Some(vec![TEXT_COLUMN.to_owned()]),
            Rows::JsonLines(_) => self.ahead.as_ref().map(|row| row.columns(text_only)),
            Rows::Csv(csv) => (!csv.header().is_empty()).then(|| csv.header().to_vec()),
            Rows::Parquet(parquet) => Some(parquet.columns(text_only)),
        }
    }

    /// Reads these columns alone.
    ///
    /// # Errors
    /// A column that the file (for JSON Lines, its first row) lacks. An empty file lacks none.
    pub(super) fn select(&mut self, names: &[&str]) -> Result<(), DataError> {
        if let Some(found) = self.columns(false) {
            let row = self.ahead.as_ref().map_or(1, |row| row.at.row);
            for name in names {
                if !found.iter().any(|column| column == name) {
                    return Err(DataError::MissingColumn {
                        at: RowRef { file: Arc::clone(&self.file), row },
                        column: (*name).to_owned(),
                        found,
                    });
                }
            }
        }
        if let Rows::Parquet(parquet) = &mut self.rows {
            parquet.select(names);
        }
        self.selected = names.iter().map(|&name| name.to_owned()).collect();
        Ok(())
    }

    /// Blank lines between rows that were passed over (JSON Lines).
    pub(super) fn num_blank_lines(&self) -> u64 {
        self.num_blank_lines
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        match self.ahead.take() {
            Some(row) => Ok(Some(row)),
            None => self.read_row(),
        }
    }

    fn read_row(&mut self) -> Result<Option<Row>, DataError> {
        match &mut self.rows {
            Rows::Text(lines) => Ok(lines
                .next_line()?
                .map(|(text, at)| Row { fields: Map::from_iter([(TEXT_COLUMN.to_owned(), Value::from(text))]), at })),
            Rows::JsonLines(lines) => loop {
                let Some((line, at)) = lines.next_line()? else {
                    return Ok(None);
                };
                if line.trim().is_empty() {
                    self.num_blank_lines += 1;
                    continue;
                }
                return parse_object(line, at).map(Some);
            },
            Rows::Csv(csv) => csv.next_row(&self.selected),
            Rows::Parquet(parquet) => parquet.next_row(),
        }
    }
}

fn parse_object(line: &str, at: RowRef) -> Result<Row, DataError> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok(Row { fields, at }),
        Ok(other) => Err(DataError::Json { at, reason: format!("expected an object, found {}", kind(&other)) }),
        Err(error) => {
            // the parser sees one line, so its own line number says nothing
            let reason = error.to_string();
            let reason = reason.split_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
            let reason = format!("{reason} at column {}", error.column());
            Err(DataError::Json { at, reason })
        }
    }
}
