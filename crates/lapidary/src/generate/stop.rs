//! Stop strings: found across pieces of text, never given out.

use crate::Error;

/// Holds text back as long as it may be the beginning of a stop string.
#[derive(Debug, Clone)]
pub struct StopFinder {
    stop: Vec<String>,
    held: String,
}

impl StopFinder {
    /// Looks for the strings `stop`.
    ///
    /// # Errors
    /// When one is empty.
    pub fn new(stop: &[String]) -> Result<Self, Error> {
        if let Some(at) = stop.iter().position(String::is_empty) {
            let field = format!("stop[{at}]");
            return Err(Error::Setting {
                field,
                expected: "a string of at least one character".into(),
                found: "none".into(),
            });
        }
        Ok(Self { stop: stop.to_vec(), held: String::new() })
    }

    /// Takes the next piece; returns the text that is certain to stand before any stop string, and whether one was found.
    /// After that, nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| self.stop.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text still held back: no stop string came of it.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut finder = StopFinder::new(&stop).unwrap();
        let mut given = Vec::new();
        for piece in pieces {
            let (text, found) = finder.push(piece);
            given.push(text);
            if found {
                return (given, true, finder.finish());
            }
        }
        (given, false, finder.finish())
    }

    #[test]
    fn strings_are_found_across_pieces() {
        assert_eq!(
            run(&["\nUser:"], &["Hi", ".\n", "Us", "er: x"]),
            (vec!["Hi".into(), ".".into(), String::new(), String::new()], true, String::new())
        );
        assert_eq!(run(&["end", "."], &["the end."]), (vec!["the ".into()], true, String::new()));
    }

    #[test]
    fn held_text_comes_out_when_it_was_no_stop() {
        assert_eq!(
            run(&["aab"], &["a", "aa", "b"]),
            (vec![String::new(), "a".into(), String::new()], true, String::new())
        );
        assert_eq!(run(&["abc"], &["ab", "d"]), (vec![String::new(), "abd".into()], false, String::new()));
        assert_eq!(run(&["né"], &["un", "é"]).0, ["u", ""]);
        assert_eq!(run(&["xyz"], &["wx", "y"]), (vec!["w".into(), String::new()], false, "xy".into()));
    }

    #[test]
    fn an_empty_string_is_refused() {
        assert!(StopFinder::new(&["a".into(), String::new()]).unwrap_err().to_string().contains("stop[1]"));
    }

    #[test]
    fn without_strings_nothing_is_held() {
        assert_eq!(run(&[], &["a", "b"]).0, ["a", "b"]);
    }
}
