//! `lapidary eval tasks`: every kind of task on a tiny model, results kept, found again and never mixed.

use crate::{error_line, run, stdout, tiny_model};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn lines(path: PathBuf, rows: &[Value]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(path, text).unwrap();
}

/// One small task of each kind.
pub(crate) fn tasks(dir: &Path) {
    let pair =
        |i: u32| json!({"sentence1": format!("{i} is one"), "sentence2": format!("{} is two", i % 3), "score": i});
    lines(dir.join("STS17/test.jsonl"), &(0..5).map(pair).collect::<Vec<_>>());
    let labelled = |i: u32| json!({"text": format!("word {i}"), "label": i % 2});
    for split in ["train", "test"] {
        lines(dir.join(format!("Toy/{split}.jsonl")), &(0..8).map(labelled).collect::<Vec<_>>());
    }
    let sentences: Vec<String> = (0..9).map(|i| format!("sentence {i}")).collect();
    lines(dir.join("Groups/test.jsonl"), &[json!({"sentences": sentences, "labels": [0, 1, 2, 0, 1, 2, 0, 1, 2]})]);
    let document = |i: u32| json!({"_id": format!("d{i}"), "title": "", "text": format!("document {i}")});
    lines(dir.join("SciFact/corpus.jsonl"), &(0..6).map(document).collect::<Vec<_>>());
    lines(dir.join("SciFact/queries.jsonl"), &[json!({"_id": "q", "text": "document 2"})]);
    fs::create_dir(dir.join("SciFact/qrels")).unwrap();
    fs::write(dir.join("SciFact/qrels/test.tsv"), "query-id\tcorpus-id\tscore\nq\td2\t1\n").unwrap();
    let row = json!({"query": "one", "positive": ["one"], "negative": ["quite another", "more"]});
    lines(dir.join("Order/test.jsonl"), &[row]);
    let row = json!({"sentence1": ["x", "y"], "sentence2": ["x", "other words"], "labels": [1, 0]});
    lines(dir.join("Pairs/test.jsonl"), &[row]);
    let key =
        json!({"question": "Which?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"});
    lines(dir.join("Arc/test.jsonl"), &[key]);
    let ending = json!({"activity_label": "A", "ctx_a": "It", "ctx_b": "is", "endings": ["so", "not"], "label": "1"});
    lines(dir.join("Endings/validation.jsonl"), &[ending]);
    let summaries = json!({"human_summaries": ["good"], "machine_summaries": ["good", "bad"], "relevance": [2.5, 1]});
    lines(dir.join("Summaries/test.jsonl"), &[summaries]);
    lines(dir.join("Last/test.jsonl"), &[json!({"text": "the last word"}), json!({"text": "another last word"})]);
    fs::create_dir(dir.join("Wiki")).unwrap();
    fs::write(dir.join("Wiki/wiki.test.raw"), "some text to be read\n".repeat(20)).unwrap();
    fs::create_dir(dir.join("no-task")).unwrap();
}

#[test]
fn every_kind_of_task_is_scored_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    tasks(&dir.join("data"));
    let args = ["eval", "tasks", "data", "--model", "base", "--method", "mean"];
    let first = stdout(run(dir, &args));
    let found: Vec<(&str, &str)> = (first.lines().skip(1))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|words| (words[0], words[1]))
        .collect();
    let want = [
        ("Arc", "acc_norm"),
        ("Endings", "acc_norm"),
        ("Groups", "v_measure"),
        ("Last", "acc"),
        ("Order", "map_at_1000"),
        ("Pairs", "max_ap"),
        ("STS17", "cosine_spearman"),
        ("SciFact", "ndcg_at_10"),
        ("Summaries", "cosine_spearman"),
        ("Toy", "accuracy"),
        ("Wiki", "perplexity"),
        ("mean", "of"),
    ];
    assert_eq!(found, want, "{first}");
    // The query is the document, word for word; so are a pair's sentences and a query's positive.
    for name in ["SciFact", "Order", "Pairs", "Summaries"] {
        assert!(first.lines().any(|line| line.starts_with(name) && line.contains("100.00")), "{first}");
    }
    let revisions: Vec<_> = fs::read_dir(dir.join("results/lapidary__base-mean")).unwrap().collect();
    let revision = revisions[0].as_ref().unwrap().path();
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(revision.join("STS17.json")).unwrap()).unwrap();
    assert_eq!(kept["task_name"], "STS17");
    assert_eq!(kept["scores"]["test"][0]["main_score"], kept["scores"]["test"][0]["cosine_spearman"]);
    // A result that is there is not measured again.
    for field in ["main_score", "cosine_spearman"] {
        kept["scores"]["test"][0][field] = json!(0.1234);
    }
    fs::write(revision.join("STS17.json"), kept.to_string()).unwrap();
    assert!(stdout(run(dir, &args)).contains("12.34"));
    // Under another option it is another result.
    let other = stdout(run(dir, &[&args[..], &["--max-tokens", "2", "--tasks", "STS17"]].concat()));
    assert!(!other.contains("12.34") && other.contains("texts cut"), "{other}");
    // So it is with instructions: of retrieval, before the queries alone, so that the same text is no longer the same.
    let instructed = [&args[..], &["--instructions", "--tasks", "STS17", "SciFact", "Groups"]].concat();
    let found = stdout(run(dir, &instructed));
    assert!(!found.contains("12.34"), "{found}");
    let meta = |revision: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(revision.join("model_meta.json")).unwrap()).unwrap()
    };
    let revisions = fs::read_dir(dir.join("results/lapidary__base-mean")).unwrap();
    let revision = revisions.map(|dir| dir.unwrap().path()).find(|dir| meta(dir)["instructions"] == true).unwrap();
    let of = |task: &str| -> Value {
        let text = fs::read_to_string(revision.join(format!("{task}.json"))).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["instruction"].clone()
    };
    assert_eq!(of("STS17"), "Retrieve semantically similar text");
    assert_eq!(of("SciFact"), "Given a scientific claim, retrieve documents that support or refute the claim");
    assert_eq!(of("Groups"), Value::Null);
    let limited = stdout(run(dir, &[&args[..], &["--limit", "1", "--tasks", "Last"]].concat()));
    assert!(limited.contains("of 1"), "{limited}");
    let few = run(dir, &[&args[..], &["--set-of-tasks", "gem-15"]].concat());
    let notes = String::from_utf8(few.stderr.clone()).unwrap();
    assert!(notes.contains("not in data: ArguAna, NFCorpus, StackOverflowDupQuestions"), "{notes}");
    assert!(stdout(few).contains("mean of 2 of 15 embedding tasks"));
    // Other data are another result, and one task that fails does not keep the others from being told.
    lines(dir.join("data/Last/test.jsonl"), &[json!({"text": "something else"})]);
    let output = run(dir, &args);
    assert!(error_line(&output).contains("Last.json: measured on other data"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("STS17"));
    assert!(error_line(&run(dir, &[&args[..], &["--tasks", "None"]].concat())).contains("no task None"));
    assert!(error_line(&run(dir, &["eval", "tasks", "base"])).contains("expected a directory for each task"));
}
