//! Tests of reading data sets; the golden files are written by `scripts/io_golden.py`.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::data::sts::StsPairs;
use crate::data::tasks::{load_classification, load_multiple_choice, load_text};

fn golden(name: &str) -> String {
    format!("{}/tests/golden/io/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn spec(paths: &[&str]) -> DataSpec {
    DataSpec { paths: paths.iter().map(|&path| path.to_owned()).collect(), ..DataSpec::default() }
}

fn read(spec: &DataSpec) -> Result<Vec<Record>, DataError> {
    open(spec)?.collect()
}

fn texts(spec: &DataSpec) -> Vec<String> {
    let records = read(spec).unwrap();
    records.into_iter().map(|record| record.text).collect()
}

/// The one-line message of reading a file of this name and content.
fn message(name: &str, content: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let error = read(&spec(&[path.to_str().unwrap()])).err().unwrap();
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message.replace(dir.path().to_str().unwrap(), "DIR")
}

#[test]
fn the_same_pairs_come_from_parquet_and_json_lines() {
    for name in ["pairs.parquet", "pairs.jsonl.gz"] {
        let spec = DataSpec {
            positive_column: Some("positive".into()),
            negative_column: Some("negative".into()),
            ..spec(&[&golden(name)])
        };
        let mut records = open(&spec).unwrap();
        let rows: Vec<Record> = records.by_ref().map(Result::unwrap).collect();
        let numbers: Vec<u64> = rows.iter().map(|row| row.source.row).collect();
        assert_eq!(numbers, [1, 2, 5, 6], "{name}");
        assert_eq!(rows[0].text, "first text");
        assert_eq!(rows[0].negatives, ["n1", "n2"]);
        assert_eq!(rows[1].text, "zweiter Text: äöü €");
        assert_eq!(rows[1].positive, None);
        assert!(rows[1].negatives.is_empty());
        assert_eq!(rows[2].negatives, ["a", "b", "c"]);
        assert_eq!(rows[3].positive.as_deref(), Some("p6"));
        assert_eq!(rows[3].text, "two\nlines");
        let stats = records.stats();
        assert_eq!((stats.num_rows, stats.num_blank), (4, 2));
    }
}

#[test]
fn parquet_lists_survive_batches_pages_and_row_groups() {
    let spec = DataSpec { negative_column: Some("negative".into()), ..spec(&[&golden("many.parquet")]) };
    let rows = read(&spec).unwrap();
    assert_eq!(rows.len(), 300);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row.text, format!("row {i}"));
        let expected: Vec<String> = (0..i % 4).map(|j| format!("{i}.{j}")).collect();
        assert_eq!(row.negatives, expected);
    }
}

#[test]
fn compressed_parquet_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet.zst");
    let bytes = fs::read(golden("pairs.parquet")).unwrap();
    fs::write(&path, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    assert_eq!(texts(&spec(&[path.to_str().unwrap()])).len(), 4);
}

#[test]
fn csv_quotes_byte_order_mark_and_line_numbers() {
    let rows = read(&spec(&[&golden("quoted.csv")])).unwrap();
    let found: Vec<_> = rows.iter().map(|r| (r.text.as_str(), r.source.row)).collect();
    assert_eq!(
        found,
        [("first text", 2), ("zweiter Text: äöü €", 3), ("quotes \" and, commas", 5), ("two\nlines", 6),]
    );
}

#[test]
fn globs_are_sorted_and_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("b.txt"), "b1\r\n\n  \nb2").unwrap();
    fs::write(at("a.txt"), "a\n").unwrap();
    fs::write(at("c[1].jsonl"), "\n{\"body\": \"c\", \"n\": 1}\n").unwrap();
    fs::copy(golden("lines.txt.zst"), at("d.txt.zst")).unwrap();
    fs::create_dir(at("e.txt")).unwrap();
    let patterns = [at("*.txt"), at("b.txt"), at("c[1].jsonl"), at("?.txt.zst")];
    let spec = spec(&patterns.each_ref().map(String::as_str));
    let expected = ["a", "b1", "b2", "c", "line 0", "line 1", "line 2", "line 3", "line 4"];
    assert_eq!(texts(&spec), expected);
    let mut records = open(&spec).unwrap();
    assert_eq!(records.files().len(), 4);
    records.advance(3).unwrap();
    let next = records.next().unwrap().unwrap();
    assert_eq!((next.text.as_str(), next.source.row), ("c", 2));
    assert_eq!(records.stats().num_blank, 2);
    let message = records.advance(99).unwrap_err().to_string();
    assert!(message.contains("expected at least 99 rows, found 5"), "{message}");
    assert_eq!(records.stats().num_blank, 3);
}

