//! Runs side by side: the scores that the mteb package reads from its own files, means by hand, and no difference hidden.

use lapidary::report::comparison::{Comparison, Order, compare};
use lapidary::report::html::{Block, Cell, Figure, Page, Section, Table, render};
use lapidary::report::markdown;
use lapidary::report::results::{Run, TaskResult, read_runs};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report")
}

fn result(task: &str, value: f64) -> TaskResult {
    TaskResult {
        task: task.into(),
        is_embedding: true,
        metric: "main_score".into(),
        value,
        limit: 0,
        num_scored: Some(10),
        data_fingerprint: Some("abc".into()),
        dataset_revision: None,
        mteb_version: None,
        split: "test".into(),
        chosen_subsets: None,
    }
}

fn language(task: &str, metric: &str, value: f64) -> TaskResult {
    TaskResult { is_embedding: false, metric: metric.into(), ..result(task, value) }
}

fn run(name: &str, results: Vec<TaskResult>) -> Run {
    Run { name: name.into(), revision: format!("{name}-revision"), meta: Map::new(), results }
}

/// The numbers of a mean with their count.
fn mean(comparison: &Comparison, kind: usize) -> (usize, Vec<Option<f64>>) {
    let mean = comparison.means[kind].clone().unwrap();
    (mean.num_tasks, mean.values)
}

fn texts(cells: &[Cell]) -> Vec<String> {
    cells.iter().map(|cell| format!("{}{}", cell.text, if cell.best { "*" } else { "" })).collect()
}

#[test]
fn files_of_the_mteb_package_give_the_scores_that_it_reads() {
    let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let revision = "org__published/0123456789abcdef0123456789abcdef01234567";
    for named in ["results", "results/org__published", &format!("results/{revision}")] {
        let found = read_runs(&[golden().join(named), golden().join("results")]);
        assert!(found.unreadable.is_empty() && found.runs.len() == 1, "{found:?}");
        let run = &found.runs[0];
        assert_eq!((run.name.as_str(), run.meta["embed_dim"].as_u64()), ("org/published", Some(384)));
        let scores = expected["main_scores"].as_object().unwrap();
        assert_eq!(run.results.len(), scores.len());
        for result in &run.results {
            let want = 100.0 * scores[&result.task].as_f64().unwrap();
            // The files have six decimals of a share.
            assert!((result.value - want).abs() < 1e-9, "{}: {} {want}", result.task, result.value);
            assert_eq!(result.mteb_version.as_deref(), expected["mteb_version"].as_str());
            assert!(result.dataset_revision.is_some() && result.split == "test");
        }
    }
}

/// The figures as the file has them, which the harness wrote.
#[test]
fn files_of_lm_evaluation_harness_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report_lm_eval");
    let found = read_runs(std::slice::from_ref(&folder));
    assert!(found.unreadable.is_empty() && found.runs.len() == 1, "{found:?}");
    let (run, file) = (&found.runs[0], folder.join("org__published/results_2026-11-26T00-00-00.000000.json"));
    assert_eq!(run.name, "org/published");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let want = [
        ("ARC-Easy", "arc_easy", "acc_norm", 40),
        ("LAMBADA", "lambada_openai", "acc", 30),
        // Ours has five examples before a question.
        ("mmlu, 0-shot", "mmlu", "acc", 70),
    ];
    assert_eq!(run.results.len(), want.len(), "the parts of a group are in the group");
    for ((name, task, metric, num_scored), result) in want.into_iter().zip(&run.results) {
        let value = 100.0 * stored["results"][task][format!("{metric},none")].as_f64().unwrap();
        let found = (result.task.as_str(), result.metric.as_str(), result.value, result.limit);
        assert_eq!(found, (name, metric, value, 40));
        assert_eq!((result.num_scored, result.is_embedding), (Some(num_scored), false));
    }
}

