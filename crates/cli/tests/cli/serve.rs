//! `lapidary serve` as a client meets it, over a real connection.

use crate::{lapidary, run, stdout, tiny_model, train};
use lapidary::has_bf16_units;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// A server with a tiny model, which ends with this.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) address: String,
    dir: TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// The body as it came, where it is no text.
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Served {
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::start_in(&[], more)
    }

    /// With variables of the environment.
    pub(crate) fn start_in(environment: &[(&str, &str)], more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model::write(&dir.path().join("tiny"), 1);
        Self::start_with(dir, "tiny", environment, &as_stored(more))
    }

    /// As [`Served::start`], with a model that has special tokens, which has been trained a little.
    pub(crate) fn start_gem(more: &[&str]) -> Self {
        let dir = train::workshop();
        stdout(run(dir.path(), &["train", "recipe.toml", "--out", "run"]));
        Self::start_with(dir, "run/model", &[], &as_stored(more))
    }

    fn start_with(dir: TempDir, model: &str, environment: &[(&str, &str)], more: &[&str]) -> Self {
        let mut command = lapidary(dir.path());
        command.args(["serve", "--model", model, "--listen", "127.0.0.1:0"]).args(more);
        command.envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.as_mut().unwrap()).lines().map(Result::unwrap);
        let address = told.find_map(|line| Some(line.split_once("on http://")?.1.to_owned())).unwrap();
        Self { child, address, dir }
    }

    pub(crate) fn ask(&self, method: &str, path: &str, key: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (address, len) = (&self.address, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let bytes = answer.split_off(end + 4);
        let (head, body) = (std::str::from_utf8(&answer).unwrap().trim_end(), String::from_utf8_lossy(&bytes));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunked(&body) } else { body.into_owned() };
        Answer { status, head: format!("{}\r\n", head.to_ascii_lowercase()), body, bytes }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, "", &body.to_string())
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The default of `--weights` depends on the machine.
fn as_stored<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let format: &[&str] = if more.contains(&"--weights") { &[] } else { &["--weights", "stored"] };
    [more, format].concat()
}

#[test]
fn weights_are_bf16_where_the_cpu_has_units_for_it_unless_asked_for_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model::write(&dir.path().join("tiny"), 1);
    let format = |served: &Served| served.ask("GET", "/info", "", "").json()["model_dtype"].clone();
    assert_eq!(format(&Served::start_with(dir, "tiny", &[], &[])), if has_bf16_units() { "bf16" } else { "stored" });
    assert_eq!(format(&Served::start(&[])), "stored");
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += &rest[..size];
        body = &rest[size + 2..];
    }
    whole
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn vectors_are_those_of_the_command() {
    let served = Served::start(&[]);
    let texts = ["A bird sings.", "Rain falls on the roof."];
    let alone = stdout(run(served.path(), &["embed", "--model", "tiny", texts[0], texts[1]]));
    let want: Vec<Vec<f64>> =
        (alone.lines()).map(|line| numbers(&serde_json::from_str::<Value>(line).unwrap()["embedding"])).collect();
    let ids: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    for input in [json!(texts), json!(ids), json!(texts[0]), json!(ids[0])] {
        let answer = served.post("/v1/embeddings", &json!({ "input": input, "model": "tiny" })).json();
        let data = answer["data"].as_array().unwrap();
        assert!(data.len() == 2 || !input[0].is_array() && !input[0].is_string(), "{answer}");
        for (i, (entry, want)) in data.iter().zip(&want).enumerate() {
            assert_eq!((&entry["index"], &entry["object"]), (&json!(i), &json!("embedding")));
            let cosine: f64 = numbers(&entry["embedding"]).iter().zip(want).map(|(a, b)| a * b).sum();
            assert!((cosine - 1.0).abs() < 1e-5, "{cosine}");
        }
    }
    let answer = served.post("/v1/embeddings", &json!({ "input": texts, "encoding_format": "base64" })).json();
    let usage = json!({ "prompt_tokens": 36, "total_tokens": 36 });
    assert_eq!(answer["usage"], usage);
    // Sixteen little-endian numbers of four bytes are 88 characters.
    assert_eq!(answer["data"][1]["embedding"].as_str().unwrap().len(), 88);
}