#[test]
fn paths_that_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("a.bin"), "x").unwrap();
    let open = |path: &str| open(&spec(&[path])).err().unwrap().to_string();
    assert!(open(&at("no.txt")).ends_with("no.txt: cannot open: No such file or directory (os error 2)"));
    assert!(open(&at("*.jsonl")).ends_with("*.jsonl`"));
    assert!(open(&at("[")).contains("not a valid glob"));
    assert!(open(&at("")).contains("found a directory"));
    assert!(open(&at("a.bin")).contains("a.bin: unknown format; expected .txt"));
    assert!(super::open(&spec(&[])).is_err());
}

#[test]
fn bad_files_are_named_with_their_line() {
    let binary = [b"text\0".as_slice(), &[7; 100]].concat();
    for (name, content, expected) in [
        ("a.txt", b"".as_slice(), "data: no rows with text in DIR/a.txt (0 blank)"),
        ("a.txt", b"\n \n", "data: no rows with text in DIR/a.txt (2 blank)"),
        ("a.csv", b"", "data: no rows with text in DIR/a.csv (0 blank)"),
        ("a.jsonl", b"\n", "data: no rows with text in DIR/a.jsonl (1 blank)"),
        ("a.txt", &binary, "DIR/a.txt: expected UTF-8 text, found a binary file (NUL byte at offset 4)"),
        ("a.txt", b"ok\nno \xff\n", "DIR/a.txt:2: invalid UTF-8 at byte 3 of the line or field"),
        ("a.csv", b"text\nok\nb\xe4d\n", "DIR/a.csv:3: invalid UTF-8 at byte 1 of the line or field"),
        ("a.csv", b"id,text\n1,a\n2\n", "DIR/a.csv:3: invalid CSV: expected 2 fields as in the header, found 1"),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \n",
            "DIR/a.jsonl:2: invalid JSON: EOF while parsing a value at column 9",
        ),
        ("a.jsonl", b"[1]", "DIR/a.jsonl:1: invalid JSON: expected an object, found a list of 1"),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"body\": \"b\"}\n",
            "DIR/a.jsonl:2: column `text` not found; columns found: body",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": 3}\n",
            "DIR/a.jsonl:2: field `text`: expected text, found the number 3",
        ),
        (
            "a.tsv",
            b"one\ttwo\na\tb\n",
            "DIR/a.tsv: name the text column: expected one called `text` or a single string \
             column, found one, two",
        ),
    ] {
        assert_eq!(message(name, content), expected);
    }
    for name in ["a.txt.gz", "a.jsonl.zst", "a.parquet"] {
        let found = message(name, b"not compressed at all");
        assert!(found.starts_with("DIR/a."), "{found}");
    }
}

