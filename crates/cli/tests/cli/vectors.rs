//! Embedding from the command line: order, formats, shards, long texts.

use crate::{error_line, run, run_with_input, stdout, tiny_model};
use std::fs;
use std::path::Path;

fn with_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_model::write(&dir.path().join("base"), 1);
    dir
}

fn embeddings(lines: &str) -> Vec<Vec<f64>> {
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| serde_json::from_value(row["embedding"].clone()).unwrap()).collect()
}

/// The f32 of a `.npy` file, whose header has 128 bytes.
fn npy(path: &Path) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    bytes[128..].chunks(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
}

#[test]
fn order_is_kept_however_texts_come() {
    let dir = with_model();
    let dir = dir.path();
    let texts = ["a rather long sentence about nothing", "two", "", "two", "three words here"];
    fs::write(dir.join("texts.txt"), texts.join("\n")).unwrap();
    let arguments = ["embed", "--model", "base", texts[0], texts[1], texts[3], texts[4]];
    let from_arguments = embeddings(&stdout(run(dir, &arguments)));
    assert_eq!(from_arguments.len(), 4);
    assert_eq!(from_arguments[1], from_arguments[2]);
    for vector in &from_arguments {
        assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    let piped = run_with_input(dir, &["embed", "--model", "base"], texts.join("\n").as_bytes());
    assert_eq!(embeddings(&stdout(piped)), from_arguments);
    let args = ["embed", "--model", "base", "--input", "texts.txt", "--batch-tokens", "1", "--output", "v.npy"];
    stdout(run(dir, &args));
    let flat = from_arguments.concat();
    let written = npy(&dir.join("v.npy"));
    assert_eq!(written.len(), flat.len());
    assert!(written.iter().zip(&flat).all(|(a, b)| (a - b).abs() < 1e-6));
    // A file's name is a text, and said to be.
    let output = run(dir, &["embed", "--model", "base", "texts.txt"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("texts.txt is taken as a text; --input texts.txt reads"), "{told}");
    assert_eq!(embeddings(&stdout(output)).len(), 1);
    stdout(run(dir, &["embed", "--model", "base", "--input", "texts.txt", "--output", "v.parquet", "--with-text"]));
    assert!(fs::read(dir.join("v.parquet")).unwrap().starts_with(b"PAR1"));
}

#[test]
fn shards_go_on_and_are_never_mixed() {
    let dir = with_model();
    let dir = dir.path();
    let texts: String = (0..10).map(|i| format!("text number {i}\n")).collect();
    fs::write(dir.join("texts.txt"), &texts).unwrap();
    let args = |more: &[&'static str]| {
        let args = ["embed", "--model", "base", "--input", "texts.txt", "--output", "v.npy", "--shard-size", "4"];
        [&args[..], more].concat()
    };
    stdout(run(dir, &args(&[])));
    let all = [0, 1, 2].map(|i| npy(&dir.join(format!("v-0000{i}.npy"))));
    assert_eq!(all.each_ref().map(Vec::len), [64, 64, 32]);
    stdout(run(dir, &["embed", "--model", "base", "--input", "texts.txt", "--output", "whole.npy"]));
    assert_eq!(npy(&dir.join("whole.npy")), all.concat());
    // What is there is left alone, what is missing is made again.
    fs::remove_file(dir.join("v-00001.npy")).unwrap();
    let first = fs::metadata(dir.join("v-00000.npy")).unwrap().modified().unwrap();
    let output = run(dir, &args(&[]));
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(stderr.contains("3 files, 2 of them were there already"), "{stderr}");
    assert_eq!(fs::metadata(dir.join("v-00000.npy")).unwrap().modified().unwrap(), first);
    assert_eq!(npy(&dir.join("v-00001.npy")), all[1]);
    let message = error_line(&run(dir, &args(&["--no-normalise"])));
    assert!(message.contains("v.manifest.json") && message.contains("other options"), "{message}");
    fs::write(dir.join("texts.txt"), texts.replace('7', "8")).unwrap();
    let message = error_line(&run(dir, &args(&[])));
    assert!(message.contains("other texts"), "{message}");
    fs::remove_file(dir.join("v.manifest.json")).unwrap();
    let message = error_line(&run(dir, &args(&[])));
    assert!(message.contains("v-00000.npy: in the way"), "{message}");
}

#[test]
fn a_row_of_a_megabyte_is_cut_and_counted() {
    let dir = with_model();
    let dir = dir.path();
    let row = "many words ".repeat(150_000);
    fs::write(dir.join("long.txt"), format!("short\n{row}\n")).unwrap();
    let output = run(dir, &["embed", "--model", "base", "--input", "long.txt"]);
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(stderr.contains("2 texts") && stderr.contains("1 were too long and cut"), "{stderr}");
    assert_eq!(embeddings(&stdout(output)).len(), 2);
}

#[test]
fn similar_texts_are_ranked_and_drawn() {
    let dir = with_model();
    let dir = dir.path();
    let matrix = stdout(run(dir, &["similarity", "--model", "base", "--png", "map.png", "one", "two", "one"]));
    let lines: Vec<&str> = matrix.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[1].starts_with("1  one") && lines[1].ends_with("1.00"), "{matrix}");
    assert!(fs::read(dir.join("map.png")).unwrap().starts_with(b"\x89PNG"));
    let ranked = stdout(run(dir, &["similarity", "--model", "base", "--query", "one", "two", "one"]));
    assert!(ranked.lines().next().unwrap().ends_with("1.000  one"), "{ranked}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_vectors() {
    let dir = with_model();
    let dir = dir.path();
    let lines: Vec<String> = (0..200).map(|i| format!("text number {i}")).collect();
    fs::write(dir.join("texts.txt"), lines.join("\n")).unwrap();
    for name in ["v.npy", "v.jsonl", "v.parquet"] {
        fs::write(dir.join(name), "the vectors of yesterday").unwrap();
        let args = ["embed", "--model", "base", "--input", "texts.txt", "--output", name];
        let message = error_line(&crate::run_on_a_full_disk(dir, &args));
        assert!(message.contains(name) && message.to_lowercase().contains("too large"), "{message}");
        assert_eq!(fs::read(dir.join(name)).unwrap(), b"the vectors of yesterday", "{name}");
    }
    let left = fs::read_dir(dir)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains(".tmp-"));
    assert_eq!(left.count(), 0);
}
