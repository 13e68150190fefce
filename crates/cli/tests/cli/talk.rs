//! Commands that write text: their results, that a seed fixes them, and their mistakes.

use crate::{error_line, run, run_with_input, stdout, tiny_model};
use std::fs;
use std::path::Path;

/// A directory with a base model.
fn workshop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_model::write(&dir.path().join("base"), 1);
    dir
}

fn train_a_step(dir: &Path) {
    fs::write(dir.join("texts.txt"), "one text\nanother text\n").unwrap();
    let recipe = "model = 'base'\n[method]\nname = 'gem'\nsettings = { num_special_tokens = 2 }\n\
                  [data]\npaths = ['texts.txt']\n[budget]\nrows = 2\nbatch_rows = 2\n[lora]\nr = 2\n";
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
    stdout(run(dir, &["train", "recipe.toml", "--out", "run"]));
}

#[test]
fn chat_and_generate_write_what_a_seed_fixes() {
    let dir = workshop();
    let dir = dir.path();
    for command in [["chat", "Hello"], ["generate", "Once upon"]] {
        let call = |more: &[&str]| {
            let fixed = ["--model", "base", "--max-new-tokens", "12"];
            run(dir, &[&command[..], &fixed, more].concat()).stdout
        };
        let greedy = call(&["--temperature", "0"]);
        assert!(greedy.ends_with(b"\n"), "{command:?}");
        assert_eq!(greedy, call(&["--temperature", "0", "--seed", "7"]), "{command:?}");
        let drawn = |seed: &str| call(&["--temperature", "1.5", "--top-k", "0", "--seed", seed]);
        assert_eq!(drawn("1"), drawn("1"), "{command:?}");
        assert_ne!(drawn("1"), drawn("2"), "{command:?}");
    }
    // A conversation's message may come from a pipe; the template asked for the date and got it.
    let piped = run_with_input(dir, &["chat", "--model", "base", "--max-new-tokens", "3", "--verbose"], b"Hello");
    let stderr = String::from_utf8(piped.stderr.clone()).unwrap();
    assert!(stderr.contains("reply: 3 tokens"), "{stderr}");
    let message = error_line(&run(dir, &["chat", "--model", "base", ""]));
    assert!(message.contains("expected a message"), "{message}");
    let message = error_line(&run(dir, &["generate", "--model", "base", "x", "--top-p", "2"]));
    assert!(message.contains("top_p"), "{message}");
}

#[test]
fn a_gem_reconstructs_and_a_base_model_cannot() {
    let dir = workshop();
    let dir = dir.path();
    train_a_step(dir);
    let line = stdout(run(dir, &["reconstruct", "--model", "run/model", "--json", "one text"]));
    let found: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(found["text"], "one text");
    assert_eq!((found["num_text_tokens"].as_u64(), found["num_special_tokens"].as_u64()), (Some(8), Some(2)));
    // two special tokens, two layers, keys and values of one head of eight f32
    assert_eq!(found["num_kv_bytes"].as_u64(), Some(2 * 2 * 2 * 8 * 4));
    assert!((0.0..=1.0).contains(&found["recovered"].as_f64().unwrap()));
    let message = error_line(&run(dir, &["reconstruct", "--model", "base", "one text"]));
    assert!(message.contains("special tokens"), "{message}");
    // Chat and perplexity through the GEM are those of its base model.
    let reply = |model: &str| stdout(run(dir, &["chat", "--model", model, "Hi", "--max-new-tokens", "9"]));
    assert_eq!(reply("run/model"), reply("base"));
    let table = stdout(run(dir, &["eval", "perplexity", "texts.txt", "--model", "run/model", "--window", "16"]));
    let figures: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    assert!(figures.len() == 2 && figures[0] == figures[1], "{table}");
}

#[test]
fn inspect_draws_rows_and_describes_models() {
    let dir = workshop();
    let dir = dir.path();
    let set = ["--set", "num_special_tokens=2"];
    let drawn = ["inspect", "mask", "--method", "gem", "--text", "abc", "--model", "base"];
    let picture = stdout(run(dir, &[&drawn[..], &set].concat()));
    assert!(picture.contains("###"), "{picture}");
    let trained = stdout(run(dir, &[&drawn[..], &set, &["--train"]].concat()));
    assert!(trained.lines().count() > picture.lines().count(), "{trained}");
    let described = stdout(run(dir, &["inspect", "model", "base"]));
    assert!(described.contains("hidden_size") && described.contains("16"), "{described}");
}

#[test]
fn sts_is_scored_raw_and_standardised() {
    let dir = workshop();
    let dir = dir.path();
    let rows: String = (0..12).map(|i| format!("text number {i},text {},{}\n", i * i, i % 5)).collect();
    fs::write(dir.join("sts.csv"), format!("sentence1,sentence2,score\n{rows}")).unwrap();
    fs::write(dir.join("texts.txt"), "one text\nanother text\na third\n").unwrap();
    let eval = ["eval", "sts", "sts.csv", "--model", "base", "--method", "mean"];
    let table = stdout(run(dir, &[&eval[..], &["--standardise-on", "texts.txt"]].concat()));
    let cells: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[..2], ["sts.csv", "12"]);
    assert!(cells[2..].iter().all(|cell| cell.parse::<f64>().unwrap().abs() <= 100.0), "{table}");
}

#[test]
fn a_file_of_texts_is_replied_to_and_gone_on_with() {
    let dir = workshop();
    fs::write(dir.path().join("queries.txt"), "Name a river.\nName a city.\nName a king.\n").unwrap();
    let chat = |limit: &str, input: &str| {
        let fixed = ["chat", "--model", "base", "--output", "pairs.jsonl", "--max-new-tokens", "3"];
        run(dir.path(), &[&fixed[..], &["--input", input, "--limit", limit]].concat())
    };
    let pairs = || -> Vec<(String, String)> {
        let text = fs::read_to_string(dir.path().join("pairs.jsonl")).unwrap();
        let pair = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            (row["text"].as_str().unwrap().to_owned(), row["positive"].as_str().unwrap().to_owned())
        };
        text.lines().map(pair).collect()
    };
    stdout(chat("2", "queries.txt"));
    let first = pairs();
    assert_eq!(first.iter().map(|pair| pair.0.as_str()).collect::<Vec<_>>(), ["Name a river.", "Name a city."]);
    assert!(first.iter().all(|pair| !pair.1.is_empty()));
    // Cut in the middle of a line, as by a kill: the whole lines stay, the rest is made.
    let path = dir.path().join("pairs.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 5]).unwrap();
    stdout(chat("0", "queries.txt"));
    let all = pairs();
    assert_eq!((&all[..2], all.len()), (&first[..], 3));
    fs::write(dir.path().join("others.txt"), "Name a sea.\n").unwrap();
    assert!(error_line(&chat("0", "others.txt")).contains("pairs.jsonl:1: expected a reply to text 1"));
}
