//! `lapidary eval tasks --hub`: data sets in every layout give the scores of the same rows in a directory, and are fetched
//! once.

use crate::hub_server::Hub;
use crate::{error_line, lapidary, stdout, tiny_model};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hub");
/// Tasks with the repositories and revisions that `data_sets.toml` has.
const TASKS: [(&str, &str, &str); 10] = [
    ("ARC-Challenge", "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"),
    ("ARC-Easy", "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"),
    ("ArguAna", "mteb/arguana", "c22ab2a51041ffd869aaddef7af8d8215647e41a"),
    ("Banking77Classification", "mteb/banking77", "0fd18e25b25c072e09e0d92ab615fda904d66300"),
    ("HellaSwag", "Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
    ("LAMBADA", "EleutherAI/lambada_openai", "879e19a2c9bb7ef03f9cf962089cf7d008f91e27"),
    ("STS17", "mteb/sts17-crosslingual-sts", "faeb762787bd10488a50c8b5be4a3b82e411949c"),
    ("SciDocsRR", "mteb/SciDocsRR", "39b8377811871075eed9de3b8a7e21aaa6acb3d8"),
    ("SciFact", "mteb/scifact", "d56462d0e63a25450459c4f213e49ffdb866f7f9"),
    ("WikiText2", "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3"),
];

/// The tiny model's tokens are bytes, so that it has no ` A` to answer with.
const MMLU: (&str, &str, &str) = ("MMLU", "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe");

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

/// The fixture on a hub, without the files whose names hold `lacking`.
fn hub(lacking: &str) -> Hub {
    let mut hub = Hub::default();
    for (_, repository, revision) in TASKS.into_iter().chain([MMLU]) {
        let dir = Path::new(FIXTURE).join(repository);
        let files = files_below(&dir);
        let names: Vec<&str> = files.iter().map(|file| file.strip_prefix(&dir).unwrap().to_str().unwrap()).collect();
        let names: Vec<&str> = names.into_iter().filter(|name| !name.contains(lacking)).collect();
        for name in &names {
            let path = format!("/datasets/{repository}/resolve/{revision}/{name}");
            hub.files.insert(path, fs::read(dir.join(name)).unwrap());
        }
        hub.info(&format!("/api/datasets/{repository}/revision/{revision}"), &names);
    }
    hub
}

fn evaluate(dir: &Path, endpoint: &str, args: &[&str]) -> Output {
    let plain = lapidary(dir);
    let mut online = std::process::Command::new(plain.get_program());
    online.current_dir(dir).env("LAPIDARY_CACHE", dir.join("cache")).env("HF_HUB_CACHE", dir.join("hub"));
    online
        .env("HF_ENDPOINT", endpoint)
        .args(["eval", "tasks"])
        .args(args)
        .args(["--model", "base", "--method", "mean"]);
    online.output().unwrap()
}

/// The results by task.
fn results(dir: &Path) -> BTreeMap<String, Value> {
    let files = files_below(dir).into_iter().filter(|file| !file.ends_with("model_meta.json"));
    let read = |file: PathBuf| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap())
    };
    files.map(read).collect()
}

#[test]
fn every_layout_gives_the_scores_of_the_same_rows_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    let names = TASKS.map(|(name, ..)| name);
    let tasks = [&["--tasks"], &names[..]].concat();
    let endpoint = hub("nothing of that name").serve();
    stdout(evaluate(dir, &endpoint, &[&["--hub", "--results", "far"], &tasks[..]].concat()));
    let local = format!("{FIXTURE}/local");
    stdout(evaluate(dir, "http://127.0.0.1:9", &[&[local.as_str(), "--results", "near"], &tasks[..]].concat()));
    let (far, near) = (results(&dir.join("far")), results(&dir.join("near")));
    assert_eq!(far.keys().collect::<Vec<_>>(), names);
    for (name, _, revision) in TASKS {
        for part in ["scores", "num_scored", "results", "n-samples"] {
            assert_eq!(far[name][part], near[name][part], "{name}");
        }
        assert_eq!(
            (&far[name]["dataset_revision"], &near[name]["dataset_revision"]),
            (&revision.into(), &"local".into())
        );
    }
    // It is asked, which is after both its tables were read.
    let error = error_line(&evaluate(dir, &endpoint, &["--hub", "--tasks", MMLU.0]));
    assert!(error.contains("answer letter \" A\""), "{error}");
    // A second time nothing is fetched.
    let unreachable = "http://127.0.0.1:9";
    stdout(evaluate(dir, unreachable, &["--hub", "--offline", "--results", "again", "--tasks", "STS17", "SciDocsRR"]));
    // What a directory has is taken from there.
    fs::remove_dir_all(dir.join("cache")).unwrap();
    fs::remove_dir_all(dir.join("hub")).unwrap();
    stdout(evaluate(dir, unreachable, &[&[local.as_str(), "--hub", "--results", "both"], &tasks[..]].concat()));
    assert!(!dir.join("cache").exists() && !dir.join("hub").exists());
}

#[test]
fn what_is_not_on_the_hub_is_told_and_the_rest_is_scored() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write(&dir.join("base"), 1);
    let endpoint = hub("test-00001").serve();
    let output = evaluate(dir, &endpoint, &["--hub", "--tasks", "Banking77Classification", "STS17", "NFCorpus", "Toy"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("STS17"), "{output:?}");
    let error = error_line(&output);
    for told in [
        "3 of 4 tasks failed",
        "Banking77Classification: data set mteb/banking77 at 0fd18e25b25c072e09e0d92ab615fda904d66300: expected the table test \
         as one of default/test, ",
        "NFCorpus: data set mteb/nfcorpus at ec0fa4fe99da2ff19ca1214b7966684033a58814: nothing of that name",
        "Toy: no data set on the hub is known for it",
    ] {
        assert!(error.contains(told), "{told}\n{error}");
    }
    // A file that its repository lists and does not have.
    let mut torn = hub("nothing of that name");
    torn.files.retain(|name, _| !name.ends_with("qrels/test.tsv"));
    let error = error_line(&evaluate(dir, &torn.serve(), &["--hub", "--tasks", "SciFact"]));
    assert!(
        error.contains("data set mteb/scifact") && error.contains("qrels/test.tsv: nothing of that name"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.join("cache/tasks/SciFact")).unwrap().count(), 0, "half a data set was left");
    let error = error_line(&evaluate(dir, &endpoint, &["--hub"]));
    assert!(error.contains("expected --tasks or --set-of-tasks"), "{error}");
    assert_eq!(evaluate(dir, &endpoint, &["--tasks", "STS17"]).status.code(), Some(2));
}
