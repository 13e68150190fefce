//! The tokenizer against llama.cpp on difficult texts, and on broken files.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::model::gguf::synthetic::{Meta, Synthetic};

fn smollm2() -> GgufFile {
    GgufFile::open(crate::test_models::real_model()).unwrap()
}

/// A text and its ids by llama.cpp; written by `scripts/tokenizer_golden.py`.
#[derive(Debug, Deserialize)]
struct Case {
    text: String,
    #[serde(default = "one")]
    repeat: usize,
    plain: Vec<u32>,
    special: Option<Vec<u32>>,
}

fn one() -> usize {
    1
}

fn cases(json: &str, variant: &str) -> Vec<Case> {
    let mut golden: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap();
    serde_json::from_value(golden.remove(variant).unwrap()).unwrap()
}

/// All ids agree, and decoding them gives the text back, at once and as a stream.
fn check(tokenizer: &Tokenizer, json: &str, variant: &str, strips_space: bool) {
    let mut wrong = Vec::new();
    for case in cases(json, variant) {
        let text = case.text.repeat(case.repeat);
        let plain = tokenizer.encode(&text).unwrap();
        let special = tokenizer.encode_with_special(&text).unwrap();
        if plain != case.plain || special != *case.special.as_ref().unwrap_or(&case.plain) {
            wrong.push(format!(
                "{variant} {:?}\n  {plain:?}\n  {special:?}\n  {:?} {:?}",
                case.text, case.plain, case.special
            ));
        }
        let decoded = tokenizer.decode(&plain, false).unwrap();
        if !strips_space && !variant.ends_with("qwen2") && !text.contains('▁') {
            assert_eq!(decoded, text);
        }
        assert_eq!(streamed(tokenizer, &plain), decoded);
    }
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream(false);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

#[test]
fn byte_level_agrees_with_llama_cpp() {
    let file = smollm2();
    let golden = include_str!("../../../tests/golden/tokenizer_smollm2.json");
    check(&Tokenizer::from_gguf(&file).unwrap(), golden, "file", false);
    for pre in ["gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "tekken"] {
        let vocabulary = GgufVocabulary { pre, ..GgufVocabulary::read(&file).unwrap() };
        check(&Tokenizer::from_vocabulary(&vocabulary).unwrap(), golden, &format!("pre={pre}"), false);
    }
}

#[test]
#[ignore = "needs gemma3-270m, 253 MB that nobody else needs; .ci/run fetches it and runs this"]
fn sentencepiece_agrees_with_llama_cpp() {
    let file = GgufFile::open(crate::test_models::gemma3()).unwrap();
    let golden = include_str!("../../../tests/golden/tokenizer_gemma3.json");
    check(&Tokenizer::from_gguf(&file).unwrap(), golden, "file", false);
    let vocabulary = GgufVocabulary { add_space_prefix: Some(true), ..GgufVocabulary::read(&file).unwrap() };
    check(&Tokenizer::from_vocabulary(&vocabulary).unwrap(), golden, "add_space_prefix=true", true);
}

#[test]
fn special_tokens_have_names_and_ids() {
    let file = smollm2();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.token_to_id("<|im_start|>"), Some(1));
    assert_eq!(tokenizer.id_to_token(2).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.id_to_token(49152), None);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(300));
    let ids = tokenizer.encode_with_special("<|im_start|>hi<|im_end|>").unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<|im_start|>hi<|im_end|>");
}

#[test]
fn longest_texts_are_encoded() {
    let file = smollm2();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    for piece in [" ", "a", "\n", "word "] {
        let text = piece.repeat(MAX_TEXT_BYTES / piece.len());
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), false).unwrap(), text);
    }
    let found = tokenizer.encode(&"a".repeat(MAX_TEXT_BYTES + 1)).unwrap_err().to_string();
    assert_eq!(found, "text: expected at most 1048576 bytes, found 1048577");
}

