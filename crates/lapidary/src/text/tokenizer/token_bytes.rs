//! The bytes that each token stands for.

use super::Tokenizer;
use std::collections::HashMap;
use tokenizers::DecoderWrapper;

/// The bytes that the characters of byte-level tokens stand for, as GPT-2's vocabulary has them: printable characters of
/// Latin-1 stand for themselves, the other bytes, in order, for the characters from U+0100 on.
fn byte_characters() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let printable = (0..=u8::MAX).filter(is_printable).map(|byte| (char::from(byte), byte));
    let others = ('\u{100}'..).zip((0..=u8::MAX).filter(|byte| !is_printable(byte)));
    printable.chain(others).collect()
}

/// `<0x0A>` as the byte that it names.
fn named_byte(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok().filter(|_| token.len() == 6)
}

fn is_byte_level(decoder: Option<&DecoderWrapper>) -> bool {
    match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => true,
        Some(DecoderWrapper::Sequence(all)) => all.get_decoders().iter().any(|one| is_byte_level(Some(one))),
        _ => false,
    }
}

impl Tokenizer {
    /// The bytes that each of the first `count` ids adds to a text; none for special tokens and for ids without a token.
    pub fn token_bytes(&self, count: usize) -> Vec<Vec<u8>> {
        let (added, byte_characters) = (self.with_special.get_added_tokens_decoder(), byte_characters());
        let is_byte_level = is_byte_level(self.with_special.get_decoder());
        let bytes = |id: u32| -> Vec<u8> {
            if let Some(token) = added.get(&id) {
                return if token.special { Vec::new() } else { token.content.clone().into_bytes() };
            }
            let Some(token) = self.id_to_token(id) else { return Vec::new() };
            if is_byte_level {
                // A character outside the table is not of this vocabulary's making; the token stands for nothing then.
                return token
                    .chars()
                    .map(|c| byte_characters.get(&c).copied())
                    .collect::<Option<_>>()
                    .unwrap_or_default();
            }
            named_byte(&token).map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte])
        };
        (0..count as u32).map(bytes).collect()
    }
}
