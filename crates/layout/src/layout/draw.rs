//! A row as a text grid: one line per position, then its line of the mask.

use super::{Input, Layout, Role, View};
use crate::{Base, TokenId};

impl Layout {
    /// The row as a text grid, token ids as numbers.
    #[must_use]
    pub fn draw(&self) -> String {
        self.draw_with(&|id| id.to_string())
    }

    /// The row as a text grid, each token id written by `token`; control characters are escaped.
    #[must_use]
    pub fn draw_with(&self, token: &dyn Fn(TokenId) -> String) -> String {
        let num_tokens = self.num_tokens() as u32;
        let text = |id: TokenId| token(id).chars().map(printable).collect::<String>();
        let names = self.input_names(&text);
        let mut table: Vec<[String; 8]> =
            vec![["", "input", "role", "pos", "label", "adapter", "pooled", "mask"].map(String::from)];
        for position in 0..num_tokens {
            let at = position as usize;
            table.push([
                position.to_string(),
                names[at].clone(),
                role_name(self.roles()[at]).to_owned(),
                self.positions()[at].to_string(),
                self.labels()[at].map_or("-".to_owned(), text),
                if self.adapted()[at] { "on" } else { "-" }.to_owned(),
                self.pooled_mark(position),
                self.visibility().draw_query(position, num_tokens),
            ]);
        }
        let mut drawn = align(&table);
        let base = match self.visibility().base {
            Base::Causal => "causal".to_owned(),
            Base::Full => "full".to_owned(),
            Base::Anchored { window } => format!("anchored, window {window}"),
        };
        drawn.push_str(&format!(
            "{num_tokens} positions, the first {} frozen; base {base}; # may attend, . may not; \
             pooled: Query, Positive, Negative and the weight\n",
            self.frozen_len()
        ));
        drawn
    }

    /// What each position feeds to the decoder; a prime marks the repetition of a special token, `row:position` a soft
    /// input, `!` that its gradient ends.
    fn input_names(&self, text: &dyn Fn(TokenId) -> String) -> Vec<String> {
        let name = |(at, input): (usize, &Input)| match input {
            Input::Token(id) => text(*id),
            Input::Special(j) => {
                let repeated = self.inputs()[..at].contains(input);
                format!("[E{j}]{}", if repeated { "'" } else { "" })
            }
            Input::Soft { row, position, detached } => {
                format!("{row}:{position}{}", if *detached { "!" } else { "" })
            }
        };
        self.inputs().iter().enumerate().map(name).collect()
    }

    fn pooled_mark(&self, position: u32) -> String {
        let mut marks = Vec::new();
        for pooled in self.pooled() {
            let view = match pooled.view {
                View::Query => 'Q',
                View::Positive => 'P',
                View::Negative => 'N',
            };
            let here = pooled.weights.iter().filter(|entry| entry.0 == position);
            marks.extend(here.map(|entry| format!("{view} {:.3}", entry.1)));
        }
        if marks.is_empty() { "-".to_owned() } else { marks.join(" ") }
    }
}

fn printable(character: char) -> String {
    if character.is_control() { character.escape_debug().to_string() } else { character.to_string() }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Plain => "plain",
        Role::Prefix => "prefix",
        Role::Special => "special",
        Role::Suffix => "suffix",
    }
}

/// Pads every column but the last to its widest cell.
fn align(table: &[[String; 8]]) -> String {
    let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    let mut drawn = String::new();
    for line in table {
        for (cell, width) in line.iter().zip(&widths) {
            drawn.push_str(&format!("{cell:<width$}  "));
        }
        drawn.push_str(&line[7]);
        drawn.push('\n');
    }
    drawn
}