/// SentencePiece: `▁`, three letters, two joins, bytes, a control token that the joins could spell.
fn small_sentencepiece() -> Synthetic {
    let mut tokens: Vec<(String, f32, i32)> = vec![("<unk>".into(), 0.0, 2), ("ab▁".into(), 9.0, 3)];
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    tokens.extend(["▁", "a", "b", "c"].map(|token| (token.into(), -100.0, 1)));
    tokens.extend(
        [("bc", -1.0), ("ab", -2.0), ("▁a", -3.0), ("abc", -4.0)].map(|(token, score)| (token.into(), score, 1)),
    );
    Synthetic::default()
        .meta("tokenizer.ggml.model", Meta::Str("llama".into()))
        .meta("tokenizer.ggml.tokens", Meta::Strs(tokens.iter().map(|token| token.0.clone()).collect()))
        .meta("tokenizer.ggml.scores", Meta::F32s(tokens.iter().map(|token| token.1).collect()))
        .meta("tokenizer.ggml.token_type", Meta::I32s(tokens.iter().map(|token| token.2).collect()))
}

fn tokens(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
}

#[test]
fn scores_order_the_merges() {
    let file = GgufFile::parse(small_sentencepiece().bytes(3, 32)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let encoded = |text| tokens(&tokenizer, &tokenizer.encode(text).unwrap());
    // "bc" joins before "ab"; then "a" and "bc" become "abc", for "▁a" has gone by only without it.
    assert_eq!(encoded("bc"), ["▁", "bc"]);
    assert_eq!(encoded("ac"), ["▁a", "c"]);
    assert_eq!(encoded("cabc"), ["▁", "c", "abc"]);
    assert_eq!(encoded("é"), ["▁", "<0xC3>", "<0xA9>"]);
    // The control token is not made from its letters, and is found only where templates may write it.
    assert_eq!(encoded("ab "), ["▁", "ab", "▁"]);
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    let ids = tokenizer.encode(" éa").unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), " éa");
}