#[test]
fn a_missing_column_lists_those_there_are() {
    for (name, found) in
        [("pairs.parquet", "id, text, positive, negative"), ("quoted.csv", "id, text"), ("lines.txt.zst", "text")]
    {
        let spec = DataSpec { column: Some("body".into()), ..spec(&[&golden(name)]) };
        let message = read(&spec).unwrap_err().to_string();
        let expected = format!("{name}:1: column `body` not found; columns found: {found}");
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn rows_beyond_the_limit_are_refused() {
    let long = vec![b'x'; MAX_ROW_BYTES + 1];
    let expected = "row longer than 16777216 bytes";
    assert_eq!(message("a.txt", &long), format!("DIR/a.txt:1: {expected}"));
    let unclosed = [b"text\nok\n\"".as_slice(), &long].concat();
    assert_eq!(message("a.csv", &unclosed), format!("DIR/a.csv:3: {expected}"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, &long[1..]).unwrap();
    assert_eq!(texts(&spec(&[path.to_str().unwrap()]))[0].len(), MAX_ROW_BYTES);
}

#[test]
fn truncated_compression_is_an_error_after_the_good_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl.gz");
    let bytes = fs::read(golden("pairs.jsonl.gz")).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    assert!(read(&spec(&[path.to_str().unwrap()])).is_err());
}

/// Any damage gives rows or an error, never a panic.
#[test]
fn damaged_parquet_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let bytes = fs::read(golden("pairs.parquet")).unwrap();
    let spec = DataSpec { negative_column: Some("negative".into()), ..spec(&[path.to_str().unwrap()]) };
    for index in (0..bytes.len()).step_by(5) {
        let mut damaged = bytes.clone();
        damaged[index] ^= 1 << (index % 8);
        fs::write(&path, &damaged).unwrap();
        let _ = read(&spec);
        if index % 25 == 0 {
            fs::write(&path, &bytes[..index]).unwrap();
            assert!(read(&spec).is_err());
        }
    }
}

#[test]
fn specifications_refuse_unknown_keys() {
    let parse = serde_json::from_str::<DataSpec>;
    assert_eq!(parse(r#"{"paths": ["a"]}"#).unwrap(), spec(&["a"]));
    assert!(parse(r#"{"paths": ["a"], "colum": "b"}"#).is_err());
}

#[test]
fn records_can_be_read_on_another_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Records>();
}

#[test]
fn sts_pairs_of_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| -> PathBuf {
        fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name)
    };
    let expected = StsPairs::load(golden("sts.parquet").as_ref()).unwrap();
    assert_eq!(expected.pairs[0].sentence1, "A cat.");
    assert_eq!(expected.pairs[0].score, 2.5);
    assert_eq!(expected.pairs[1].score, f64::from(0.2f32));
    let csv = "sentence1,x,sentence2,score\nA cat.,1,A dog.,2.5\n";
    let loaded = StsPairs::load(&write("a.csv", csv)).unwrap();
    assert_eq!(loaded.pairs[0], expected.pairs[0]);
    let row = r#"{"sentence1": "A cat.", "sentence2": "A dog.", "score": 2.5}"#;
    write("test.jsonl", row);
    let loaded = StsPairs::load_split(dir.path(), "test").unwrap();
    assert_eq!(loaded.pairs, expected.pairs[..1]);
    for (row, end) in [
        (row.replace("2.5", "\"high\""), "b.jsonl:1: field `score`: expected a finite number, found the text \"high\""),
        (row.replace("\"A dog.\"", "null"), "b.jsonl:1: field `sentence2`: expected text, found null"),
        (
            row.replace("score", "label"),
            "b.jsonl:1: column `score` not found; columns found: sentence1, sentence2, label",
        ),
        (String::new(), "b.jsonl (0 blank)"),
    ] {
        let message = StsPairs::load(&write("b.jsonl", &row)).unwrap_err().to_string();
        assert!(message.ends_with(end), "{message}");
    }
    let message = StsPairs::load_split(dir.path(), "dev").unwrap_err().to_string();
    assert!(message.contains("expected dev.jsonl.gz"), "{message}");
}

#[test]
fn classification_choices_and_raw_text() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| -> PathBuf {
        fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name)
    };
    let labelled = load_classification(&write("a.csv", b"text,label\nhi,-3\n")).unwrap();
    assert_eq!((labelled[0].label.as_str(), &labelled[0].label_text), ("-3", &None));
    let labelled = load_classification(&write("names.csv", b"text,label\nhi,alarm_set\n")).unwrap();
    assert_eq!(labelled[0].label, "alarm_set");
    let row = br#"{"text": "hi", "label": 1, "label_text": "one"}"#;
    let labelled = load_classification(&write("a.jsonl", row)).unwrap();
    assert_eq!(labelled[0].label_text.as_deref(), Some("one"));
    let row = r#"{"subject": "s", "question": "q", "choices": ["a", "b"], "answer": 1}"#;
    let choices = load_multiple_choice(&write("b.jsonl", row.as_bytes())).unwrap();
    assert_eq!((choices[0].answer, choices[0].choices[1].as_str()), (1, "b"));
    let wrong = row.replace(": 1", ": 2");
    let message = load_multiple_choice(&write("b.jsonl", wrong.as_bytes())).unwrap_err().to_string();
    let end = "b.jsonl:1: field `answer`: expected the index of a choice, counted from 0, found \
               the number 2";
    assert!(message.ends_with(end), "{message}");
    assert_eq!(load_text(&write("raw", b" = T = \n")).unwrap(), " = T = \n");
    let message = load_text(&write("raw", b"a\nb\xff")).unwrap_err().to_string();
    assert!(message.ends_with("raw:2: invalid UTF-8 at byte 1 of the line or field"));
    assert!(load_text(&write("raw", b"")).is_err());
}

