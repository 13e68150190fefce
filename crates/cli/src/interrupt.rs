//! Ctrl-C: the first asks a command to stop at the next good place, the second ends it at once.

use anyhow::{Context as _, Result};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C. Once dropped, when nobody looks at it any more, Ctrl-C ends the program at once.
pub(crate) struct StopFlag {
    stop: Arc<AtomicBool>,
}

impl Deref for StopFlag {
    type Target = AtomicBool;

    fn deref(&self) -> &AtomicBool {
        &self.stop
    }
}

impl Drop for StopFlag {
    fn drop(&mut self) {
        // As after a first Ctrl-C: the next one ends the program.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// From now on Ctrl-C sets the flag that is returned and prints `message`.
///
/// # Errors
/// When the handler cannot be installed.
pub(crate) fn stop_flag(message: &'static str) -> Result<StopFlag> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\n{message} (Ctrl-C again: at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(StopFlag { stop })
}
