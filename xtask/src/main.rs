//! Checks of the repository: `cargo xtask check` runs all of them, `cargo xtask tidy` those of this crate alone; and its
//! benchmark, `cargo xtask bench`.

mod bench;
mod tidy;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

const USAGE: &str = "usage: cargo xtask check | tidy | bench";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => check(),
        ["tidy"] => run_tidy(),
        ["bench", ..] => bench::run(root(), &arguments[1..]),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every check, the quick ones first, and stops at the first that fails.
fn check() -> Result<(), String> {
    stage("fmt", || cargo(&["fmt", "--all", "--check"]))?;
    stage("tidy", run_tidy)?;
    stage("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    stage("test", || cargo(&["test", "--workspace"]))?;
    // the command's documentation would overwrite the library's, which has the same name
    stage("doc", || cargo(&["doc", "--workspace", "--exclude", "lapidary-cli", "--no-deps"]))
}

fn stage(name: &str, run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    eprintln!("== {name}");
    let start = Instant::now();
    let done = run();
    eprintln!("== {name}: {} s", start.elapsed().as_secs());
    done
}

fn cargo(arguments: &[&str]) -> Result<(), String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root())
        .status()
        .map_err(|error| format!("cargo {}: {error}", arguments[0]))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {}: {status}", arguments[0])) }
}

fn run_tidy() -> Result<(), String> {
    let problems = tidy::check(root())?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() { Ok(()) } else { Err(format!("tidy: {} problems", problems.len())) }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}