#[test]
fn streams_give_whole_characters() {
    let file = GgufFile::parse(small_sentencepiece().bytes(3, 32)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<String> = "é😀".bytes().map(|b| stream.push(byte(b)).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "😀"]);
    assert_eq!(stream.finish().unwrap(), "");
    let mut stream = tokenizer.decode_stream(false);
    assert_eq!(stream.push(byte(0xC3)).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

/// The error for a file with one key replaced, or without it.
fn error(key: &str, value: Option<Meta>) -> String {
    let mut broken = small_sentencepiece();
    broken.metadata.retain(|(name, _)| name != key);
    broken.metadata.extend(value.map(|value| (key.to_owned(), value)));
    let file = GgufFile::parse(broken.bytes(3, 32)).unwrap();
    Tokenizer::from_gguf(&file).unwrap_err().to_string()
}

#[test]
fn contradictions_are_named() {
    let strings = |items: &[&str]| Some(Meta::Strs(items.iter().map(|item| (*item).to_owned()).collect()));
    let cases = [
        ("tokenizer.ggml.model", None, "metadata key `tokenizer.ggml.model`: expected in the file, not found"),
        (
            "tokenizer.ggml.model",
            Some(Meta::Str("bert".into())),
            "metadata key `tokenizer.ggml.model`: expected one of `gpt2`, `llama`, found `bert`",
        ),
        (
            "tokenizer.ggml.scores",
            Some(Meta::F32s(vec![1.0])),
            "metadata key `tokenizer.ggml.scores`: expected 266 items, one per token, found 1",
        ),
        ("tokenizer.ggml.scores", None, "tokenizer metadata: expected the key `tokenizer.ggml.scores` or"),
        (
            "tokenizer.ggml.tokens",
            strings(&["a", "b", "a"]),
            "tokenizer.ggml.tokens: expected each token once, found `a` at 0 and 2",
        ),
        (
            "tokenizer.ggml.token_type",
            Some(Meta::I32s(vec![7])),
            "tokenizer.ggml.token_type: expected a type from 0 to 6, found 7 at 0",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&["a b", "ab"]),
            "tokenizer.ggml.merges: expected two tokens and a space between them, found `ab` at 1",
        ),
        ("tokenizer.ggml.merges", strings(&["a zz"]), "tokenizer metadata: "),
        (
            "tokenizer.ggml.add_space_prefix",
            Some(Meta::U8(1)),
            "metadata key `tokenizer.ggml.add_space_prefix`: expected a boolean",
        ),
    ];
    for (key, value, message) in cases {
        let found = error(key, value);
        assert!(found.starts_with(message), "expected {message}, found {found}");
    }
    let long = error("tokenizer.ggml.tokens", strings(&["a".repeat(2000).as_str()]));
    assert_eq!(long, "tokenizer.ggml.tokens: expected tokens of at most 1024 bytes, found 2000 at 0");
}

#[test]
fn unknown_pre_tokenizers_name_the_known() {
    let file = Synthetic::default()
        .meta("tokenizer.ggml.model", Meta::Str("gpt2".into()))
        .meta("tokenizer.ggml.pre", Meta::Str("viking".into()))
        .meta("tokenizer.ggml.tokens", Meta::Strs(vec!["a".into()]));
    let found = Tokenizer::from_gguf(&GgufFile::parse(file.bytes(3, 32)).unwrap()).unwrap_err().to_string();
    assert!(found.starts_with("metadata key `tokenizer.ggml.pre`: expected one of `default`, `gpt-2`"), "{found}");
    assert!(found.ends_with("found `viking`"), "{found}");
}

const WORDS: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    "added_tokens": [{"id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2, "<": 3, "s": 4, ">": 5, "<s": 6, "s>": 7}, "merges": MERGES}}"#;

fn from_text(text: &str) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, text).unwrap();
    Tokenizer::from_file(&path)
}

#[test]
fn tokenizer_json_is_read_without_truncation() {
    let tokenizer = from_text(&WORDS.replace("MERGES", "[]")).unwrap();
    assert_eq!(tokenizer.encode("ab<s>").unwrap(), [0, 1, 3, 4, 5]);
    assert_eq!(tokenizer.encode_with_special("ab<s>").unwrap(), [0, 1, 2]);
}

#[test]
fn merges_that_spell_a_special_token_are_caught() {
    let tokenizer = from_text(&WORDS.replace("MERGES", r#"[["<", "s"], ["<s", ">"]]"#)).unwrap();
    let found = tokenizer.encode("<s>").unwrap_err().to_string();
    assert_eq!(found, "text: encodes to the special token `<s>`, which plain text must not");
    assert_eq!(tokenizer.encode("<sa").unwrap(), [6, 0]);
}

#[test]
fn files_that_are_no_tokenizer_are_named() {
    for text in ["", "{}", "[1]", "not json", r#"{"version": "9", "model": null}"#] {
        let found = from_text(text).unwrap_err().to_string();
        assert!(found.contains("tokenizer.json: not a tokenizer: "), "{found}");
    }
    assert!(matches!(Tokenizer::from_file("no/such/file"), Err(TokenizerError::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_survives(text in ".{0,40}") {
        let file = GgufFile::parse(small_sentencepiece().bytes(3, 32)).unwrap();
        let tokenizer = Tokenizer::from_gguf(&file).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        let decoded = tokenizer.decode(&ids, false).unwrap();
        prop_assert_eq!(&decoded, &text.replace('▁', " "));
        prop_assert_eq!(streamed(&tokenizer, &ids), decoded);
    }
}

#[test]
fn replacement_characters_of_the_text_itself_stream_as_they_are() {
    let file = GgufFile::parse(small_sentencepiece().bytes(3, 32)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    for text in
        ["\u{FFFD}\u{FFFD}¡", "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}é\u{FFFD}", "\u{FFFD}\u{FFFD}\u{FFFD}🙂\u{FFFD}a"]
    {
        assert_eq!(streamed(&tokenizer, &tokenizer.encode(text).unwrap()), text);
    }
}
