//! Bad input: a one-line error, exit code 2, and no half-written output.

use crate::{error_line, run, run_with_input, tiny_model};
use std::fs;
use std::path::Path;

fn embed_file(dir: &Path, name: &str) -> String {
    let message = error_line(&run(dir, &["embed", "--model", "base", "--input", name, "--output", "vectors.npy"]));
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("vectors")), "{left:?}");
    message
}

#[test]
fn bad_data_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    fs::write(dir.join("empty.txt"), "").unwrap();
    fs::write(dir.join("blank.jsonl"), "{\"text\":\" \"}\n\n").unwrap();
    fs::write(dir.join("binary.txt"), b"text\0\x01\x02").unwrap();
    fs::write(dir.join("latin1.txt"), b"good\ngr\xfc\xdfe\n").unwrap();
    fs::write(dir.join("torn.jsonl"), "{\"text\":\"a\"}\n{\"text\":").unwrap();
    fs::write(dir.join("columns.csv"), "a,b\nx,y\n").unwrap();
    fs::write(dir.join("no.parquet"), "PAR1").unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    for (name, expected) in [
        ("missing.txt", "missing.txt: cannot open"),
        ("nothing-*.txt", "no file matches `nothing-*.txt`"),
        ("empty.txt", "no rows with text in empty.txt"),
        ("blank.jsonl", "no rows with text in blank.jsonl"),
        ("binary.txt", "binary.txt: expected UTF-8 text, found a binary file"),
        ("latin1.txt", "latin1.txt:2: invalid UTF-8 at byte 2"),
        ("torn.jsonl", "torn.jsonl:2: invalid JSON"),
        ("columns.csv", "columns.csv: name the text column"),
        ("no.parquet", "no.parquet"),
        ("folder", "folder: expected a file, found a directory"),
        ("base/config.json", "base/config.json: unknown format"),
    ] {
        let message = embed_file(dir, name);
        assert!(message.contains(expected), "{name}: {message}");
    }
    for (input, expected) in
        [(&b""[..], "found none"), (b"a\xff\n", "standard input:1: invalid UTF-8"), (b"\0", "binary")]
    {
        let message = error_line(&run_with_input(dir, &["embed", "--model", "base"], input));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn bad_models() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    fs::write(dir.join("header.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\x01\0\0\0\0\0\0\0").unwrap();
    fs::write(dir.join("short.gguf"), b"GGUF\x03\0\0\0\x01").unwrap();
    fs::write(dir.join("text.gguf"), "hello").unwrap();
    let torn = |name: &str, file: &str, keep: usize| {
        tiny_model::write(&dir.join(name), 1);
        let path = dir.join(name).join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..keep]).unwrap();
    };
    torn("torn-weights", "model.safetensors", 4000);
    torn("torn-config", "config.json", 50);
    torn("torn-tokenizer", "tokenizer.json", 900);
    fs::create_dir(dir.join("nothing")).unwrap();
    for name in [
        "header.gguf",
        "short.gguf",
        "text.gguf",
        "torn-weights",
        "torn-config",
        "torn-tokenizer",
        "nothing",
        "missing.gguf",
        "no-such-model",
    ] {
        let message = error_line(&run(dir, &["embed", "--model", name, "text"]));
        assert!(message.contains(name), "{name}: {message}");
    }
    let message = error_line(&run(dir, &["embed", "--model", "smollm2-135m", "text"]));
    assert!(message.contains("--offline forbids"), "{message}");
    let message = error_line(&run(dir, &["embed", "--model", "base", "--method", "men", "text"]));
    assert!(message.contains("unknown method \"men\""), "{message}");
}

#[test]
fn bad_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    for (output, expected) in [
        ("vectors.bin", "unknown format"),
        ("no/such/folder/vectors.npy", "no/such/folder/vectors.npy: cannot create"),
        ("base", "unknown format"),
    ] {
        let message = error_line(&run(dir, &["embed", "--model", "base", "--output", output, "text"]));
        assert!(message.contains(expected), "{message}");
    }
    let message = error_line(&run(dir, &["embed", "--model", "base", "--output", "v.npy", "--with-text", "text"]));
    assert!(message.contains("cannot hold texts"), "{message}");
}
