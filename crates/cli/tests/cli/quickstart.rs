//! The quickstart from end to end on a tiny model and the repository's sample data.

use crate::{error_line, run, stdout, tiny_model};
use std::fs;
use std::path::Path;

/// More bytes than any chat or window of the sample has.
const MAX_POSITIONS: usize = 8192;

#[test]
fn the_quickstart_measures_trains_checks_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tiny_model::write_for_rows_of(&dir.join("base"), 1, MAX_POSITIONS);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let sample = sample.to_str().unwrap();
    let command =
        |rows: &'static str| ["quickstart", "--model", "base", "--sample", sample, "--out", "run", "--rows", rows];
    let told = stdout(run(dir, &command("256")));
    for method in ["mean", "weighted-mean", "last", "echo", "prompt-eol", "GEM, untrained", "GEM, trained"] {
        assert!(told.lines().any(|line| line.starts_with(&format!("{method}  "))), "{method}: {told}");
    }
    assert!(!told.contains("FAILED") && told.matches("ok  ").count() == 4, "{told}");
    assert!(told.contains("Rows trained on: 256"), "{told}");
    let html = fs::read_to_string(dir.join("run/report.html")).unwrap();
    assert!(html.contains("GEM, trained") && html.contains("data:image/png"), "the report lacks a part");
    for picture in ["sts.png", "loss.png", "similarity.png"] {
        assert!(fs::read(dir.join("run").join(picture)).unwrap().starts_with(b"\x89PNG"), "{picture}");
    }
    assert!(dir.join("run/model/metrics.jsonl").is_file());
    // Another budget in the same place is refused before anything is measured.
    let message = error_line(&run(dir, &command("512")));
    assert!(message.contains("made by another recipe"), "{message}");
    // The finished run is measured again, not trained again, and its report keeps the curves.
    let again = stdout(run(dir, &command("256")));
    let table = |told: &str| told.split("Asked:").next().unwrap().to_owned();
    assert_eq!(table(&again), table(&told));
    assert!(again.contains("Rows trained on: 256"), "{again}");
}
