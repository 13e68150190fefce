//! A long text in pieces of at most so many of a model's own tokens, cut where a paragraph, a line, a sentence or a word ends.

use super::{Tokenizer, TokenizerError};
use std::ops::Range;

/// A long text is encoded in stretches of at least so many bytes, and of at most twice as many.
const STRETCH_BYTES: usize = 64 << 10;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Most tokens of a chunk, encoded by itself.
    pub max_tokens: usize,
    /// Tokens at the end of a chunk with which the next begins, at most; no more than half of `max_tokens`.
    pub overlap: usize,
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its bytes; whole characters.
    pub range: Range<usize>,
    /// Its tokens, encoded by itself.
    pub num_tokens: usize,
}

/// Why a text cannot be cut.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what its fields are")]
pub enum ChunkError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("max_tokens: expected at least 1, found 0")]
    NoTokens,
    #[error("overlap: expected at most half of max_tokens ({max_tokens}), found {found}")]
    Overlap { max_tokens: usize, found: usize },
    #[error("max_tokens: expected at least {needed}, as the characters at byte {at} of the text need, found {found}")]
    TooFewTokens { needed: usize, at: usize, found: usize },
}

/// A place where a text may be cut: between two tokens, and between two characters.
#[derive(Debug, Clone, Copy)]
struct Cut {
    byte: usize,
    /// Tokens before it.
    tokens: usize,
}

/// Cuts a text. Without overlap the chunks put together are the text, byte for byte.
///
/// # Errors
/// When an option is out of range, the text cannot be encoded, or one character has more tokens than a chunk may have.
pub fn chunks(tokenizer: &Tokenizer, text: &str, options: ChunkOptions) -> Result<Vec<Chunk>, ChunkError> {
    let ChunkOptions { max_tokens, overlap } = options;
    if max_tokens == 0 {
        return Err(ChunkError::NoTokens);
    }
    if overlap > max_tokens / 2 {
        return Err(ChunkError::Overlap { max_tokens, found: overlap });
    }
    let cuts = cuts(tokenizer, text)?;
    // The next chunk begins at `first`; what comes before `done` is in chunks already.
    let (mut chunks, mut first, mut done) = (Vec::new(), 0, 0);
    while done + 1 < cuts.len() {
        let (end, num_tokens) = next(tokenizer, text, &cuts[first..], (done + 1 - first, max_tokens))?;
        if num_tokens > max_tokens {
            if first == done {
                return Err(ChunkError::TooFewTokens { needed: num_tokens, at: cuts[first].byte, found: max_tokens });
            }
            // There is no room for an overlap.
            first = done;
            continue;
        }
        done = first + end;
        chunks.push(Chunk { range: cuts[first].byte..cuts[done].byte, num_tokens });
        let begin = cuts[done].tokens.saturating_sub(overlap);
        first = cuts.partition_point(|cut| cut.tokens < begin).clamp(first + 1, done);
    }
    Ok(chunks)
}

