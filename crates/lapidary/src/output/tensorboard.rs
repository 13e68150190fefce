//! TensorBoard event files with scalars: TFRecord framing (tensorflow `core/lib/io/record_writer.h`)
//! around the protobuf messages `Event`, `Summary` and `Summary.Value` (`core/util/event.proto`).

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::{OutputError, cannot};

/// Files one run may have: one more each time it is resumed within the same second.
const MAX_FILES: u32 = 10_000;

/// Wire types of the protobuf encoding.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl EventWriter {
    /// Creates a new event file in `dir`, named after `wall_time` (seconds since 1970). TensorBoard
    /// reads all event files of a folder in the order of their names, so a resumed run adds one.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(dir: &Path, wall_time: f64) -> Result<Self, OutputError> {
        let secs = wall_time.max(0.0) as u64;
        for number in 0..MAX_FILES {
            let path = dir.join(format!("events.out.tfevents.{secs:010}.lapidary.{number:04}"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut writer = Self { path, writer: BufWriter::new(file) };
                    writer.record(&version_event(wall_time))?;
                    writer.flush()?;
                    return Ok(writer);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot("create", &path)(error)),
            }
        }
        Err(cannot("create another event file in", dir)(ErrorKind::AlreadyExists.into()))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the value of `tag` at `step`; `wall_time` in seconds since 1970.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32, wall_time: f64) -> Result<(), OutputError> {
        self.record(&scalar_event(tag, step, value, wall_time))
    }

    /// Hands everything written so far to the operating system.
    ///
    /// # Errors
    /// The rest cannot be written.
    pub fn flush(&mut self) -> Result<(), OutputError> {
        self.writer.flush().map_err(cannot("write", &self.path))
    }

    fn record(&mut self, event: &[u8]) -> Result<(), OutputError> {
        self.writer.write_all(&framed(event)).map_err(cannot("write", &self.path))
    }
}

/// Length (u64), masked CRC of the length, the data, masked CRC of the data; little-endian.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted so that the CRC of data holding CRCs stays sound
/// (tensorflow `core/lib/hash/crc32c.h`).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Event { wall_time = 1, file_version = 3 }.
fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }.
fn scalar_event(tag: &str, step: u64, value: f32, wall_time: f64) -> Vec<u8> {
    let mut summary_value = Vec::new();
    put_bytes(&mut summary_value, 1, tag.as_bytes());
    put_varint(&mut summary_value, (2 << 3) | FIXED32);
    summary_value.extend_from_slice(&value.to_le_bytes());
    let mut summary = Vec::new();
    put_bytes(&mut summary, 1, &summary_value);
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    if step != 0 {
        // proto3 leaves out a field that has its default value
        put_varint(&mut event, (2 << 3) | VARINT);
        put_varint(&mut event, step);
    }
    put_bytes(&mut event, 5, &summary);
    event
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, (field << 3) | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_varint(out, (field << 3) | FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by TensorBoard's own record writer; see `scripts/io_golden.py`.
    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/io/events.tfevents");

    #[test]
    fn bytes_equal_those_of_tensorboard() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 1_700_000_000.5).unwrap();
        for (tag, step, value) in [
            ("loss/contrastive", 0, 2.5),
            ("loss/contrastive", 1, -0.1),
            ("tokens_per_second", 300, 1e9),
            ("größe", 5_000_000_000, f32::NAN),
        ] {
            writer.scalar(tag, step, value, 1_700_000_001.25 + step as f64).unwrap();
        }
        writer.flush().unwrap();
        assert_eq!(std::fs::read(writer.path()).unwrap(), GOLDEN);
    }

    #[test]
    fn a_resumed_run_adds_a_file_that_sorts_later() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::create(dir.path(), 10.0).unwrap();
        let second = EventWriter::create(dir.path(), 10.9).unwrap();
        let third = EventWriter::create(dir.path(), 11.0).unwrap();
        assert!(first.path() < second.path() && second.path() < third.path());
        assert!(EventWriter::create(&dir.path().join("no"), 1.0).is_err());
    }
}
