//! HellaSwag (arXiv 1905.07830): sentences and what may come next, prepared as lm-evaluation-harness prepares them.

use super::error::DataError;
use super::tasks::{MultipleChoice, load_rows};
use std::path::Path;

/// Reads `activity_label`, `ctx_a`, `ctx_b`, `endings` and `label` (the index of the right ending). The question is the
/// text to go on from; the subject is empty.
///
/// # Errors
/// Unreadable files; a missing or ill-typed field, fewer than two endings or a label that is no ending, with its row; no
/// rows.
pub fn load_hellaswag(path: &Path) -> Result<Vec<MultipleChoice>, DataError> {
    load_rows(path, &["activity_label", "ctx_a", "ctx_b", "endings", "label"], &[], |row| {
        let endings = row.texts("endings")?;
        if endings.len() < 2 {
            return Err(row.wrong("endings", "at least two endings"));
        }
        let answer = usize::try_from(row.integer("label")?).ok().filter(|answer| *answer < endings.len());
        let answer = answer.ok_or_else(|| row.wrong("label", "the index of an ending, counted from 0"))?;
        let context = format!(
            "{}: {} {}",
            row.text("activity_label")?,
            row.text("ctx_a")?,
            capitalised(row.optional_text("ctx_b")?.unwrap_or_default())
        );
        Ok(MultipleChoice {
            subject: String::new(),
            question: cleaned(&context),
            choices: endings.iter().map(|ending| cleaned(ending)).collect(),
            answer,
        })
    })
}

/// The first letter large, all others small, as Python's `str.capitalize`.
fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    let Some(first) = rest.next() else { return String::new() };
    let mut capital = first.to_uppercase();
    let capital: String = capital.next().into_iter().chain(capital.flat_map(char::to_lowercase)).collect();
    capital + &rest.as_str().to_lowercase()
}

/// Without what is left of the headings of WikiHow: ` [title]` ends a sentence, other brackets go.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(open) = rest.find('[') {
        let (before, inside) = rest.split_at(open);
        kept.push_str(before);
        // A bracket closes on its line, or is none.
        match inside.find([']', '\n']).filter(|end| inside[*end..].starts_with(']')) {
            Some(close) => rest = &inside[close + 1..],
            None => {
                kept.push('[');
                rest = &inside[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}
