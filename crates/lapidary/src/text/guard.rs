//! Panics of other libraries, caught at the call and turned into errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a call into a library that panics on some inputs. An error or a panic becomes its message.
///
/// Values that the call was changing when it panicked must not be used afterwards.
pub(super) fn guarded<T, E: std::fmt::Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    caught(call)?.map_err(|error| error.to_string())
}

/// Runs a call into a library that panics on some inputs. A panic becomes its message.
///
/// Values that the call was changing when it panicked must not be used afterwards.
pub(super) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("internal failure: {}", text.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_errors_become_messages() {
        let panicking = || -> Result<(), String> { panic!("index {}", 3) };
        assert_eq!(guarded(panicking), Err("internal failure: index 3".to_owned()));
        assert_eq!(guarded(|| Err::<(), _>("no")), Err("no".to_owned()));
        assert_eq!(guarded(|| Ok::<_, String>(1)), Ok(1));
    }
}
