//! A log of metrics as JSON Lines: one object per line with its step, written through at once.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{OutputError, cannot};

/// Longest line read back on resuming.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Appends rows to a metrics file.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    num_rows: u64,
    num_bytes: u64,
}

#[derive(Serialize)]
struct Row<'a, T> {
    step: u64,
    #[serde(flatten)]
    metrics: &'a T,
}

#[derive(Deserialize)]
struct Step {
    step: u64,
}

impl MetricsLog {
    /// Starts an empty log, discarding what `path` held.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let file = File::create(path).map_err(cannot("create", path))?;
        Ok(Self { path: path.to_owned(), file, num_rows: 0, num_bytes: 0 })
    }

    /// Continues a log after `step`: rows of later steps, and a last line cut short by a kill, are
    /// removed. A missing file is created.
    ///
    /// # Errors
    /// The file cannot be read or written; a complete line is not an object with a `step`.
    pub fn resume(path: &Path, step: u64) -> Result<Self, OutputError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(cannot("open", path))?;
        let (num_rows, num_bytes) = scan(&file, path, step)?;
        file.set_len(num_bytes).map_err(cannot("truncate", path))?;
        file.seek(SeekFrom::End(0)).map_err(cannot("truncate", path))?;
        Ok(Self { path: path.to_owned(), file, num_rows, num_bytes })
    }

    /// Appends `{"step": step, ...metrics}`; `metrics` is a map or a struct without `step`. Numbers
    /// that are not finite become null.
    ///
    /// # Errors
    /// `metrics` is not an object; the line cannot be written, and then none of it is.
    pub fn append(&mut self, step: u64, metrics: &impl Serialize) -> Result<(), OutputError> {
        let row = Row { step, metrics };
        let mut line = serde_json::to_vec(&row).map_err(|error| OutputError::Row {
            path: self.path.clone(),
            row: self.num_rows + 1,
            reason: format!("expected an object of metrics: {error}"),
        })?;
        line.push(b'\n');
        // one write, so that a kill leaves at most one torn line
        if let Err(source) = self.file.write_all(&line) {
            // a row after half a row would be unreadable; the first error is the one to report
            let _ = self.file.set_len(self.num_bytes);
            let _ = self.file.seek(SeekFrom::Start(self.num_bytes));
            return Err(cannot("write", &self.path)(source));
        }
        self.num_rows += 1;
        self.num_bytes += line.len() as u64;
        Ok(())
    }

    /// Rows in the file.
    pub fn num_rows(&self) -> u64 {
        self.num_rows
    }
}

/// Number and bytes of the leading complete rows up to `step`.
fn scan(file: &File, path: &Path, step: u64) -> Result<(u64, u64), OutputError> {
    let mut reader = BufReader::new(file);
    let (mut num_rows, mut kept_bytes) = (0u64, 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read =
            (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(cannot("read", path))? as u64;
        if line.last() != Some(&b'\n') {
            if read < MAX_LINE_BYTES {
                return Ok((num_rows, kept_bytes));
            }
            return Err(OutputError::Row {
                path: path.to_owned(),
                row: num_rows + 1,
                reason: format!("longer than {MAX_LINE_BYTES} bytes; not a metrics log"),
            });
        }
        let row: Step = serde_json::from_slice(&line).map_err(|error| OutputError::Row {
            path: path.to_owned(),
            row: num_rows + 1,
            reason: format!("expected an object with an integer `step`: {error}"),
        })?;
        if row.step > step {
            return Ok((num_rows, kept_bytes));
        }
        num_rows += 1;
        kept_bytes += read;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn resuming_removes_later_and_torn_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        for step in 1..=4 {
            log.append(step, &json!({"loss": 0.5})).unwrap();
        }
        drop(log);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"step\":5,\"lo");
        fs::write(&path, &bytes).unwrap();
        let log = MetricsLog::resume(&path, 9).unwrap();
        assert_eq!(log.num_rows(), 4);
        let mut log = MetricsLog::resume(&path, 2).unwrap();
        log.append(3, &json!({"loss": f64::NAN})).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":null}\n"
        );
    }

    #[test]
    fn a_new_log_is_empty_and_a_missing_one_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(MetricsLog::resume(&path, 3).unwrap().num_rows(), 0);
        fs::write(&path, "{\"step\":1}\n").unwrap();
        MetricsLog::create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn another_file_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        fs::write(&path, "{\"step\":1}\nhello\n").unwrap();
        let message = MetricsLog::resume(&path, 3).unwrap_err().to_string();
        assert!(message.contains("notes.txt: row 2: expected"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"{\"step\":1}\nhello\n");
        let mut log = MetricsLog::create(&path).unwrap();
        assert!(log.append(1, &3).is_err());
    }
}