/// All places where the text may be cut, its beginning and its end among them.
fn cuts(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Cut>, TokenizerError> {
    let mut cuts = vec![Cut { byte: 0, tokens: 0 }];
    let (mut start, mut tokens) = (0, 0);
    while start < text.len() {
        let stretch = stretch(&text[start..]);
        let (_, places) = tokenizer.encode_with_offsets(stretch)?;
        for (at, place) in places.iter().enumerate() {
            // Tokens that share a character are not parted; blanks between two go to the second.
            let next = places.get(at + 1).map_or(stretch.len(), |next| next.start);
            let byte = start + place.end;
            if place.end <= next && text.is_char_boundary(byte) && cuts.last().is_some_and(|cut| cut.byte < byte) {
                cuts.push(Cut { byte, tokens: tokens + at + 1 });
            }
        }
        start += stretch.len();
        tokens += places.len();
        match cuts.last_mut() {
            // Blanks at the end belong to the last token; where there are no tokens at all, the stretch is one piece.
            Some(cut) if cut.tokens == tokens && cut.byte > start - stretch.len() => cut.byte = start,
            _ => cuts.push(Cut { byte: start, tokens }),
        }
    }
    Ok(cuts)
}

/// The beginning of a text, up to the end of a line where there is one.
fn stretch(text: &str) -> &str {
    if text.len() <= 2 * STRETCH_BYTES {
        return text;
    }
    let newline = text.as_bytes()[STRETCH_BYTES..2 * STRETCH_BYTES].iter().position(|byte| *byte == b'\n');
    let mut end = newline.map_or(2 * STRETCH_BYTES, |at| STRETCH_BYTES + at + 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The end of the chunk that begins with the first of these places, no earlier than `least`, and its number of tokens: too
/// many where not even that fits.
fn next(
    tokenizer: &Tokenizer,
    text: &str,
    cuts: &[Cut],
    (least, max_tokens): (usize, usize),
) -> Result<(usize, usize), ChunkError> {
    let start = cuts[0];
    let mut limit = max_tokens;
    loop {
        let furthest = cuts.partition_point(|cut| cut.tokens - start.tokens <= limit).saturating_sub(1).max(least);
        let end = if furthest + 1 == cuts.len() { furthest } else { best(text, &cuts[..=furthest], least) };
        // By itself a text may have other tokens than within a longer one.
        let found = tokenizer.encode(&text[start.byte..cuts[end].byte])?.len();
        if found <= max_tokens || end == least {
            return Ok((end, found));
        }
        limit = (cuts[end].tokens - start.tokens).saturating_sub(found - max_tokens);
    }
}

/// Of the places in the last third, from `least`, the last of those where most ends.
fn best(text: &str, cuts: &[Cut], least: usize) -> usize {
    let last = cuts.len() - 1;
    let third = (cuts[last].tokens - cuts[0].tokens).div_ceil(3);
    let from = cuts.partition_point(|cut| cut.tokens + third < cuts[last].tokens).clamp(least, last);
    (from..=last).max_by_key(|at| (End::at(text, cuts[*at].byte), *at)).unwrap_or(last)
}

/// What ends at a place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Nothing,
    Word,
    Sentence,
    Line,
    Paragraph,
}

impl End {
    fn at(text: &str, byte: usize) -> Self {
        /// Characters that are looked at: a run of blanks is not followed to its end.
        const SEEN: usize = 8;
        let before = || text[..byte].chars().rev().take(SEEN);
        let next = text[byte..].chars().next();
        let (last, is_blank) = (before().next(), char::is_whitespace);
        if last == Some('\n') && !matches!(next, Some('\n' | '\r')) {
            let lines = before().take_while(|c| c.is_whitespace()).filter(|c| *c == '\n').count();
            return if lines > 1 { Self::Paragraph } else { Self::Line };
        }
        let said = before().find(|c| !"\"')]}”’»」』".contains(*c));
        if last.is_some_and(is_blank) {
            return Self::Nothing;
        }
        match (said, next.is_none_or(is_blank)) {
            (Some('。' | '！' | '？'), _) | (Some('.' | '!' | '?' | '…'), true) => Self::Sentence,
            (_, true) => Self::Word,
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Byte-level BPE that knows some words.
    fn tokenizer() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut other = 256;
        for byte in 0..256 {
            let code = if printable(byte) {
                byte
            } else {
                other += 1;
                other - 1
            };
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        let merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("Ċ", "Ċ"), ("o", "n"), ("Ġ", "on")];
        for (number, (a, b)) in merges.iter().enumerate() {
            vocab.insert(format!("{a}{b}"), (256 + number).into());
        }
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
        let json = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "post_processor": byte_level,
            "decoder": byte_level, "model": model,
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    /// The chunks, checked.
    fn cut(tokenizer: &Tokenizer, text: &str, max_tokens: usize, overlap: usize) -> Vec<String> {
        let chunks = chunks(tokenizer, text, ChunkOptions { max_tokens, overlap }).unwrap();
        let mut end = 0;
        for chunk in &chunks {
            let alone = tokenizer.encode(&text[chunk.range.clone()]).unwrap();
            assert_eq!(alone.len(), chunk.num_tokens);
            assert!(chunk.num_tokens <= max_tokens && !chunk.range.is_empty(), "{chunk:?}");
            assert!(chunk.range.start <= end && chunk.range.end > end, "{chunk:?} after {end}");
            assert!(overlap > 0 || chunk.range.start == end, "{chunk:?} after {end}");
            end = chunk.range.end;
        }
        assert_eq!(end, text.len());
        chunks.into_iter().map(|chunk| text[chunk.range].to_owned()).collect()
    }

    #[test]
    fn what_ends_latest_and_most_is_where_it_is_cut() {
        let tokenizer = tokenizer();
        assert_eq!(cut(&tokenizer, "One two. Three four five.", 12, 0), ["One two.", " Three four", " five."]);
        let paragraphs = "the one.\n\nthe other one. And on.";
        assert_eq!(cut(&tokenizer, paragraphs, 9, 0), ["the one.\n\n", "the other one.", " And on."]);
        let windows = "a b c\r\n\r\nd e f. g\r\nh i";
        assert_eq!(cut(&tokenizer, windows, 12, 0), ["a b c\r\n\r\n", "d e f. g\r\n", "h i"]);
        assert_eq!(cut(&tokenizer, "他说。她说！“好？”我走了。", 12, 0)[0], "他说。");
        assert_eq!(cut(&tokenizer, "", 3, 0), [""; 0]);
        assert_eq!(cut(&tokenizer, "   ", 2, 0).concat(), "   ");
        assert_eq!(cut(&tokenizer, "abc \n ", 100, 0), ["abc \n "]);
    }

    #[test]
    fn no_character_is_cut() {
        let tokenizer = tokenizer();
        assert_eq!(cut(&tokenizer, "ééé", 3, 0), ["é", "é", "é"]);
        assert_eq!(cut(&tokenizer, "🙂🙂 🙂", 9, 0), ["🙂🙂", " 🙂"]);
        let found = chunks(&tokenizer, "ab🙂", ChunkOptions { max_tokens: 3, overlap: 0 }).unwrap_err().to_string();
        assert_eq!(found, "max_tokens: expected at least 4, as the characters at byte 2 of the text need, found 3");
    }

    #[test]
    fn chunks_overlap_by_tokens() {
        let tokenizer = tokenizer();
        assert_eq!(cut(&tokenizer, "abcdefghij", 4, 2), ["abcd", "cdef", "efgh", "ghij"]);
        // One token of a character of two: the overlap is none there.
        assert_eq!(cut(&tokenizer, "abécdef", 4, 1), ["abé", "cdef"]);
    }

    #[test]
    fn a_long_text_is_cut_too() {
        let tokenizer = tokenizer();
        for text in ["the one on the other\n".repeat(20_000), "€".repeat(100_000)] {
            let chunks = cut(&tokenizer, &text, 500, 0);
            assert_eq!(chunks.concat(), text);
            assert!(chunks.len() > 100);
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let refused = |max_tokens, overlap| {
            chunks(&tokenizer(), "a", ChunkOptions { max_tokens, overlap }).unwrap_err().to_string()
        };
        assert_eq!(refused(0, 0), "max_tokens: expected at least 1, found 0");
        assert_eq!(refused(8, 5), "overlap: expected at most half of max_tokens (8), found 5");
    }

    proptest! {
        #[test]
        fn chunks_are_the_text(text in "(the| on|\\PC|[ \\n]|\\r\\n|🙂|é|。){0,60}", max in 4usize..20, half in 0usize..2) {
            let tokenizer = tokenizer();
            let chunks = cut(&tokenizer, &text, max, half * max / 2);
            if half == 0 {
                prop_assert_eq!(chunks.concat(), text);
            }
        }
    }
}
