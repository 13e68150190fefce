//! Writers for embeddings: JSON Lines, NumPy `.npy` and Parquet, rows streamed in order, the file
//! complete or absent.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;

use super::atomic::AtomicFile;
use super::vectors_parquet::ParquetVectors;
use super::{OutputError, cannot};

/// Bytes of the `.npy` header, rewritten once the number of rows is known. NumPy writes the same
/// number for two-dimensional arrays of any size that fits in memory.
const NPY_HEADER_BYTES: usize = 128;

/// Writes embeddings `[N, D]` with, on request, the texts they belong to.
pub struct VectorWriter {
    sink: Sink,
    embedding_size: usize,
    include_text: bool,
    num_rows: u64,
}

enum Sink {
    JsonLines(AtomicFile),
    Npy(AtomicFile),
    Parquet(Box<ParquetVectors>),
}

#[derive(Serialize)]
struct JsonRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    embedding: &'a [f32],
}

impl VectorWriter {
    /// Starts a file of embeddings of `embedding_size` numbers; its extension tells the format:
    ///
    /// - `.jsonl`: `{"text": …, "embedding": [D numbers]}` per line;
    /// - `.npy`: f32 `[N, D]`, never with texts;
    /// - `.parquet`: columns `text` (string) and `embedding` (fixed-size list of D f32).
    ///
    /// # Errors
    /// An unknown extension; `.npy` with texts; a size of 0 or above 2^31 - 1; the file cannot be
    /// created.
    pub fn create(path: &Path, embedding_size: usize, include_text: bool) -> Result<Self, OutputError> {
        let list_size =
            i32::try_from(embedding_size).ok().filter(|&size| size > 0).ok_or_else(|| OutputError::Row {
                path: path.to_owned(),
                row: 1,
                reason: format!("expected embeddings of 1 to 2^31 - 1 numbers, found {embedding_size}"),
            })?;
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let sink = match extension.as_deref() {
            Some("jsonl") => Sink::JsonLines(AtomicFile::create(path)?),
            Some("npy") if !include_text => {
                let mut file = AtomicFile::create(path)?;
                file.write_all(&[0; NPY_HEADER_BYTES]).map_err(cannot("write", path))?;
                Sink::Npy(file)
            }
            Some("parquet") => Sink::Parquet(Box::new(ParquetVectors::create(path, list_size, include_text)?)),
            _ => {
                return Err(OutputError::Format {
                    path: path.to_owned(),
                    expected: if include_text {
                        ".jsonl or .parquet for embeddings with texts"
                    } else {
                        ".jsonl, .npy or .parquet"
                    },
                });
            }
        };
        Ok(Self { sink, embedding_size, include_text, num_rows: 0 })
    }

    /// Appends one row; `text` is written only if texts were asked for.
    ///
    /// # Errors
    /// An embedding of another size or with a number that is not finite; a failed write.
    pub fn push(&mut self, text: Option<&str>, embedding: &[f32]) -> Result<(), OutputError> {
        self.num_rows += 1;
        self.check(embedding)?;
        let text = text.filter(|_| self.include_text);
        match &mut self.sink {
            Sink::JsonLines(file) => {
                let mut line = serde_json::to_vec(&JsonRow { text, embedding })
                    .map_err(|error| cannot("write", file.path())(error.into()))?;
                line.push(b'\n');
                file.write_all(&line).map_err(cannot("write", file.path()))
            }
            Sink::Npy(file) => embedding
                .iter()
                .try_for_each(|value| file.write_all(&value.to_le_bytes()))
                .map_err(cannot("write", file.path())),
            Sink::Parquet(parquet) => parquet.push(text, embedding),
        }
    }

    /// Completes the file and gives it its name; returns the number of rows.
    ///
    /// # Errors
    /// A failed write or rename; a file of that name is then untouched.
    pub fn finish(self) -> Result<u64, OutputError> {
        match self.sink {
            Sink::JsonLines(file) => file.commit()?,
            Sink::Npy(mut file) => {
                write_npy_header(&mut file, self.num_rows, self.embedding_size)
                    .map_err(cannot("write", file.path()))?;
                file.commit()?;
            }
            Sink::Parquet(parquet) => parquet.finish()?.commit()?,
        }
        Ok(self.num_rows)
    }

    fn check(&self, embedding: &[f32]) -> Result<(), OutputError> {
        let bad = |reason| OutputError::Row {
            path: match &self.sink {
                Sink::JsonLines(file) | Sink::Npy(file) => file.path().to_owned(),
                Sink::Parquet(parquet) => parquet.path().to_owned(),
            },
            row: self.num_rows,
            reason,
        };
        if embedding.len() != self.embedding_size {
            return Err(bad(format!(
                "expected an embedding of {} numbers, found {}",
                self.embedding_size,
                embedding.len()
            )));
        }
        match embedding.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(bad(format!("expected finite numbers, found {} at {index}", embedding[index]))),
            None => Ok(()),
        }
    }
}

