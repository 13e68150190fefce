//! How a command ends: exit codes, and errors as one line.

use anyhow::{Error, Result};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// The command has done its work, and the answer is no.
const REFUSED: u8 = 1;
/// Something is wrong with what the user gave or with the machine.
const USER_ERROR: u8 = 2;
/// Something is wrong with this program.
const PANIC: u8 = 101;
/// As shells report a command that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// The user has asked to stop; the message says how to go on.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// What was asked for was found wanting; the message says where.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The newest panic: the parsers of the library catch theirs, so a panic is told only once it has come up to here.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs a command and prints its error, if it has one.
pub(crate) fn exit_code_of(command: impl FnOnce() -> Result<()>) -> ExitCode {
    set_hook(Box::new(|panic| *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string()));
    let (line, code) = match catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) if is_closed_pipe(&error) => return ExitCode::SUCCESS,
        Ok(Err(error)) => match error.downcast_ref::<Interrupted>() {
            Some(interrupted) => (interrupted.to_string(), INTERRUPTED),
            None => match error.downcast_ref::<Refused>() {
                Some(refused) => (format!("refused: {refused}"), REFUSED),
                None => (format!("error: {}", one_line(&error)), USER_ERROR),
            },
        },
        Err(_) => {
            let message = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).replace('\n', " ");
            (format!("error: a bug in this program, please report it: {message}"), PANIC)
        }
    };
    eprintln!("{line}");
    code.into()
}

/// Whether the reader of our output has closed it, as `head` does: no fault of anyone.
fn is_closed_pipe(error: &Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// The error and its causes in one line.
///
/// Of each cause the first line counts (the tensor library appends a backtrace), and only if the line before has not
/// said it already.
fn one_line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.lines().next().unwrap_or_default().trim_end();
        if line.is_empty() {
            line.push_str(text);
        } else if !line.contains(text) {
            line.push_str(": ");
            line.push_str(text);
        }
    }
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_chain_is_one_line_without_backtraces_and_repetitions() {
        let error = anyhow!("no such file").context("a.txt: cannot open: no such file\n  0: frame").context("model m");
        assert_eq!(one_line(&error), "model m: a.txt: cannot open: no such file");
        assert_eq!(one_line(&anyhow!("tab\there")), "tab here");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        let closed = Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_closed_pipe(&closed) && !is_closed_pipe(&anyhow!("other")));
    }
}