#[test]
fn a_reply_is_that_of_the_command_in_one_piece_and_streamed() {
    let served = Served::start(&["--served-model-name", "my/gem"]);
    let alone = stdout(run(
        served.path(),
        &["chat", "--model", "tiny", "Hello there", "--max-new-tokens", "12", "--temperature", "0"],
    ));
    let mut body = json!({
        "model": "my/gem", "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hello there" }] }],
        "max_tokens": 12, "temperature": 0, "logprobs": true, "top_logprobs": 2,
    });
    let whole = served.post("/v1/chat/completions", &body).json();
    let choice = &whole["choices"][0];
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(content, alone.strip_suffix('\n').unwrap());
    assert_eq!((&whole["model"], &choice["finish_reason"]), (&json!("my/gem"), &json!("length")));
    assert_eq!((&whole["usage"]["completion_tokens"], &whole["object"]), (&json!(12), &json!("chat.completion")));
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), 12);
    assert!(logprobs.iter().all(|one| one["logprob"] == one["top_logprobs"][0]["logprob"]), "greedy: {choice}");

    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let streamed = served.post("/v1/chat/completions", &body);
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    let events: Vec<&str> = streamed.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert!(chunks.iter().all(|chunk| chunk["id"] == usage["id"] && chunk["usage"].is_null()));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    let pieces: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, content);

    // A stop string ends the reply before it, streamed or not.
    let stop: String = content.chars().skip(4).take(2).collect();
    let before = content.split(&stop).next().unwrap();
    (body["stop"], body["stream"], body["stream_options"]) = (json!([stop]), json!(false), json!(null));
    let stopped = served.post("/v1/chat/completions", &body).json();
    assert_eq!(stopped["choices"][0]["message"]["content"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

/// As lm-evaluation-harness asks: token ids in a batch, one token more, probabilities of all.
#[test]
fn completions_tell_the_probabilities_of_a_prompt() {
    let served = Served::start(&[]);
    let body = json!({
        "model": "tiny", "prompt": [[72, 105, 33], [104, 111]], "max_tokens": 1, "logprobs": 1, "echo": true,
        "temperature": 0, "seed": 1234,
    });
    let answer = served.post("/v1/completions", &body).json();
    for (index, len) in [(0, 3), (1, 2)] {
        let choice = &answer["choices"][index];
        let logprobs = &choice["logprobs"];
        let (all, top) = (logprobs["token_logprobs"].as_array().unwrap(), logprobs["top_logprobs"].as_array().unwrap());
        assert_eq!((all.len(), top.len(), &choice["index"]), (len + 1, len + 1, &json!(index)));
        assert!(all[0].is_null() && all[1..].iter().all(|one| one.as_f64().unwrap() < 0.0));
        // The last was chosen: the most probable, by the same digits.
        let most = top[len].as_object().unwrap().values().map(|one| one.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(all[len].as_f64().unwrap(), most);
    }
    let text = served.post("/v1/completions", &json!({ "prompt": "Hi", "max_tokens": 3, "echo": true })).json();
    assert!(text["choices"][0]["text"].as_str().unwrap().starts_with("Hi"), "{text}");
    let told = served.post("/tokenize", &json!({ "prompt": "Hi!", "add_special_tokens": false })).json();
    assert_eq!(told["tokens"], json!([72, 105, 33]));
    assert_eq!(served.post("/detokenize", &json!({ "tokens": told["tokens"] })).json()["prompt"], "Hi!");
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let served =
        Served::start(&["--max-inputs", "3", "--max-body-bytes", "5000", "--api-key", "one", "--api-key", "two"]);
    let post = |path: &str, body: &str| served.ask("POST", path, "two", body);
    let embeddings = [
        ("{", "body"),
        ("{}", "input"),
        (r#"{"input": []}"#, "1 to 3 texts"),
        (r#"{"input": ["a", "b", "c", "d"]}"#, "1 to 3 texts, found 4"),
        (r#"{"input": ""}"#, "at least one token"),
        (r#"{"input": [1, 256]}"#, "below 256, found 256; a client that sends another tokenizer's"),
        (r#"{"input": [-1]}"#, "body"),
        (r#"{"input": "a", "dimensions": 8}"#, "dimensions"),
    ];
    for (body, expected) in embeddings {
        let answer = post("/v1/embeddings", body);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && message.contains(expected), "{body}: {} {message}", answer.status);
    }
    let long = json!({ "input": "a".repeat(300) }).to_string();
    assert_eq!(post("/v1/embeddings", &long).status, 400);
    let cut = json!({ "input": "a".repeat(300), "truncate_prompt_tokens": -1 }).to_string();
    assert_eq!(post("/v1/embeddings", &cut).status, 200, "cut when asked to");
    assert_eq!(post("/v1/embeddings", &json!({ "input": "a".repeat(6000) }).to_string()).status, 413);
    assert_eq!(post("/v1/embeddings", r#"{"input": "a", "model": "other"}"#).status, 404);
    let said = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post("/v1/chat/completions", &body.to_string())
    };
    for (more, field) in [
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 2, "return_embedding": "both" }), "n"),
        (json!({ "tools": [{ "type": "function" }] }), "tools"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "nonsense" } } } }),
            "response_format",
        ),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "stop": [""] }), "stop[0]"),
        (json!({ "presence_penalty": 2.5 }), "presence_penalty"),
        (json!({ "frequency_penalty": -3 }), "frequency_penalty"),
        (json!({ "logit_bias": { "256": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "5": 101 } }), "logit_bias"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "compressed", "id": "cmp-0" }] }] }), "id"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages"),
    ] {
        let answer = said(more);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)), "{}", answer.body);
    }
    assert_eq!(said(json!({ "tools": null, "n": 1, "response_format": { "type": "text" } })).status, 200);
    // Keys: none, a wrong one; what needs none.
    for key in ["", "three", "tw"] {
        assert_eq!(served.ask("POST", "/v1/embeddings", key, r#"{"input": "a"}"#).status, 401, "{key}");
    }
    let models = served.ask("GET", "/v1/models", "", "").json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!("tiny"), &json!(256)));
    // The last answer is out before its pages are counted back.
    let held = || served.ask("GET", "/health", "", "").json()["kv_pages"]["held"].clone();
    let is_free = (0..200).any(|_| {
        held() == 0 || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }
    });
    assert!(is_free, "pages held for nobody: {}", held());
    assert_eq!(served.ask("GET", "/nowhere", "", "").status, 404);
}

/// Asked to end, it ends well; what is on its way is answered first.
#[cfg(unix)]
#[test]
fn a_signal_ends_it_after_its_last_answer() {
    let mut served = Served::start(&[]);
    let body = json!({ "prompt": "Hi", "max_tokens": 200, "temperature": 0 });
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| served.post("/v1/completions", &body));
        std::thread::sleep(std::time::Duration::from_millis(30));
        let id = served.child.id().to_string();
        assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
        asked.join().unwrap()
    });
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}
