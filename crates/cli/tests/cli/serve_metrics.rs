//! `/v1/chunk`, and what `/metrics` counts.

use crate::serve::{Served, numbers};
use serde_json::{Value, json};

#[test]
fn chunks_are_the_text_and_have_its_vectors() {
    let served = Served::start(&["--max-inputs", "8"]);
    let text = "A bird sings. Rain falls on the roof.\r\n\r\nEs schneit — schön! 🙂🙂";
    let cut = |more: Value| {
        let mut body = json!({ "input": text, "max_tokens": 24 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        served.post("/v1/chunk", &body)
    };
    let reply = cut(json!({ "embed": true })).json();
    let chunks = reply["chunks"].as_array().unwrap();
    let pieces: Vec<&str> = chunks.iter().map(|chunk| chunk["text"].as_str().unwrap()).collect();
    assert_eq!(pieces[..2], ["A bird sings. Rain falls", " on the roof.\r\n\r\n"]);
    assert_eq!(pieces.concat(), text);
    let vectors = served.post("/v1/embeddings", &json!({ "input": pieces })).json();
    for (at, chunk) in chunks.iter().enumerate() {
        let (start, end) = (chunk["start"].as_u64().unwrap() as usize, chunk["end"].as_u64().unwrap() as usize);
        assert_eq!(&text[start..end], pieces[at]);
        let tokens = served.post("/tokenize", &json!({ "content": pieces[at] })).json()["tokens"].clone();
        assert_eq!(json!(tokens.as_array().unwrap().len()), chunk["num_tokens"]);
        assert!(chunk["num_tokens"].as_u64().unwrap() <= 24);
        let cosine: f64 = (numbers(&chunk["embedding"]).iter().zip(numbers(&vectors["data"][at]["embedding"])))
            .map(|(a, b)| a * b)
            .sum();
        assert!((cosine - 1.0).abs() < 1e-5, "{cosine}");
    }
    let overlapping = cut(json!({ "overlap": 12 })).json();
    assert!(overlapping["chunks"][1]["start"].as_u64() < overlapping["chunks"][0]["end"].as_u64());
    assert!(overlapping["chunks"][0]["embedding"].is_null());
    for (more, told) in [
        (json!({ "max_tokens": 0 }), "max_tokens: expected 1 to"),
        (json!({ "max_tokens": 5000 }), "max_tokens: expected 1 to"),
        (json!({ "max_tokens": 3 }), "at byte"),
        (json!({ "overlap": 13 }), "overlap: expected at most half"),
        (json!({ "max_tokens": 4, "embed": true }), "at most 8 chunks"),
        (json!({ "size": 4 }), "unknown field `size`"),
    ] {
        let answer = cut(more.clone());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && message.contains(told), "{more}: {message}");
    }
}

/// The values of a metric, summed over its labels.
fn value(text: &str, name: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
    let values: Vec<f64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "{name} is not in\n{text}");
    values.iter().sum()
}

#[test]
fn what_happened_is_counted() {
    let served = Served::start(&["--api-key", "one"]);
    let post = |path: &str, body: Value| served.ask("POST", path, "one", &body.to_string()).status;
    let prompt = json!({ "prompt": "Hello there", "max_tokens": 5, "temperature": 0 });
    assert_eq!(post("/v1/completions", prompt.clone()), 200);
    assert_eq!(post("/v1/completions", prompt), 200);
    let text = served.ask("POST", "/v1/completions", "one", r#"{"prompt": "Hi", "max_tokens": 40, "temperature": 0}"#);
    let text = text.json()["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(2).take(10).filter(char::is_ascii).take(1).collect();
    assert_eq!(
        post("/v1/completions", json!({ "prompt": "Hi", "max_tokens": 40, "temperature": 0, "stop": stop })),
        200
    );
    assert_eq!(post("/v1/embeddings", json!({ "input": ["one", "seven"] })), 200);
    assert_eq!(post("/embed", json!({ "inputs": "a".repeat(400), "truncate": true })), 200);
    assert_eq!(post("/embed", json!({ "inputs": "" })), 400);
    assert_eq!(served.ask("POST", "/embed", "", "{}").status, 401);
    assert_eq!(served.ask("GET", "/nowhere", "", "").status, 404);
    let answer = served.ask("GET", "/metrics", "", "");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let found = |name: &str| value(&answer.body, name);
    assert_eq!(found("vllm:time_to_first_token_seconds_count"), 4.0);
    assert_eq!(found("vllm:prompt_tokens_total"), 26.0);
    assert!(found("vllm:generation_tokens_total") >= 5.0 + 5.0 + 40.0);
    for (reason, count) in [("length", 3), ("stop", 1)] {
        let line = format!(r#"vllm:request_success_total{{finished_reason="{reason}",model_name="tiny"}} {count}"#);
        assert!(answer.body.contains(&line), "{line} is not in\n{}", answer.body);
    }
    assert_eq!(found("vllm:e2e_request_latency_seconds_count"), 4.0);
    assert!(found("vllm:inter_token_latency_seconds_count") >= 4.0 + 4.0 + 39.0);
    assert!(found("vllm:prefix_cache_queries_total") >= found("vllm:prefix_cache_hits_total"));
    assert_eq!((found("te_request_count"), found("te_request_success"), found("te_request_failure")), (4.0, 2.0, 2.0));
    assert_eq!((found("te_embed_count"), found("te_embed_success")), (3.0, 3.0));
    assert_eq!((found("lapidary_truncations_total"), found("lapidary_nonfinite_total")), (1.0, 0.0));
    for reason in ["unauthorized", "not_found", "invalid"] {
        let line = format!(r#"lapidary_rejected_total{{reason="{reason}",model_name="tiny"}} 1"#);
        assert!(answer.body.contains(&line), "{line} is not in\n{}", answer.body);
    }
    assert!(found("te_batch_next_tokens_sum") > 0.0 && found("te_batch_next_size_count") > 0.0);
    let health = served.ask("GET", "/health", "", "").json();
    assert!(health["status"] == "ok" && health["tokens_per_second"].as_u64().unwrap() > 0, "{health}");
}
