//! Vectors in files of a fixed number of rows, each complete or absent, so that a long run can be ended and goes on.

use super::embed::{EmbedArgs, Sink, Work};
use super::embed_input::Texts;
use crate::context::Context;
use crate::failure::Interrupted;
use anyhow::{Context as _, Result, bail};
use lapidary::data;
use lapidary::embed::EmbedOptions;
use lapidary::output::atomic::write_file;
use lapidary::output::vectors::VectorWriter;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What the data files hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scan {
    /// Rows with text.
    pub(super) num_texts: u64,
    /// SHA-256 over the texts and their lengths, in order, hexadecimal.
    texts_sha256: String,
}

/// Reads every row of the data files.
///
/// # Errors
/// When a row cannot be read, or there is none.
pub(super) fn scan(args: &EmbedArgs) -> Result<Scan> {
    let mut hasher = Sha256::new();
    let mut num_texts = 0;
    for record in data::open(&args.input.spec())? {
        let text = record?.text;
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(&text);
        num_texts += 1;
    }
    let texts_sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Scan { num_texts, texts_sha256 })
}

/// Everything that decides what the files hold: files of another manifest are never mixed with these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    model_fingerprint: String,
    shard_size: usize,
    with_text: bool,
    standardise: bool,
    normalise: bool,
    max_tokens: usize,
    input: Scan,
}

/// How the vectors are spread.
pub(super) struct Plan<'a> {
    pub(super) size: usize,
    pub(super) output: &'a Path,
    pub(super) input: &'a Scan,
}

impl Plan<'_> {
    /// `vectors.npy` and 3 give `vectors-00003.npy`.
    fn shard(&self, index: u64) -> PathBuf {
        self.beside(&format!("-{index:05}"), self.output.extension().unwrap_or_default())
    }

    fn manifest(&self) -> PathBuf {
        self.beside(".manifest", "json".as_ref())
    }

    fn beside(&self, suffix: &str, extension: &std::ffi::OsStr) -> PathBuf {
        let mut name = self.output.file_stem().unwrap_or_default().to_owned();
        name.push(suffix);
        name.push(".");
        name.push(extension);
        self.output.with_file_name(name)
    }

    fn num_shards(&self) -> u64 {
        self.input.num_texts.div_ceil(self.size as u64)
    }
}

/// Writes the files that are not there yet.
///
/// # Errors
/// When files of another model, of other options or of other texts are in the way; or as [`Work::run`].
pub(super) fn run(work: &mut Work<'_>, texts: &mut Texts, plan: &Plan<'_>, context: &Context) -> Result<()> {
    if plan.size == 0 {
        bail!("--shard-size: expected at least 1, found 0");
    }
    let EmbedOptions { max_tokens, batch_tokens: _, standardise, normalise } = work.options;
    settle(
        plan,
        &Manifest {
            version: 1,
            model_fingerprint: work.model.fingerprint().into_owned(),
            shard_size: plan.size,
            with_text: work.with_text,
            standardise,
            normalise,
            max_tokens,
            input: plan.input.clone(),
        },
    )?;
    let width = work.model.base().decoder.config().hidden_size;
    let mut num_skipped = 0_u64;
    for index in 0..plan.num_shards() {
        let path = plan.shard(index);
        if path.exists() {
            let skipped = texts.take(plan.size).try_fold(0_u64, |count, text| text.map(|_| count + 1))?;
            work.totals.num_texts += skipped;
            work.bar.set_position(work.totals.num_texts);
            work.bar.reset_eta();
            num_skipped += 1;
            continue;
        }
        let mut sink = Sink::File(VectorWriter::create(&path, width, work.with_text)?);
        match work.run(texts, plan.size, &mut sink) {
            Err(error) if error.is::<Interrupted>() => {
                work.bar.finish_and_clear();
                let told =
                    format!("stopped; {index} of {} files are done, the same command goes on", plan.num_shards());
                bail!(Interrupted(told));
            }
            found => found?,
        };
        sink.finish()?;
    }
    let there = if num_skipped > 0 { format!(", {num_skipped} of them were there already") } else { String::new() };
    context.note(&format!("{} files{there}", plan.num_shards()));
    Ok(())
}

/// Writes the manifest, or compares with the one that is there.
fn settle(plan: &Plan<'_>, manifest: &Manifest) -> Result<()> {
    let path = plan.manifest();
    if !path.exists() {
        let first = plan.shard(0);
        if first.exists() {
            bail!(
                "{}: in the way, and no {} says how it was made; choose another --output",
                first.display(),
                path.display()
            );
        }
        let text = serde_json::to_string_pretty(manifest)? + "\n";
        return Ok(write_file(&path, |file| file.write_all(text.as_bytes()))?);
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let found: Manifest = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let differs = if found.model_fingerprint != manifest.model_fingerprint {
        "another model"
    } else if found.input != manifest.input {
        "other texts"
    } else if found != *manifest {
        "other options"
    } else {
        return Ok(());
    };
    bail!("{}: its files were made with {differs}; choose another --output, or remove them", path.display())
}