/// Rows of Banking77 in Parquet, as a repository on the hub has them.
fn sharded() -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/hub/mteb/banking77/data");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    for name in ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"] {
        fs::copy(from.join(name), dir.path().join("data").join(name)).unwrap();
    }
    dir
}

#[test]
fn the_first_shard_stands_for_all_and_none_may_be_missing() {
    let dir = sharded();
    let first = tasks::split_file(dir.path(), "test").unwrap();
    assert!(first.ends_with("data/test-00000-of-00002.parquet"), "{first:?}");
    // Three labels with four rows each, in two files.
    let labels: Vec<String> = tasks::load_classification(&first).unwrap().into_iter().map(|row| row.label).collect();
    assert_eq!(labels.concat(), "000011112222");
    fs::remove_file(dir.path().join("data/test-00001-of-00002.parquet")).unwrap();
    let message = tasks::load_classification(&first).unwrap_err().to_string();
    assert!(message.contains("expected 2 shards test-00000-of-00002.parquet and so on, found 1"), "{message}");
}

#[test]
fn names_of_shards() {
    let of = |name| tasks::shard_of(name, "data/test");
    assert_eq!(of("data/test-00001-of-00002.parquet"), Some((1, 2)));
    assert_eq!(of("data/test-00000-of-00001-0123abcd.parquet"), Some((0, 1)));
    for other in [
        "data/test-00002-of-00002.parquet",
        "data/test2-00000-of-00001.parquet",
        "data/test-00000-of-00001.csv",
        "data/test--of-1.parquet",
        "data/test-0-of-1-../x.parquet",
    ] {
        assert_eq!(of(other), None, "{other}");
    }
}

#[test]
fn documents_to_be_put_in_order_hold_all_that_is_relevant() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("corpus.jsonl", "{\"id\":1,\"text\":\"one\"}\n{\"id\":2,\"text\":\"two\"}\n{\"id\":3,\"text\":\"three\"}\n");
    write(
        "queries.jsonl",
        "{\"id\":\"a\",\"text\":\"A\"}\n{\"id\":\"b\",\"text\":\"B\"}\n{\"id\":\"c\",\"text\":\"C\"}\n",
    );
    fs::create_dir(dir.path().join("qrels")).unwrap();
    write(
        "qrels/test.jsonl",
        "{\"query-id\":\"a\",\"corpus-id\":2,\"score\":1.0}\n{\"query-id\":\"b\",\"corpus-id\":3,\"score\":0}\n",
    );
    let a = "{\"query-id\":\"a\",\"corpus-ids\":[1,2,2]}\n";
    write(
        "top_ranked.jsonl",
        &format!("{a}{{\"query-id\":\"b\",\"corpus-ids\":[3]}}\n{{\"query-id\":\"c\",\"corpus-ids\":[3]}}\n"),
    );
    // Nothing is relevant for b, nothing judged for c.
    let rows = mteb::load_top_ranked(dir.path(), "test").unwrap();
    let want = mteb::RerankingQuery { query: "A".into(), positive: vec!["two".into()], negative: vec!["one".into()] };
    assert_eq!(rows, [want]);
    for (ids, reason) in [("[1,3]", "each document that is relevant"), ("[2,9]", "ids of documents")] {
        write("top_ranked.jsonl", &format!("{{\"query-id\":\"a\",\"corpus-ids\":{ids}}}\n"));
        let message = mteb::load_top_ranked(dir.path(), "test").unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
