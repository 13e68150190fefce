//! Progress bars on the terminal; nothing where there is none.

use crate::context::Context;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar over `total` items; `what` names them. Hidden with `--quiet` and where errors do not go to a terminal.
///
/// # Errors
/// Never: the template is known to be sound.
pub(crate) fn bar(context: &Context, total: u64, what: &'static str) -> Result<ProgressBar> {
    styled(context, ProgressBar::new(total), &format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left  {{msg}}"))
}

/// A counter of items whose number is not known.
///
/// # Errors
/// As [`bar`].
pub(crate) fn counter(context: &Context, what: &'static str) -> Result<ProgressBar> {
    styled(context, ProgressBar::new_spinner(), &format!("{{spinner}} {{pos}} {what}, {{elapsed}}  {{msg}}"))
}

/// A sign of life while something without steps goes on.
///
/// # Errors
/// As [`bar`].
pub(crate) fn spinner(context: &Context, what: &str) -> Result<ProgressBar> {
    let spinner = styled(context, ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}")?;
    spinner.set_message(what.to_owned());
    Ok(spinner)
}

fn styled(context: &Context, bar: ProgressBar, template: &str) -> Result<ProgressBar> {
    let bar = if context.quiet { ProgressBar::hidden() } else { bar };
    bar.set_style(ProgressStyle::with_template(template)?.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}

/// `12345678` as `12,345,678`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped_by_three() {
        let found: Vec<String> = [0, 999, 1000, 123_456, 1_234_567].map(grouped).into();
        assert_eq!(found, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }
}
