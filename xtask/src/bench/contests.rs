//! What is compared.

use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Programs that do the same work.
pub(super) struct Contest {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// What is counted, e.g. `rows`.
    pub(super) items: &'static str,
    /// Ours first.
    pub(super) sides: Vec<Side>,
}

#[derive(Clone)]
pub(super) struct Side {
    pub(super) name: String,
    pub(super) program: Program,
    /// As `crates/lapidary/examples/workload/` has it.
    pub(super) job: Value,
}

#[derive(Clone)]
pub(super) enum Program {
    Ours,
    Peer(&'static str),
}

/// The job with more in it.
fn with(job: &Value, more: Value) -> Value {
    let mut job = job.clone();
    for (key, value) in more.as_object().into_iter().flatten() {
        job[key] = value.clone();
    }
    job
}

fn ours(name: &str, job: &Value, more: Value) -> Side {
    Side { name: format!("lapidary, {name}"), program: Program::Ours, job: with(job, more) }
}

fn peer(peer: &'static str, name: &str, job: &Value, more: Value) -> Side {
    Side { name: format!("{peer}{name}"), program: Program::Peer(peer), job: with(job, more) }
}

/// All contests; their texts are written into `work`.
///
/// # Errors
/// When the sample data cannot be read, or `work` not written.
pub(super) fn contests(work: &Path, root: &Path) -> Result<Vec<Contest>, String> {
    let (sentences, paragraphs) = texts(work, root)?;
    let mut all = training();
    all.extend(embedding(&sentences, &paragraphs));
    all.extend(generation(&paragraphs));
    Ok(all)
}

fn training() -> Vec<Contest> {
    let mut all = Vec::new();
    for (name, what, scope, full, tokens) in [
        (
            "train-special-32",
            "A contrastive training step, 32 rows of 32 tokens, k = 6, LoRA, scope `special`",
            "special",
            false,
            32,
        ),
        ("train-all-32", "The same with scope `all`", "all", false, 32),
        ("train-full-32", "The same, all weights trained in f32", "all", true, 32),
        ("train-special-256", "Rows of 256 tokens, LoRA, scope `special`", "special", false, 256),
        ("train-all-256", "The same with scope `all`", "all", false, 256),
    ] {
        let rows = if tokens > 64 { 8 } else { 32 };
        let job = json!({"work": "train", "scope": scope, "full": full, "rows": rows, "tokens": tokens, "repeat": 2,
            "weights": "bf16"});
        let mut sides = vec![
            ours("positives by deletion", &job, json!({"dropout": "delete"})),
            ours("positives by visibility", &job, json!({"dropout": "visibility"})),
        ];
        if scope == "special" {
            let job = with(&job, json!({"prefix_weights": "int8"}));
            sides.push(ours("the text in int8, positives by deletion", &job, json!({"dropout": "delete"})));
            sides.push(ours("the text in int8, positives by visibility", &job, json!({"dropout": "visibility"})));
        }
        sides.push(peer("reference", if full { ", f32" } else { ", bf16" }, &job, json!({"dtype": "bfloat16"})));
        all.push(Contest { name, what, items: "rows", sides });
    }
    all
}

fn embedding(sentences: &str, paragraphs: &str) -> Vec<Contest> {
    let mut all = Vec::new();
    for (name, what, file) in [
        ("embed-sentences", "Embedding 2,000 Wikipedia sentences by the mean over the text", sentences),
        ("embed-paragraphs", "Embedding 500 texts of about 150 to 450 tokens by the mean over the text", paragraphs),
    ] {
        let job = json!({"work": "embed", "texts": file, "repeat": 1, "batch_rows": 32});
        all.push(Contest {
            name,
            what,
            items: "tokens",
            sides: vec![
                ours("bf16", &job, json!({"weights": "bf16"})),
                ours("int8", &job, json!({"weights": "int8"})),
                ours("quantised as shipped", &job, json!({"weights": "stored"})),
                ours("f32", &job, json!({"weights": "f32"})),
                peer("torch", ", bf16", &job, json!({"dtype": "bfloat16"})),
                peer("torch", ", f32", &job, json!({"dtype": "float32"})),
                peer("sentence-transformers", ", f32", &job, json!({})),
                peer("llama-cpp", ", quantised as shipped", &job, json!({})),
            ],
        });
    }
    let job = json!({"work": "start", "text": "A bird sings in the apple tree.", "repeat": 1});
    all.push(Contest {
        name: "start",
        what: "From the start of the program to the vector of a sentence",
        items: "starts",
        sides: vec![
            ours("quantised as shipped", &job, json!({"weights": "stored"})),
            ours("bf16", &job, json!({"weights": "bf16"})),
            peer("sentence-transformers", ", f32", &job, json!({})),
            peer("llama-cpp", ", quantised as shipped", &job, json!({})),
        ],
    });
    all
}

fn generation(paragraphs: &str) -> Vec<Contest> {
    let job = json!({"work": "decode", "texts": paragraphs, "prompt_tokens": 512, "new_tokens": 256, "repeat": 1});
    let decode = Contest {
        name: "decode",
        what: "256 tokens, greedily, after a prompt of 512",
        items: "tokens",
        sides: vec![
            ours("quantised as shipped", &job, json!({"weights": "stored"})),
            ours("bf16", &job, json!({"weights": "bf16"})),
            ours("int8", &job, json!({"weights": "int8"})),
            ours("f32", &job, json!({"weights": "f32"})),
            peer("llama-cpp", ", quantised as shipped", &job, json!({})),
        ],
    };
    let job =
        json!({"work": "decode", "texts": paragraphs, "prompt_tokens": 512, "new_tokens": 256, "repeat": 1, "rows": 8});
    let decode_8 = Contest {
        name: "decode-8",
        what: "256 tokens for each of 8 rows at once, greedily, after prompts of 512",
        items: "tokens",
        sides: vec![
            ours("quantised as shipped", &job, json!({"weights": "stored"})),
            ours("bf16", &job, json!({"weights": "bf16"})),
            ours("int8", &job, json!({"weights": "int8"})),
            ours("f32", &job, json!({"weights": "f32"})),
            peer("llama-cpp", ", quantised as shipped", &job, json!({})),
        ],
    };
    let job = json!({"work": "prefill", "texts": paragraphs, "tokens": 2048, "repeat": 2});
    let prefill = Contest {
        name: "prefill",
        what: "A prompt of 2,048 tokens",
        items: "tokens",
        sides: vec![
            ours("bf16", &job, json!({"weights": "bf16"})),
            ours("int8", &job, json!({"weights": "int8"})),
            ours("quantised as shipped", &job, json!({"weights": "stored"})),
            ours("f32", &job, json!({"weights": "f32"})),
            peer("llama-cpp", ", quantised as shipped", &job, json!({})),
            peer("torch", ", bf16", &job, json!({"dtype": "bfloat16"})),
            peer("torch", ", f32", &job, json!({"dtype": "float32"})),
        ],
    };
    let job = json!({"work": "answer", "texts": paragraphs, "tokens": 512, "question_tokens": 16, "repeat": 5, "weights": "bf16"});
    let answer = Contest {
        name: "answer",
        what: "From a question of 16 tokens behind a document of 512 to the first token of the answer; the document is \
               compressed beforehand, read in full with the question, or read in full beforehand",
        items: "answers",
        sides: vec![
            ours("the document as 6 special tokens", &job, json!({"num_special_tokens": 6})),
            ours("the document in full", &job, json!({"num_special_tokens": 0})),
            ours("its keys and values kept", &job, json!({"num_special_tokens": 0, "keep": true})),
            ours("int8, the document as 6 special tokens", &job, json!({"weights": "int8", "num_special_tokens": 6})),
            ours("int8, the document in full", &job, json!({"weights": "int8", "num_special_tokens": 0})),
        ],
    };
    vec![decode, decode_8, prefill, answer]
}

/// Files of 2,000 sentences and of 500 longer texts, one a line, cut from the sample sentences.
fn texts(work: &Path, root: &Path) -> Result<(String, String), String> {
    let sample = root.join("data/wiki_sentences.txt.gz");
    let unpacked = Command::new("gzip").arg("-dc").arg(&sample).output().map_err(|error| format!("gzip: {error}"))?;
    let text = String::from_utf8(unpacked.stdout).map_err(|error| format!("{}: {error}", sample.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() < 2000 {
        return Err(format!("{}: expected 2,000 sentences, found {}", sample.display(), lines.len()));
    }
    let write = |name: &str, lines: Vec<String>| -> Result<String, String> {
        let path = work.join(name);
        let mut file = std::fs::File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        file.write_all((lines.join("\n") + "\n").as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path.display().to_string())
    };
    // Six to eighteen sentences of about 25 tokens; the sample is gone through again and again.
    let mut next = lines.iter().cycle();
    let longer = (0..500).map(|i| next.by_ref().take(6 + i * 7 % 13).copied().collect::<Vec<_>>().join(" ")).collect();
    let short = lines[..2000].iter().map(|line| (*line).to_owned()).collect();
    Ok((write("sentences.txt", short)?, write("paragraphs.txt", longer)?))
}
