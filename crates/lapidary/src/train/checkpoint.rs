//! Checkpoints: all that an exact resume needs, written whole or not at all.

use super::optimizer::Param;
use super::recipe::Recipe;
use super::rows::Position;
use crate::Error;
use crate::model::gem_dir::{read_safetensors, write_safetensors};
use crate::output::atomic::{self, AtomicDir};
use kernels::{Moments, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The state of a run beside its numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps finished.
    pub step: u64,
    /// Where the data stand.
    pub position: Position,
    /// Best validation figure so far and its step.
    pub best: Option<(f64, u64)>,
    /// The newest step whose damage was measured and found within the recipe's limits.
    #[serde(default)]
    pub within_budget: Option<u64>,
    /// What was beyond these limits; the run has ended with it.
    #[serde(default)]
    pub over_budget: Option<String>,
    /// Next-token, contrastive, similarity and alignment loss of the first step that had one.
    pub first_losses: [Option<f64>; 4],
    /// A loss has differed from the first.
    pub loss_moved: bool,
    /// Consecutive steps with collapsed vectors.
    pub collapsed_steps: u64,
    /// Seconds of training so far.
    pub train_secs: f64,
    /// CPU seconds of the process while it trained, validated and saved, earlier parts included; what a kill has undone
    /// is in it no more than in `step`. `None` where the system does not tell, or an earlier part did not.
    #[serde(default)]
    pub cpu_secs: Option<f64>,
    /// The resolved recipe: a resume with another one is refused.
    pub recipe: String,
    /// Fingerprint of the base model: a resume on another one is refused.
    pub base_fingerprint: String,
    /// BLAKE3 of the tensors' file, hexadecimal.
    pub tensors_hash: String,
}

const STATE_FILE: &str = "state.json";
const TENSORS_FILE: &str = "state.safetensors";

fn dirs(root: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Writes `root/step-N` and keeps the newest `keep` checkpoints.
///
/// # Errors
/// When the disk refuses; the checkpoints before it are untouched then.
pub(crate) fn save(root: &Path, state: &State, params: &[Param], keep: usize) -> Result<PathBuf, Error> {
    let path = root.join(format!("step-{:08}", state.step));
    std::fs::create_dir_all(root).map_err(|e| Error::File { path: root.into(), reason: e.to_string() })?;
    let dir = AtomicDir::replace(&path)?;
    let mut tensors = BTreeMap::new();
    for param in params {
        let shape = param.var.dims().to_vec();
        tensors.insert(param.name.clone(), (param.var.flatten_all()?.to_vec1()?, shape.clone()));
        let (first, second) = param.moments.to_vecs()?;
        tensors.insert(format!("first_moment.{}", param.name), (first, shape.clone()));
        tensors.insert(format!("second_moment.{}", param.name), (second, shape));
    }
    let file = dir.path().join(TENSORS_FILE);
    write_safetensors(&file, &tensors)?;
    let bytes = std::fs::read(&file).map_err(|e| Error::File { path: file, reason: e.to_string() })?;
    let state = State { tensors_hash: blake3::hash(&bytes).to_hex().to_string(), ..state.clone() };
    let text = serde_json::to_string_pretty(&state).map_err(|e| Error::Internal(e.to_string()))?;
    let file = dir.path().join(STATE_FILE);
    std::fs::write(&file, text).map_err(|e| Error::File { path: file, reason: e.to_string() })?;
    dir.commit()?;
    let all = dirs(root);
    for (_, old) in all.iter().rev().skip(keep) {
        // An old checkpoint that cannot be removed costs space, not correctness.
        let _ = std::fs::remove_dir_all(old);
    }
    Ok(path)
}

/// Removes what killed processes left half written under `root`.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn remove_leftovers(root: &Path) -> Result<(), Error> {
    if root.is_dir() { Ok(atomic::remove_leftovers_in(root)?) } else { Ok(()) }
}

/// The newest complete checkpoint under `root`, its numbers put into `params`; `None` where there is none.
///
/// # Errors
/// When the newest is of another recipe or base model than `run`, or every one is damaged.
pub(crate) fn load(root: &Path, run: &State, params: &mut [Param]) -> Result<Option<State>, Error> {
    let mut last_error = None;
    for (_, dir) in dirs(root).into_iter().rev() {
        match read(&dir, run, params) {
            Ok(state) => return Ok(Some(state)),
            // A recipe or a model that differs is the user's mistake; a damaged checkpoint falls back on the one before.
            Err(e @ (Error::Recipe(_) | Error::Fingerprint { .. })) => return Err(e),
            Err(e) => last_error = Some(e),
        }
    }
    last_error.map_or(Ok(None), Err)
}

/// Refuses to go on from the checkpoints of another run; damaged ones are passed over, as by [`load`].
///
/// # Errors
/// When the newest is of another recipe or base model than `run`.
pub(crate) fn refuse_other_run(root: &Path, run: &State) -> Result<(), Error> {
    for (_, dir) in dirs(root).into_iter().rev() {
        match read_state(&dir, run) {
            Ok(_) => return Ok(()),
            Err(e @ (Error::Recipe(_) | Error::Fingerprint { .. })) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(())
}

fn read_state(dir: &Path, run: &State) -> Result<State, Error> {
    let path = dir.join(STATE_FILE);
    let file = |reason: String| Error::File { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| file(e.to_string()))?;
    let state: State = serde_json::from_str(&text).map_err(|e| file(e.to_string()))?;
    if !same_recipe(&state.recipe, &run.recipe) {
        return Err(Error::Recipe(format!(
            "{} was made by another recipe; resume with that one or choose another output directory",
            dir.display()
        )));
    }
    if state.base_fingerprint != run.base_fingerprint {
        let (expected, found) = (state.base_fingerprint, run.base_fingerprint.clone());
        return Err(Error::Fingerprint { path: dir.into(), expected, found });
    }
    Ok(state)
}

/// Whether two resolved recipes say the same; one that was written before a setting existed has its default.
fn same_recipe(a: &str, b: &str) -> bool {
    a == b || matches!((Recipe::parse(a, &[]), Recipe::parse(b, &[])), (Ok(a), Ok(b)) if a == b)
}

fn read(dir: &Path, run: &State, params: &mut [Param]) -> Result<State, Error> {
    let state = read_state(dir, run)?;
    let path = dir.join(TENSORS_FILE);
    let file = |reason: String| Error::File { path: path.clone(), reason };
    let bytes = std::fs::read(&path).map_err(|e| file(e.to_string()))?;
    let found = blake3::hash(&bytes).to_hex().to_string();
    if found != state.tensors_hash {
        return Err(file(format!("expected hash {}, found {found}", state.tensors_hash)));
    }
    let mut tensors = read_safetensors(&path)?;
    for param in params {
        let mut take = |name: String| match tensors.remove(&name) {
            Some((values, shape)) if shape == param.var.dims() => Ok(values),
            other => {
                Err(file(format!("tensor {name}: expected {:?}, found {:?}", param.var.dims(), other.map(|o| o.1))))
            }
        };
        let values = take(param.name.clone())?;
        let first = take(format!("first_moment.{}", param.name))?;
        param.moments = Moments::new(first, take(format!("second_moment.{}", param.name))?);
        param.var.set(&Tensor::from_vec(values, param.var.dims(), param.var.device())?)?;
    }
    Ok(state)
}
