//! Opening a data file: its format from the name, decompression, and guards against hostile input.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use bytes::Bytes;

use super::error::DataError;

/// Bytes of the head of a text file that are searched for NULs.
const BINARY_PROBE_BYTES: u64 = 8 << 10;
/// A compressed file may always expand to this many bytes; beyond it the ratio is held.
const FREE_EXPANSION_BYTES: u64 = 64 << 20;
/// Largest ratio of decompressed to compressed bytes: text compresses 3 to 10 times, logs 50.
const MAX_EXPANSION_RATIO: u64 = 200;
/// Parquet needs random access, so a compressed Parquet file is held in memory up to this size.
const MAX_COMPRESSED_PARQUET_BYTES: u64 = 1 << 30;

/// A decompressed byte stream.
pub(super) type Stream = Box<dyn Read + Send>;

/// How rows are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One text per line.
    Text,
    /// One JSON object per line.
    JsonLines,
    /// Rows of fields under a header, with this delimiter.
    Csv(u8),
    /// Apache Parquet.
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Format and compression by the extensions of `path`, compared without case.
fn split_name(path: &Path) -> (String, Compression) {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if let Some(stem) = name.strip_suffix(".gz") {
        (stem.to_owned(), Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(".zst") {
        (stem.to_owned(), Compression::Zstd)
    } else {
        (name, Compression::None)
    }
}

/// The row layout of `path`, by its name.
pub(super) fn format(path: &Path) -> Result<Format, DataError> {
    let (stem, _) = split_name(path);
    match stem.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt") => Ok(Format::Text),
        Some("jsonl" | "ndjson") => Ok(Format::JsonLines),
        Some("csv") => Ok(Format::Csv(b',')),
        Some("tsv") => Ok(Format::Csv(b'\t')),
        Some("parquet") => Ok(Format::Parquet),
        _ => Err(DataError::Format { path: path.to_owned() }),
    }
}

/// Opens a regular file.
pub(super) fn open_file(path: &Path) -> Result<File, DataError> {
    let cannot = |source| DataError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_dir() {
        return Err(DataError::Directory { path: path.to_owned() });
    }
    Ok(file)
}

/// The decompressed bytes of `path`.
fn decompressed(path: &Path) -> Result<Stream, DataError> {
    let cannot = |source| DataError::Open { path: path.to_owned(), source };
    let file = open_file(path)?;
    let compressed_bytes = file.metadata().map_err(cannot)?.len();
    let inner: Stream = match split_name(path).1 {
        Compression::None => return Ok(Box::new(file)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(BufReader::new(file)).map_err(cannot)?),
    };
    let limit = compressed_bytes.saturating_mul(MAX_EXPANSION_RATIO).max(FREE_EXPANSION_BYTES);
    Ok(Box::new(Expanding { inner, left: limit, limit }))
}

/// The decompressed text of `path`; a NUL byte in its head is an error.
pub(super) fn open_text(path: &Path) -> Result<Stream, DataError> {
    let cannot = |source| DataError::Open { path: path.to_owned(), source };
    let mut stream = decompressed(path)?;
    let mut head = Vec::new();
    (&mut stream).take(BINARY_PROBE_BYTES).read_to_end(&mut head).map_err(cannot)?;
    if let Some(offset) = head.iter().position(|&byte| byte == 0) {
        return Err(DataError::Binary { path: path.to_owned(), offset });
    }
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3); // byte order mark
    }
    Ok(Box::new(Cursor::new(head).chain(stream)))
}

/// A file with random access: itself, or its decompressed bytes.
pub(super) enum Seekable {
    /// An uncompressed file.
    File(File),
    /// The contents of a compressed file.
    Memory(Bytes),
}

/// Opens `path` for random access, decompressing it into memory if need be.
pub(super) fn open_seekable(path: &Path) -> Result<Seekable, DataError> {
    if split_name(path).1 == Compression::None {
        return Ok(Seekable::File(open_file(path)?));
    }
    let bytes = read_capped(path, decompressed(path)?, MAX_COMPRESSED_PARQUET_BYTES)?;
    Ok(Seekable::Memory(Bytes::from(bytes)))
}

/// Reads all of `stream`, at most `limit_bytes`.
pub(super) fn read_capped(path: &Path, stream: Stream, limit_bytes: u64) -> Result<Vec<u8>, DataError> {
    let cannot = |source| DataError::Open { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    stream.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(cannot(io::Error::other(format!(
            "more than {limit_bytes} bytes once decompressed; store it uncompressed or in parts"
        ))));
    }
    Ok(bytes)
}

/// A decoder that stops when it has produced more than its limit.
struct Expanding {
    inner: Stream,
    left: u64,
    limit: u64,
}

impl Read for Expanding {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(io::Error::other(format!(
                "decompresses to more than {} bytes, {MAX_EXPANSION_RATIO} times its size: \
                 not ordinary text",
                self.limit
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_is_told_by_the_name() {
        let of = |name: &str| format(Path::new(name)).ok();
        assert_eq!(of("a.txt"), Some(Format::Text));
        assert_eq!(of("dir.csv/a.JSONL.GZ"), Some(Format::JsonLines));
        assert_eq!(of("a.csv.zst"), Some(Format::Csv(b',')));
        assert_eq!(of("a.tsv"), Some(Format::Csv(b'\t')));
        assert_eq!(of("a.b.parquet"), Some(Format::Parquet));
        for name in ["a", "a.json", "a.gz", "a.txt.bz2", "txt"] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.txt.zst");
        let file = File::create(&path).unwrap();
        let mut encoder = zstd::stream::write::Encoder::new(file, 3).unwrap();
        let line = [b"a".repeat(1023), b"\n".to_vec()].concat().repeat(1024);
        for _ in 0..66 {
            io::Write::write_all(&mut encoder, &line).unwrap();
        }
        encoder.finish().unwrap();
        let read = io::copy(&mut open_text(&path).unwrap(), &mut io::sink());
        let message = read.unwrap_err().to_string();
        assert!(message.contains("67108864 bytes"), "{message}");
    }
}
