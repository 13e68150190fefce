//! One self-contained HTML page: text, tables, checks, and plots as data URIs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::{Environment, context};
use serde::Serialize;

use super::ReportError;

const TEMPLATE: &str = include_str!("page.html");
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A whole page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Title of the page and of its window.
    pub title: String,
    /// What the reader should know after one paragraph.
    pub summary: String,
    /// The parts, in reading order.
    pub sections: Vec<Section>,
    /// Small print at the end, such as version and date.
    pub footer: String,
}

/// A part of the page under its heading.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its heading.
    pub heading: String,
    /// What stands under it, in order.
    pub blocks: Vec<Block>,
}

/// One thing on the page. All text is escaped.
#[derive(Debug, Clone)]
pub enum Block {
    /// A paragraph.
    Paragraph(String),
    /// Names with their values.
    Facts(Vec<(String, String)>),
    /// A table.
    Table(Table),
    /// A plot.
    Figure(Figure),
    /// Text whose line breaks count, such as a chat reply.
    Preformatted {
        /// What the text is.
        caption: String,
        /// The text.
        text: String,
    },
    /// What was checked and how it came out.
    Checks(Vec<Check>),
}

/// A table with a header row; the first cell of each row names it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// What the table shows.
    pub caption: String,
    /// The header of each column.
    pub columns: Vec<String>,
    /// What neighbouring columns have in common, with their number; together all columns, or empty.
    pub groups: Vec<(String, usize)>,
    /// The rows, each with one cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Whether each column but the first holds numbers alone. Rows have a cell for each column.
    pub(super) fn numeric(&self) -> Vec<bool> {
        let holds_numbers = |column: usize| self.rows.iter().all(|row| is_numeric(&row[column].text));
        (0..self.columns.len()).map(|column| column > 0 && holds_numbers(column)).collect()
    }
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// Whether it is the best of its kind, and set off.
    pub best: bool,
}

impl Cell {
    /// A cell that is not set off.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), best: false }
    }

    /// The same cell, set off as the best.
    #[must_use]
    pub fn best(self) -> Self {
        Self { best: true, ..self }
    }
}

/// A plot with its caption.
#[derive(Debug, Clone, Default)]
pub struct Figure {
    /// The image.
    pub png: Vec<u8>,
    /// What stands under it.
    pub caption: String,
    /// What it shows, for readers who do not see it.
    pub alternative: String,
}

/// Something that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What should hold.
    pub name: String,
    /// Whether it does.
    pub passed: bool,
    /// How it was checked and what was found.
    pub explanation: String,
}

/// Renders the page.
///
/// # Errors
/// If a table row has not one cell for each column, groups of columns are not of all columns, a figure is not a PNG or lacks its
/// alternative text.
pub fn render(page: &Page) -> Result<String, ReportError> {
    let sections = page.sections.iter().map(SectionView::new);
    let sections = sections.collect::<Result<Vec<_>, _>>()?;
    let mut environment = Environment::new();
    // The name ends in .html, so everything the template prints is escaped.
    environment.add_template("page.html", TEMPLATE)?;
    let template = environment.get_template("page.html")?;
    Ok(template.render(context! {
        title => page.title,
        summary => page.summary,
        sections => sections,
        footer => page.footer,
    })?)
}

/// Checks what [`render`] checks.
pub(super) fn check_page(page: &Page) -> Result<(), ReportError> {
    page.sections.iter().try_for_each(|section| SectionView::new(section).map(drop))
}

#[derive(Serialize)]
struct SectionView<'a> {
    heading: &'a str,
    blocks: Vec<BlockView<'a>>,
}

/// A block as the template sees it.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum BlockView<'a> {
    Paragraph {
        text: &'a str,
    },
    Facts {
        facts: &'a [(String, String)],
    },
    Table {
        caption: &'a str,
        /// Headers in parts, between which a line may break.
        columns: Vec<Vec<&'a str>>,
        groups: &'a [(String, usize)],
        /// Whether each column holds numbers, which are set flush right.
        numeric: Vec<bool>,
        rows: &'a [Vec<Cell>],
    },
    Figure {
        base64: String,
        caption: &'a str,
        alternative: &'a str,
    },
    Preformatted {
        caption: &'a str,
        text: &'a str,
    },
    Checks {
        checks: &'a [Check],
    },
}

impl<'a> SectionView<'a> {
    fn new(section: &'a Section) -> Result<Self, ReportError> {
        Ok(Self {
            heading: &section.heading,
            blocks: section.blocks.iter().map(BlockView::new).collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> BlockView<'a> {
    fn new(block: &'a Block) -> Result<Self, ReportError> {
        Ok(match block {
            Block::Paragraph(text) => Self::Paragraph { text },
            Block::Facts(facts) => Self::Facts { facts },
            Block::Table(table) => Self::table(table)?,
            Block::Figure(figure) => Self::figure(figure)?,
            Block::Preformatted { caption, text } => Self::Preformatted { caption, text },
            Block::Checks(checks) => Self::Checks { checks },
        })
    }

    fn table(table: &'a Table) -> Result<Self, ReportError> {
        let num_grouped: usize = table.groups.iter().map(|(_, columns)| columns).sum();
        if !table.groups.is_empty() && num_grouped != table.columns.len() {
            return Err(ReportError::Size {
                what: format!("the groups of table `{}`", table.caption),
                expected: table.columns.len(),
                found: num_grouped,
            });
        }
        for (index, row) in table.rows.iter().enumerate() {
            if row.len() != table.columns.len() {
                return Err(ReportError::Size {
                    what: format!("row {} of table `{}`", index + 1, table.caption),
                    expected: table.columns.len(),
                    found: row.len(),
                });
            }
        }
        Ok(Self::Table {
            caption: &table.caption,
            columns: table.columns.iter().map(|name| break_points(name)).collect(),
            groups: &table.groups,
            numeric: table.numeric(),
            rows: &table.rows,
        })
    }

    fn figure(figure: &'a Figure) -> Result<Self, ReportError> {
        let caption = figure.caption.clone();
        if !figure.png.starts_with(PNG_SIGNATURE) {
            return Err(ReportError::NotPng { caption });
        }
        if figure.alternative.trim().is_empty() {
            return Err(ReportError::NoAlternative { caption });
        }
        Ok(Self::Figure {
            base64: STANDARD.encode(&figure.png),
            caption: &figure.caption,
            alternative: &figure.alternative,
        })
    }
}

/// A name in parts: a line may break before a capital that follows a small letter (`BiorxivClustering`).
fn break_points(name: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut before) = (0, ' ');
    for (at, character) in name.char_indices() {
        if before.is_lowercase() && character.is_uppercase() {
            parts.push(&name[start..at]);
            start = at;
        }
        before = character;
    }
    parts.push(&name[start..]);
    parts
}

/// Whether a cell reads as a number, perhaps with a sign and a unit, or as none measured.
fn is_numeric(text: &str) -> bool {
    let text = text.trim_start_matches(['+', '-', '\u{2212}', '±', '<', '>', '~', ' ']);
    text.is_empty() || text == "–" || text == "—" || text.starts_with(|c: char| c.is_ascii_digit())
}
