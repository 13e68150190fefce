//! `lapidary report`: our results beside those of the mteb package, costs with them, and bad input told.

use crate::{error_line, eval, run, stdout, train};
use std::fs;
use std::path::Path;

/// Results that the mteb package wrote.
const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lapidary/tests/golden/report/results");

/// Two models on two small tasks, one of them trained.
fn measured(dir: &Path) {
    let tasks = ["STS17", "Order"];
    eval::tasks(&dir.join("data"));
    stdout(run(dir, &["train", "recipe.toml", "--out", "run", "--set", "validation.every_steps=0"]));
    let models = [&["--model", "base", "--method", "mean"][..], &["--model", "run/model", "--name", "org/gem"]];
    for model in models {
        stdout(run(dir, &[&["eval", "tasks", "data", "--tasks"], &tasks[..], model].concat()));
    }
}

#[test]
fn runs_are_shown_side_by_side_in_every_form() {
    let dir = train::workshop();
    let dir = dir.path();
    measured(dir);
    fs::write(dir.join("results/org__gem/notes.json"), "{").unwrap();
    let args = ["report", "results", PUBLISHED, "--out", "docs/", "--out", "one.html", "--title", "What <we> found"];
    let output = run(dir, &args);
    let notes = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(notes.contains("not read: results/org__gem/notes.json: no JSON"), "{notes}");
    assert!(notes.contains("One embedding task has comparable results of all 3 models: STS17."), "{notes}");
    assert!(notes.contains("No hash of the data is in results of org/published"), "{notes}");
    let table = stdout(output);
    // The score that the mteb package reads from its file, and no mean of one task.
    let published = table.lines().find(|line| line.starts_with("org/published")).unwrap();
    assert!(published.contains("81.25") && !table.contains("mean of"), "{table}");
    let head = table.lines().next().unwrap();
    assert!(head.contains("training CPU seconds") && head.contains("parameters, millions"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("base-mean")), "{table}");
    let html = fs::read_to_string(dir.join("one.html")).unwrap();
    assert_eq!(html, fs::read_to_string(dir.join("docs/report.html")).unwrap());
    assert!(html.contains("What &lt;we&gt; found") && html.contains("notes.json: no JSON") && html.contains("81.25"));
    let markdown = fs::read_to_string(dir.join("docs/report.md")).unwrap();
    for picture in ["report-1.png", "report-2.png"] {
        assert!(markdown.contains(&format!("]({picture})")), "{markdown}");
        assert!(fs::read(dir.join("docs").join(picture)).unwrap().starts_with(b"\x89PNG"));
    }
    // Two models have two tasks in common.
    let two = stdout(run(dir, &["report", "results/lapidary__base-mean", "results/org__gem", "--sort", "name"]));
    let names: Vec<&str> = two.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["base-mean", "org/gem"]);
    assert!(two.contains("mean of 2 embedding tasks"), "{two}");
    let one = stdout(run(dir, &["report", "results", "--tasks", "Order"]));
    assert!(one.contains("Order") && !one.contains("STS17"), "{one}");
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("results/m/r")).unwrap();
    let none = error_line(&run(dir, &["report", "results"]));
    assert!(none.contains("results: expected results as RESULTS/MODEL/REVISION/TASK.json, found none"), "{none}");
    fs::write(dir.join("results/m/r/T.json"), "{\"scores\": {}}").unwrap();
    let none = error_line(&run(dir, &["report", "results", "gone"]));
    assert!(none.contains("results/m/r/T.json: expected `task_name`") && none.contains("gone: "), "{none}");
    let task = error_line(&run(dir, &["report", PUBLISHED, "--tasks", "SICK-R"]));
    assert!(task.contains("--tasks: no result of SICK-R"), "{task}");
    let name = error_line(&run(dir, &["report", PUBLISHED, "--out", "report.pdf"]));
    assert!(name.contains("expected a name that ends in .html or .md"), "{name}");
}
