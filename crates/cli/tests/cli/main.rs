//! The command as a user meets it: results, exit codes, one-line errors, and that nothing is lost.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod eval;
mod hub;
mod hub_server;
mod quickstart;
mod report;
mod serve;
mod serve_metrics;
mod serve_openapi;
mod serve_replies;
mod serve_safety;
mod serve_tei;
mod talk;
mod tiny_model;
mod train;
mod vectors;

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command with an empty environment of its own: no cache of the user, no connection.
fn lapidary(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.current_dir(dir).env("LAPIDARY_CACHE", dir.join("cache")).env("RUST_BACKTRACE", "1").arg("--offline");
    command
}

fn run(dir: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    lapidary(dir).args(args).output().unwrap()
}

/// The largest file a process may write stands for the room that is left: writing more fails as on a full disk.
#[cfg(unix)]
fn run_on_a_full_disk(dir: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    let plain = lapidary(dir);
    let mut limited = Command::new("sh");
    limited.current_dir(dir).envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Blocks of 512 or 1024 bytes, by the shell. Ignored, the signal leaves the error of the write.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]).arg(plain.get_program()).arg("--offline");
    limited.args(args).output().unwrap()
}

fn run_with_input(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let command = &mut lapidary(dir);
    let piped = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The standard output of a run that went well.
fn stdout(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that ended with one line and exit code 2.
fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let last = stderr.strip_suffix('\n').unwrap().lines().last().unwrap().to_owned();
    assert!(last.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.matches("error").count(), last.matches("error").count(), "{stderr}");
    last
}

#[test]
fn help_has_examples_and_no_command_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        "quickstart",
        "train",
        "embed",
        "similarity",
        "chat",
        "generate",
        "reconstruct",
        "inspect",
        "eval",
        "certify",
        "report",
        "fetch",
    ] {
        let help = stdout(run(dir.path(), &[command, "--help"]));
        assert!(help.contains("Examples:\n  lapidary "), "{help}");
    }
    assert_eq!(run(dir.path(), &["no-such-command"]).status.code(), Some(2));
}
