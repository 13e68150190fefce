//! Files written by training and embedding, each complete or absent.

pub mod atomic;
pub mod metrics_log;
pub mod tensorboard;
pub mod vectors;
mod vectors_parquet;

use std::io;
use std::path::{Path, PathBuf};

/// Errors of writing files; every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason, e.g. a full disk.
        source: io::Error,
    },
    /// The target exists and is of another kind.
    #[error("{}: expected {expected} or nothing there, found {found}", path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What may be replaced.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// The file name does not tell the format.
    #[error("{}: unknown format; expected {expected}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The extensions known.
        expected: &'static str,
    },
    /// A row does not fit the file.
    #[error("{}: row {row}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The 1-based row or line.
        row: u64,
        /// What was expected and what was found.
        reason: String,
    },
    /// The Parquet encoder failed.
    #[error("{}: cannot write Parquet: {reason}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        reason: String,
    },
}

/// The error of `action` on `path`.
fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError::Io { action, path, source }
}