#[test]
fn the_mean_is_over_the_tasks_of_all() {
    let runs = vec![
        run("a", vec![result("One", 50.0), result("Two", 60.0), result("Three", 99.0)]),
        run("b", vec![result("One", 70.0), result("Two", 41.0)]),
        run("talk", vec![language("Arc", "acc", 25.0), language("Wiki", "perplexity", 12.0)]),
    ];
    let comparison = compare(runs, &[], Order::Mean);
    // By hand: (70 + 41) / 2 = 55.5 over (50 + 60) / 2 = 55; Three is of one model alone.
    assert_eq!(comparison.models, ["b", "a", "talk"]);
    assert_eq!(mean(&comparison, 0), (2, vec![Some(55.5), Some(55.0), None]));
    assert_eq!(mean(&comparison, 1), (1, vec![None, None, Some(25.0)]));
    assert!(comparison.notes[0].starts_with("The mean is over the 2 of 3 embedding tasks"), "{:?}", comparison.notes);
    assert!(comparison.notes[0].contains("Left out: Three (not of b)"), "{:?}", comparison.notes);
    let table = comparison.table();
    let titles = ["model", "mean of 2 embedding tasks", "One", "Three", "Two", "Arc, acc"];
    assert_eq!(table.columns[..6], titles);
    assert_eq!(table.columns[6], "Wiki, perplexity (lower is better)");
    assert_eq!(table.groups, [(String::new(), 1), ("embedding tasks".into(), 4), ("language tasks".into(), 2)]);
    assert_eq!(texts(&table.rows[0]), ["b", "55.50*", "70.00*", "–", "41.00", "–", "–"]);
    assert_eq!(texts(&table.rows[1]), ["a", "55.00", "50.00", "99.00", "60.00*", "–", "–"]);
    assert_eq!(compare(comparison.runs, &["Two".into()], Order::Name).models, ["a", "b"]);
}

#[test]
fn the_best_of_a_perplexity_is_the_lowest_and_of_equals_there_is_none() {
    let of = |name, perplexity| run(name, vec![language("W", "perplexity", perplexity), language("A", "acc", 30.0)]);
    let table = compare(vec![of("a", 20.0), of("b", 19.5)], &[], Order::Name).table();
    assert_eq!(texts(&table.rows[0]), ["a", "30.00", "20.00"]);
    assert_eq!(texts(&table.rows[1]), ["b", "30.00", "19.50*"]);
}

#[test]
fn other_data_are_told_and_in_no_mean() {
    type Change = fn(&mut TaskResult);
    let changes: [(&str, Change); 4] = [
        ("data_fingerprint", |result| result.data_fingerprint = Some("xyz".into())),
        ("num_scored", |result| result.num_scored = Some(9)),
        ("split", |result| result.split = "dev".into()),
        ("dataset_revision", |result| result.dataset_revision = Some("c0ffee".into())),
    ];
    for (field, change) in changes {
        let all = || ["One", "Two", "Three"].map(|task| result(task, 50.0)).to_vec();
        let (mut first, mut second) = (all(), all());
        first[0].dataset_revision = Some("decaf".into());
        change(&mut second[0]);
        if field == "num_scored" {
            // The same data may be scored on other texts: the number tells of other data where nothing else does.
            (first[0].data_fingerprint, second[0].data_fingerprint) = (None, None);
        }
        second[0].value = 90.0;
        let comparison = compare(vec![run("a", first), run("b", second)], &[], Order::Name);
        assert_eq!(mean(&comparison, 0), (2, vec![Some(50.0), Some(50.0)]), "{field}");
        let told = comparison.notes.iter().find(|note| note.starts_with("One †: measured on different data"));
        assert!(told.is_some_and(|note| note.contains(field)), "{:?}", comparison.notes);
        let table = comparison.table();
        assert_eq!(table.columns[2], "One †");
        assert!(table.rows.iter().flatten().all(|cell| !cell.best), "{table:?}");
    }
}