/// Version 1.0 header of a C-ordered little-endian f32 array (NumPy enhancement proposal 1).
fn write_npy_header(file: &mut (impl Write + Seek), num_rows: u64, num_columns: usize) -> io::Result<()> {
    let mut header = Vec::with_capacity(NPY_HEADER_BYTES);
    header.extend_from_slice(b"\x93NUMPY\x01\x00");
    header.extend_from_slice(&(NPY_HEADER_BYTES as u16 - 10).to_le_bytes());
    write!(header, "{{'descr': '<f4', 'fortran_order': False, 'shape': ({num_rows}, {num_columns}), }}")?;
    header.resize(NPY_HEADER_BYTES - 1, b' ');
    header.push(b'\n');
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Four rows of three numbers, the last row the first reversed; see `scripts/io_golden.py`.
    const ROWS: [[f32; 3]; 4] = [[0.1, -2.5, 3.0], [0.0, 1e-30, 1e30], [1.0, 0.333_333_34, -0.0], [3.0, -2.5, 0.1]];
    const TEXTS: [&str; 4] = ["one", "zwei \"quoted\"", "", "line\nbreak"];

    fn write(path: &Path, include_text: bool) {
        let mut writer = VectorWriter::create(path, 3, include_text).unwrap();
        for (text, row) in TEXTS.iter().zip(&ROWS) {
            writer.push(Some(text), row).unwrap();
        }
        assert!(!path.exists());
        assert_eq!(writer.finish().unwrap(), 4);
    }

    #[test]
    fn npy_equals_numpy_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.npy");
        write(&path, false);
        let golden = include_bytes!("../../tests/golden/io/vectors.npy");
        assert_eq!(fs::read(&path).unwrap(), golden);
    }

    #[test]
    fn json_lines_hold_the_same_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.jsonl");
        write(&path, true);
        let lines = fs::read_to_string(&path).unwrap();
        for (line, (text, row)) in lines.lines().zip(TEXTS.iter().zip(&ROWS)) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["text"], *text);
            let read: Vec<f32> = serde_json::from_value(value["embedding"].clone()).unwrap();
            assert_eq!(read, row);
        }
        assert_eq!(lines.lines().count(), 4);
        assert!(lines.starts_with("{\"text\":\"one\",\"embedding\":[0.1,-2.5,3.0]}\n"));
        let path = dir.path().join("bare.jsonl");
        write(&path, false);
        let lines = fs::read_to_string(&path).unwrap();
        assert!(lines.starts_with("{\"embedding\":[0.1,-2.5,3.0]}\n"));
    }

    #[test]
    fn parquet_reads_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.parquet");
        write(&path, true);
        let spec = crate::data::DataSpec { paths: vec![path.to_str().unwrap().to_owned()], ..Default::default() };
        let rows: Result<Vec<_>, _> = crate::data::open(&spec).unwrap().collect();
        let texts: Vec<_> = rows.unwrap().into_iter().map(|row| row.text).collect();
        assert_eq!(texts, ["one", "zwei \"quoted\"", "line\nbreak"]);
    }

    /// Writes the file that `scripts/io_golden.py` checks with PyArrow.
    #[test]
    #[ignore = "checks nothing: writes the file for PyArrow into tests/golden/io, by hand when the layout changes"]
    fn write_for_pyarrow() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/io");
        let path = Path::new(dir).join("vectors.parquet");
        let _ = fs::remove_file(&path);
        write(&path, true);
    }

    /// PyArrow has read this file and found the schema and the rows it should.
    #[test]
    fn parquet_holds_what_pyarrow_has_checked() {
        use parquet::file::reader::{FileReader, SerializedFileReader};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.parquet");
        write(&path, true);
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/io/vectors.parquet");
        let contents = [path.as_path(), Path::new(golden)].map(|path| {
            let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
            let file = reader.metadata().file_metadata();
            let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
            (
                file.schema().clone(),
                file.key_value_metadata().cloned(),
                rows.map(|row| row.to_string()).collect::<Vec<_>>(),
            )
        });
        assert_eq!(contents[0].2.len(), 4);
        assert_eq!(contents[0], contents[1]);
    }

    #[test]
    fn bad_rows_and_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.npy");
        let mut writer = VectorWriter::create(&path, 2, false).unwrap();
        writer.push(None, &[1.0, 2.0]).unwrap();
        for (row, word) in [
            (&[1.0][..], "row 2: expected an embedding of 2 numbers, found 1"),
            (&[1.0, f32::NAN], "row 3: expected finite numbers, found NaN at 1"),
        ] {
            let message = writer.push(None, row).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        drop(writer);
        for (name, size, text) in [("v.npy", 2, true), ("v.bin", 2, false), ("v.npy", 0, false)] {
            assert!(VectorWriter::create(&dir.path().join(name), size, text).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
