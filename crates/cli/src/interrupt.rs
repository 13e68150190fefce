//! Ctrl-C: the first asks a command to stop at the next good place, the second ends it at once.

use anyhow::{Context as _, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// From now on Ctrl-C sets the flag that is returned and prints `message`.
///
/// # Errors
/// When the handler cannot be installed.
pub(crate) fn stop_flag(message: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\n{message} (Ctrl-C again: at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}