#[test]
fn limits_and_settings_are_told_and_namesakes_told_apart() {
    let limited = |limit, value| TaskResult { limit, ..language("Arc", "acc", value) };
    let mut runs = vec![
        run("lapidary/m", vec![limited(0, 30.0), limited(20, 35.0)]),
        run("lapidary/m", vec![limited(20, 25.0)]),
        run("m2", vec![TaskResult { data_fingerprint: None, ..limited(20, 20.0) }]),
    ];
    runs[0].meta = json!({"max_tokens": 512}).as_object().unwrap().clone();
    runs[1].meta = json!({"max_tokens": 64}).as_object().unwrap().clone();
    let comparison = compare(runs, &[], Order::Name);
    assert_eq!(comparison.models, ["m (512 tokens)", "m (64 tokens)", "m2"]);
    let titles: Vec<&str> = comparison.columns.iter().map(|column| column.title.as_str()).collect();
    assert_eq!(titles, ["Arc, acc", "Arc, acc, limit 20"]);
    assert_eq!(comparison.columns[0].values, [Some(30.0), None, None]);
    let notes = comparison.notes.join("\n");
    for told in [
        "Arc: asked with different limits",
        "Longest text, in tokens: 512 (m (512 tokens)); 64 (m (64 tokens)).",
        "No hash of the data is in results of m2",
        "Left out: Arc, acc (of m (512 tokens) alone)",
    ] {
        assert!(notes.contains(told), "{told}: {notes}");
    }
    let mut instructed = [run("i", vec![result("T", 1.0)]), run("i", vec![result("T", 2.0)])];
    for (run, value) in instructed.iter_mut().zip([false, true]) {
        run.meta = json!({"instructions": value}).as_object().unwrap().clone();
    }
    let instructed = compare(instructed.to_vec(), &[], Order::Name);
    assert_eq!(instructed.models, ["i", "i (instructions)"]);
    assert!(instructed.notes.contains(&"Instructions before texts: false (i); true (i (instructions)).".to_owned()));
    let same = compare(vec![run("x", vec![result("T", 1.0)]), run("x", vec![result("T", 2.0)])], &[], Order::Mean);
    assert_eq!(same.models, ["x (x-revisi) #2", "x (x-revisi)"]);
}

#[test]
fn the_page_has_the_costs_and_pictures_and_more_models_than_a_picture_shows() {
    let mut trained = run("trained", vec![result("T", 80.0)]);
    trained.meta =
        json!({"embed_dim": 576, "training": {"cpu_secs": 1234.6, "train_secs": 700}}).as_object().unwrap().clone();
    let mut runs = vec![run("plain", vec![result("T", 70.0)]), trained];
    let comparison = compare(runs.clone(), &[], Order::Mean);
    let table = comparison.table();
    assert_eq!(table.columns, ["model", "T", "dimensions", "training CPU seconds", "training seconds"]);
    assert_eq!(texts(&table.rows[0]), ["trained", "80.00*", "576", "1,235", "700"]);
    assert_eq!(texts(&table.rows[1]), ["plain", "70.00", "–", "–", "–"]);
    let page = comparison.page("Title", "", &["a.json: torn".into()]).unwrap();
    let html = render(&page).unwrap();
    assert_eq!(html.matches("<img src=\"data:image/png;base64,").count(), 2);
    assert!(html.contains("a.json: torn") && html.contains("alt=\"Bars of the mean score: trained 80.0"), "{html}");
    runs.extend((0..60).map(|at| run(&format!("m{at}"), vec![result("T", 1.0)])));
    let page = compare(runs, &[], Order::Name).page("t", "", &[]).unwrap();
    assert!(render(&page).unwrap().contains("A picture is missing"), "{page:?}");
}

#[test]
fn markdown_has_the_table_and_links_and_no_foreign_markup() {
    let hostile = "a|b *c* <i> [d](e)";
    let png = compare(vec![run("x", vec![result("T", 1.0)])], &[], Order::Name).page("t", "", &[]).unwrap();
    let Block::Figure(Figure { png, .. }) = png.sections[1].blocks[0].clone() else { panic!("expected a figure") };
    let table = Table {
        columns: vec![hostile.into(), "n".into()],
        rows: vec![vec![Cell::new("x"), Cell::new("1.5").best()]],
        ..Table::default()
    };
    let figure = Figure { png: png.clone(), caption: String::new(), alternative: "what it shows".into() };
    let blocks = vec![Block::Table(table), Block::Figure(figure)];
    let page =
        Page { title: hostile.into(), sections: vec![Section { heading: "H".into(), blocks }], ..Page::default() };
    let found = markdown::render(&page, "my report").unwrap();
    let escaped = r"a\|b \*c\* \<i\> \[d\](e)";
    let want = format!(
        "# {escaped}\n\n## H\n\n| {escaped} | n |\n| --- | ---: |\n| x | **1.5** |\n\n![what it shows](my%20report-1.png)\n"
    );
    assert_eq!(found.text, want);
    assert_eq!(found.pictures, [("my report-1.png".to_owned(), png)]);
}
