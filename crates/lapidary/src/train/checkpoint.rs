//! Checkpoints: all that an exact resume needs, written whole or not at all.

use super::optimizer::Param;
use super::rows::Position;
use crate::Error;
use crate::model::gem_dir::{read_safetensors, write_safetensors};
use crate::output::atomic::AtomicDir;
use kernels::{Device, Tensor};
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
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// The loss has differed from the first.
    pub loss_moved: bool,
    /// Consecutive steps with collapsed vectors.
    pub collapsed_steps: u64,
    /// Seconds of training so far.
    pub train_secs: f64,
    /// The resolved recipe: a resume with another one is refused.
    pub recipe: String,
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
        tensors.insert(format!("first_moment.{}", param.name), (param.moments.first.clone(), shape.clone()));
        tensors.insert(format!("second_moment.{}", param.name), (param.moments.second.clone(), shape));
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

/// The newest complete checkpoint under `root`, its numbers put into `params`; `None` where there is none.
///
/// # Errors
/// When the newest is of another recipe, or every one is damaged.
pub(crate) fn load(root: &Path, recipe: &str, params: &mut [Param]) -> Result<Option<State>, Error> {
    let mut last_error = None;
    for (_, dir) in dirs(root).into_iter().rev() {
        match read(&dir, recipe, params) {
            Ok(state) => return Ok(Some(state)),
            // A recipe that differs is the user's mistake; a damaged checkpoint falls back on the one before.
            Err(e @ Error::Recipe(_)) => return Err(e),
            Err(e) => last_error = Some(e),
        }
    }
    last_error.map_or(Ok(None), Err)
}

fn read(dir: &Path, recipe: &str, params: &mut [Param]) -> Result<State, Error> {
    let path = dir.join(STATE_FILE);
    let file = |reason: String| Error::File { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| file(e.to_string()))?;
    let state: State = serde_json::from_str(&text).map_err(|e| file(e.to_string()))?;
    if state.recipe != recipe {
        return Err(Error::Recipe(format!(
            "{} was made by another recipe; resume with that one or choose another output directory",
            dir.display()
        )));
    }
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
        param.moments.first = take(format!("first_moment.{}", param.name))?;
        param.moments.second = take(format!("second_moment.{}", param.name))?;
        param.var.set(&Tensor::from_vec(values, param.var.dims(), &Device::Cpu)?)?;
    }
    Ok(state)
}
