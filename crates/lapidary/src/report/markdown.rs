//! A page as Markdown, its plots as files beside it.

use super::ReportError;
use super::html::{Block, Cell, Page, Table, check_page};
use std::fmt::Write as _;

/// A page as Markdown, and the files it shows.
#[derive(Debug, Clone, Default)]
pub struct Markdown {
    /// The text, with links to the pictures by name alone.
    pub text: String,
    /// Names and bytes of the pictures.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// Writes a page as Markdown with tables and links to pictures `STEM-1.png`, `STEM-2.png` and so on beside it. No text of
/// the page acts as markup.
///
/// # Errors
/// As [`super::html::render`].
pub fn render(page: &Page, stem: &str) -> Result<Markdown, ReportError> {
    check_page(page)?;
    let mut out = Markdown { text: format!("# {}\n", escaped(&page.title)), ..Markdown::default() };
    let paragraph = |out: &mut Markdown, text: &str| {
        if !text.is_empty() {
            out.text.push_str(&format!("\n{}\n", escaped(text)));
        }
    };
    paragraph(&mut out, &page.summary);
    for section in &page.sections {
        out.text.push_str(&format!("\n## {}\n", escaped(&section.heading)));
        for block in &section.blocks {
            match block {
                Block::Paragraph(text) => paragraph(&mut out, text),
                Block::Facts(facts) => {
                    out.text.push('\n');
                    for (name, value) in facts {
                        out.text.push_str(&format!("- {}: {}\n", escaped(name), escaped(value)));
                    }
                }
                Block::Table(table) => out.text.push_str(&of_table(table)),
                Block::Figure(figure) => {
                    let name = format!("{stem}-{}.png", out.pictures.len() + 1);
                    // Blanks and brackets would end the link.
                    let link = name.replace(' ', "%20").replace('(', "%28").replace(')', "%29");
                    out.text.push_str(&format!("\n![{}]({link})\n", escaped(&figure.alternative)));
                    paragraph(&mut out, &figure.caption);
                    out.pictures.push((name, figure.png.clone()));
                }
                Block::Preformatted { caption, text } => {
                    paragraph(&mut out, caption);
                    let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
                    out.text.push_str(&format!("\n{lines}"));
                }
                Block::Checks(checks) => {
                    out.text.push('\n');
                    for check in checks {
                        let mark = if check.passed { "✓" } else { "✗" };
                        let (name, explanation) = (escaped(&check.name), escaped(&check.explanation));
                        out.text.push_str(&format!("- {mark} {name}: {explanation}\n"));
                    }
                }
            }
        }
    }
    paragraph(&mut out, &page.footer);
    Ok(out)
}

fn of_table(table: &Table) -> String {
    let cell = |cell: &Cell| if cell.best { format!("**{}**", escaped(&cell.text)) } else { escaped(&cell.text) };
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let align = |is_numeric: bool| if is_numeric { "---:" } else { "---" }.to_owned();
    let mut text = String::new();
    if !table.caption.is_empty() {
        let _ = write!(text, "\n{}\n", escaped(&table.caption));
    }
    text.push('\n');
    text.push_str(&line(table.columns.iter().map(|name| escaped(name)).collect()));
    text.push_str(&line(table.numeric().into_iter().map(align).collect()));
    for row in &table.rows {
        text.push_str(&line(row.iter().map(cell).collect()));
    }
    text
}

/// The text in one line, without meaning as markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        if "\\`*_[]<>|#&".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
