//! Files and directories that appear complete or not at all: written beside their target, synced to
//! disk, then renamed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{OutputError, cannot};

/// Distinguishes the temporaries of one process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Part of the name of a file or directory being written.
const TEMPORARY: &str = ".tmp-";
/// Part of the name of a directory being replaced.
const ASIDE: &str = ".old-";

/// A file that takes its place at [`AtomicFile::commit`]; dropped before, it leaves no trace.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Creates a temporary beside `path`. A symbolic link is followed, so the link stays.
    ///
    /// # Errors
    /// The folder does not exist or is not writable; `path` is a directory or a device.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let target = resolve(path)?;
        match fs::metadata(&target) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(OutputError::Occupied {
                    path: target,
                    expected: "a file",
                    found: if metadata.is_dir() { "a directory" } else { "a device or pipe" },
                });
            }
            _ => {}
        }
        let temporary = sibling(&target, TEMPORARY);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(cannot("create", &target))?;
        Ok(Self { target, temporary, writer: Some(BufWriter::with_capacity(256 << 10, file)) })
    }

    /// The path the file will have.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Makes the file durable and gives it its name, replacing a file of that name.
    ///
    /// # Errors
    /// The rest cannot be written (disk full) or the rename fails; an old file is then untouched.
    pub fn commit(mut self) -> Result<(), OutputError> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let written = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .map_err(cannot("write", &self.target))
            .and_then(|()| fs::rename(&self.temporary, &self.target).map_err(cannot("rename to", &self.target)));
        if written.is_err() {
            // best effort: the first error is the one to report
            let _ = fs::remove_file(&self.temporary);
        }
        written?;
        sync_parent(&self.target)
    }

    fn writer(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.writer.as_mut().ok_or_else(|| io::Error::other("already committed"))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer()?.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // the contents are abandoned, buffered bytes included
            drop(writer.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file with `write`.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`], and what `write` returns; an old file is
/// then untouched.
pub fn write_file(path: &Path, write: impl FnOnce(&mut AtomicFile) -> io::Result<()>) -> Result<(), OutputError> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file).map_err(cannot("write", path))?;
    file.commit()
}

/// A directory that takes its place at [`AtomicDir::commit`]; dropped before, it leaves no trace.
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    temporary: PathBuf,
    replaces: bool,
    committed: bool,
}

impl AtomicDir {
    /// Creates a temporary directory beside `path`, which must not exist or be empty.
    ///
    /// # Errors
    /// The parent does not exist or is not writable; `path` holds something.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        Self::new(path, false)
    }

    /// Creates a temporary directory beside `path`; a directory of that name is removed once the
    /// new one stands in its place.
    ///
    /// # Errors
    /// The parent does not exist or is not writable; `path` is no directory.
    pub fn replace(path: &Path) -> Result<Self, OutputError> {
        recover_dir(path)?;
        Self::new(path, true)
    }

    fn new(path: &Path, replaces: bool) -> Result<Self, OutputError> {
        let target = resolve(path)?;
        if target.exists() {
            let occupied = |expected, found| OutputError::Occupied { path: target.clone(), expected, found };
            if !target.is_dir() {
                return Err(occupied("a directory", "a file"));
            }
            let mut entries = fs::read_dir(&target).map_err(cannot("read", &target))?;
            if !replaces && entries.next().is_some() {
                return Err(occupied("an empty directory", "a directory with files"));
            }
        }
        let temporary = sibling(&target, TEMPORARY);
        fs::create_dir(&temporary).map_err(cannot("create", &target))?;
        Ok(Self { target, temporary, replaces, committed: false })
    }

    /// The directory to write into.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Makes every file durable and gives the directory its name.
    ///
    /// A kill leaves the old directory, the new one, or for an instant neither; [`recover_dir`]
    /// undoes the last case.
    ///
    /// # Errors
    /// A file cannot be synced or the rename fails; an old directory is then untouched.
    pub fn commit(mut self) -> Result<(), OutputError> {
        sync_tree(&self.temporary).map_err(cannot("write", &self.target))?;
        if self.replaces && self.target.exists() {
            let aside = sibling(&self.target, ASIDE);
            fs::rename(&self.target, &aside).map_err(cannot("replace", &self.target))?;
            if let Err(source) = fs::rename(&self.temporary, &self.target) {
                let _ = fs::rename(&aside, &self.target);
                return Err(cannot("replace", &self.target)(source));
            }
            self.committed = true;
            sync_parent(&self.target)?;
            return fs::remove_dir_all(&aside).map_err(cannot("remove", &aside));
        }
        fs::rename(&self.temporary, &self.target).map_err(cannot("rename to", &self.target))?;
        self.committed = true;
        sync_parent(&self.target)
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Puts back a directory that a killed [`AtomicDir::commit`] had moved aside; says whether it did.
///
/// # Errors
/// The folder cannot be read or the rename fails.
pub fn recover_dir(path: &Path) -> Result<bool, OutputError> {
    let target = resolve(path)?;
    if target.exists() {
        return Ok(false);
    }
    // A name that only looks alike is somebody's own.
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(written_name).is_some_and(|(_, mark)| mark == ASIDE)
    };
    let Some(aside) = siblings(&target, ASIDE)?.into_iter().rfind(ours) else {
        return Ok(false);
    };
    fs::rename(&aside, &target).map_err(cannot("rename to", &target))?;
    sync_parent(&target)?;
    Ok(true)
}

/// Puts back what killed processes had moved aside in `folder`, and removes what they left half written. Only for a
/// caller that knows no other process is writing there.
///
/// # Errors
/// The folder cannot be read, or an entry not be renamed or removed.
pub fn remove_leftovers_in(folder: &Path) -> Result<(), OutputError> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot("read", folder))? {
        let name = entry.map_err(cannot("read", folder))?.file_name();
        let Some((target, mark)) = name.to_str().and_then(written_name) else { continue };
        if mark == ASIDE {
            recover_dir(&folder.join(target))?;
        }
        leftovers.push(folder.join(&name));
    }
    for leftover in leftovers.into_iter().filter(|leftover| leftover.exists()) {
        let removed = if leftover.is_dir() { fs::remove_dir_all(&leftover) } else { fs::remove_file(&leftover) };
        removed.map_err(cannot("remove", &leftover))?;
    }
    Ok(())
}

/// The name that a file or directory being written or replaced is to have or had, and its mark: `name.tmp-PID-N`.
fn written_name(name: &str) -> Option<(&str, &'static str)> {
    [TEMPORARY, ASIDE].into_iter().find_map(|mark| {
        let (target, number) = name.rsplit_once(mark)?;
        let (process, count) = number.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (!target.is_empty() && digits(process) && digits(count)).then_some((target, mark))
    })
}

/// Follows `path` if it is a symbolic link to something that exists.
fn resolve(path: &Path) -> Result<PathBuf, OutputError> {
    if path.file_name().is_none() {
        return Err(cannot("write", path)(io::Error::from(ErrorKind::InvalidInput)));
    }
    match fs::canonicalize(path) {
        Ok(resolved) if path.is_symlink() => Ok(resolved),
        _ => Ok(path.to_owned()),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name beside `path` that no other writer uses.
fn sibling(path: &Path, mark: &str) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!("{mark}{}-{number}", std::process::id()));
    path.with_file_name(name)
}

/// Entries beside `path` named after it with `mark`, sorted.
fn siblings(path: &Path, mark: &str) -> Result<Vec<PathBuf>, OutputError> {
    let mut prefix = OsString::from(path.file_name().unwrap_or_default());
    prefix.push(mark);
    let folder = parent(path);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot("read", folder))? {
        let name = entry.map_err(cannot("read", folder))?.file_name();
        if name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            found.push(folder.join(name));
        }
    }
    found.sort();
    Ok(found)
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Makes a rename within `dir` durable.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Directories cannot be opened as files here; the file system orders renames itself.
#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

fn sync_parent(path: &Path) -> Result<(), OutputError> {
    let folder = parent(path);
    sync_dir(folder).map_err(cannot("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let error = write_file(&path, |file| {
            file.write_all(&vec![b'x'; 1 << 20])?;
            Err(io::Error::from(ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("{}: cannot write: no storage space", path.display()));
        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_directories_and_missing_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (path, word) in [
            (Path::new("/dev/full"), "device"),
            (dir.path(), "directory"),
            (&dir.path().join("no/a.txt"), "cannot create"),
            (Path::new("/"), "cannot write"),
        ] {
            let message = AtomicFile::create(path).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!(names(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, |out| out.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn a_directory_appears_whole_and_replaces_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let first = AtomicDir::create(&path).unwrap();
        fs::create_dir(first.path().join("sub")).unwrap();
        fs::write(first.path().join("sub/a"), "1").unwrap();
        assert!(!path.exists());
        first.commit().unwrap();
        assert_eq!(fs::read(path.join("sub/a")).unwrap(), b"1");
        assert!(AtomicDir::create(&path).is_err());
        drop(AtomicDir::replace(&path).unwrap());
        assert_eq!(names(dir.path()), ["model"]);
        let second = AtomicDir::replace(&path).unwrap();
        fs::write(second.path().join("b"), "2").unwrap();
        second.commit().unwrap();
        assert_eq!(names(&path), ["b"]);
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn a_kill_between_the_renames_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a"), "1").unwrap();
        fs::rename(&path, dir.path().join("model.old-1-1")).unwrap();
        fs::create_dir(dir.path().join("model.tmp-1-0")).unwrap();
        fs::write(dir.path().join("my.tmp-notes"), "mine").unwrap();
        fs::create_dir(dir.path().join("model.old-notes")).unwrap();
        remove_leftovers_in(dir.path()).unwrap();
        assert_eq!(names(&path), ["a"]);
        assert!(!recover_dir(&path).unwrap());
        assert_eq!(names(dir.path()), ["model", "model.old-notes", "my.tmp-notes"]);
    }
}
