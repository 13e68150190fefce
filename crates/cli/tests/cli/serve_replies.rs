//! What `lapidary serve` can do beside the plain reply: compressed texts, vectors of replies, several replies, JSON.

use crate::serve::{Served, numbers};
use serde_json::{Value, json};

fn chat(served: &Served, content: Value, more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 12, "temperature": 0 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    served.post("/v1/chat/completions", &body).json()
}

fn said(reply: &Value, index: usize) -> &str {
    reply["choices"][index]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}"))
}

fn vector(served: &Served, text: &str) -> Vec<f64> {
    numbers(&served.post("/v1/embeddings", &json!({ "input": text })).json()["data"][0]["embedding"])
}

fn same(a: &[f64], b: &[f64]) -> bool {
    (a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() - 1.0).abs() < 1e-5
}

#[test]
fn a_compressed_text_stands_in_a_message() {
    let served = Served::start_gem(&["--max-compressed-bytes", "8000"]);
    let text = "A bird sings in the rain.";
    let made = served.post("/v1/compress", &json!({ "input": text, "recall": 9 })).json();
    assert_eq!((&made["object"], &made["num_text_tokens"]), (&json!("compressed"), &json!(25)), "{made}");
    assert!(same(&numbers(&made["embedding"]), &vector(&served, text)));
    let (k, bytes) = (made["num_special_tokens"].as_u64().unwrap(), made["num_kv_bytes"].as_u64().unwrap());
    // Keys and values of one head of eight numbers, in two layers.
    assert_eq!(bytes, k * 2 * 2 * 8 * 4);
    assert!(made["usage"]["completion_tokens"].as_u64().unwrap() <= 9 && made["recall"].is_string());
    let parts = |id: &Value| json!([{ "type": "compressed", "id": id }, { "type": "text", "text": "What?" }]);
    let with = chat(&served, parts(&made["id"]), json!({}));
    let without = chat(&served, json!("What?"), json!({}));
    let tokens = |reply: &Value| reply["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&with), tokens(&without) + k);
    assert_eq!(said(&with, 0), said(&chat(&served, parts(&made["id"]), json!({})), 0));
    // Its tokens, instead of its text, and without what it brings back.
    let ids: Vec<u8> = text.bytes().collect();
    let again = served.post("/v1/compress", &json!({ "input": ids })).json();
    assert!(again["recall"].is_null() && again["embedding"] == made["embedding"], "{again}");
    assert_eq!(said(&chat(&served, parts(&again["id"]), json!({})), 0), said(&with, 0));
    // Others have taken its place, and what it was is not known any more.
    for _ in 0..8000 / bytes + 1 {
        served.post("/v1/compress", &json!({ "input": "Another." })).json();
    }
    let lost = chat(&served, parts(&made["id"]), json!({}));
    assert_eq!(lost["error"]["param"], "id", "{lost}");
    for (body, field) in [(json!({ "input": "" }), "input"), (json!({ "input": [999] }), "input")] {
        let answer = served.post("/v1/compress", &body);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)), "{}", answer.body);
    }
}

#[test]
fn a_reply_brings_the_vectors_of_what_was_said() {
    let served = Served::start(&[]);
    let question = "Where does the rain fall?";
    let reply = chat(&served, json!(question), json!({ "return_embedding": "both" }));
    assert!(same(&numbers(&reply["embeddings"]["prompt"]), &vector(&served, question)));
    assert!(same(&numbers(&reply["embeddings"]["completion"]), &vector(&served, said(&reply, 0))));
    let one = chat(&served, json!(question), json!({ "return_embedding": "prompt" }));
    assert!(one["embeddings"]["completion"].is_null() && one["embeddings"]["prompt"] == reply["embeddings"]["prompt"]);
    assert!(chat(&served, json!(question), json!({}))["embeddings"].is_null());
    let body = json!({
        "messages": [{ "role": "user", "content": question }], "max_tokens": 12, "temperature": 0, "stream": true,
        "return_embedding": "both",
    });
    let streamed = served.post("/v1/chat/completions", &body).body;
    let events: Vec<&str> = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let last: Value = serde_json::from_str(events[events.len() - 2]).unwrap();
    assert_eq!((&last["embeddings"], &last["choices"]), (&reply["embeddings"], &json!([])));
}

#[test]
fn several_replies_are_several_draws() {
    let served = Served::start(&[]);
    let draw = json!({ "n": 3, "temperature": 1.0, "seed": 5 });
    let reply = chat(&served, json!("Hello"), draw.clone());
    let texts: Vec<&str> = (0..3).map(|index| said(&reply, index)).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let one = chat(&served, json!("Hello"), json!({ "temperature": 1.0, "seed": 6 }));
    assert_eq!(said(&one, 0), texts[1], "the second draws with the next seed");
    let tokens = |reply: &Value, of: &str| reply["usage"][of].as_u64().unwrap();
    assert_eq!(tokens(&reply, "prompt_tokens"), tokens(&one, "prompt_tokens"), "a prompt counts once");
    assert!(tokens(&reply, "completion_tokens") > tokens(&one, "completion_tokens"));
    // Streamed, and as completions, the same texts by their indices.
    let mut body = json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 12, "stream": true });
    body.as_object_mut().unwrap().extend(draw.as_object().unwrap().clone());
    let streamed = served.post("/v1/chat/completions", &body).body;
    let mut heard = vec![String::new(); 3];
    for chunk in streamed.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|chunk| *chunk != "[DONE]") {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        let choice = &chunk["choices"][0];
        heard[choice["index"].as_u64().unwrap() as usize] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(heard, texts);
}

#[test]
fn completions_are_streamed() {
    let served = Served::start(&[]);
    let mut body = json!({
        "prompt": ["One", "Two"], "max_tokens": 6, "n": 2, "temperature": 1, "seed": 3, "logprobs": 1, "echo": true,
        "stream_options": { "include_usage": true },
    });
    let whole = served.post("/v1/completions", &body).json();
    body["stream"] = json!(true);
    let streamed = served.post("/v1/completions", &body);
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    let mut heard = vec![(String::new(), Vec::<Value>::new(), Vec::<Value>::new(), Value::Null); 4];
    let events: Vec<&str> = streamed.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["usage"], whole["usage"]);
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let (text, tokens, offsets, finish) = &mut heard[choice["index"].as_u64().unwrap() as usize];
        *text += choice["text"].as_str().unwrap();
        tokens.extend(choice["logprobs"]["token_logprobs"].as_array().unwrap().clone());
        offsets.extend(choice["logprobs"]["text_offset"].as_array().unwrap().clone());
        *finish = choice["finish_reason"].clone();
    }
    for (choice, (text, tokens, offsets, finish)) in whole["choices"].as_array().unwrap().iter().zip(heard) {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &finish));
        assert_eq!(choice["logprobs"]["token_logprobs"], json!(tokens));
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets));
    }
    let starts = ["One", "One", "Two", "Two"];
    for (choice, start) in whole["choices"].as_array().unwrap().iter().zip(starts) {
        assert!(choice["text"].as_str().unwrap().starts_with(start), "{choice}");
    }
}

#[test]
fn what_is_chosen_follows_schema_bias_and_penalties() {
    let served = Served::start(&[]);
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["sound", "count"],
        "properties": { "sound": { "enum": ["tweet", "chirp"] }, "count": { "type": "integer", "minimum": 3, "maximum": 9 } },
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "bird", "schema": schema } });
    for seed in 0..4 {
        let more = json!({ "response_format": format, "temperature": 1.0, "seed": seed, "max_tokens": 60 });
        let reply = chat(&served, json!("Sing"), more);
        let bird: Value = serde_json::from_str(said(&reply, 0)).unwrap_or_else(|error| panic!("{error}: {reply}"));
        assert!(["tweet", "chirp"].contains(&bird["sound"].as_str().unwrap()), "{bird}");
        assert!((3..=9).contains(&bird["count"].as_i64().unwrap()) && bird.as_object().unwrap().len() == 2, "{bird}");
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    }
    // One byte that is forced, then two, of which each makes itself less probable.
    let forced = chat(&served, json!("Hi"), json!({ "logit_bias": { "97": 100 } }));
    assert_eq!(said(&forced, 0), "a".repeat(12));
    let more = json!({ "logit_bias": { "97": 100, "98": 100 }, "frequency_penalty": 2.0 });
    let both = chat(&served, json!("Hi"), more);
    assert!(said(&both, 0).contains('a') && said(&both, 0).contains('b'), "{both}");
}

#[test]
fn what_is_too_long_is_refused_cut_or_compressed() {
    let served = Served::start_gem(&[]);
    let long = "The bird sings. ".repeat(40);
    let embed = |overflow: &str| served.post("/v1/embeddings", &json!({ "input": long, "overflow": overflow }));
    let refused = embed("error");
    assert!(refused.status == 400 && refused.body.contains("`overflow`"), "{}", refused.body);
    let cut = embed("truncate");
    let (usage, lost) = (cut.json()["usage"].clone(), cut.json()["usage"]["truncated_tokens"].as_u64().unwrap());
    assert_eq!(usage["prompt_tokens"].as_u64().unwrap() + lost, 640);
    assert!(cut.head.contains("warning: 299"), "{}", cut.head);
    let talk = |overflow: &str| {
        let says = |content: &str| json!({ "role": "user", "content": content });
        let messages = json!([says(&long[..100]), says(&long[..100]), says(&long[..100]), says("What sings?")]);
        let body = json!({ "messages": messages, "max_tokens": 8, "temperature": 0, "overflow": overflow });
        served.post("/v1/chat/completions", &body)
    };
    assert_eq!(talk("error").status, 400);
    let usage = talk("truncate").json()["usage"].clone();
    assert!(usage["truncated_tokens"].as_u64().unwrap() > 100, "{usage}");
    let usage = talk("compress").json()["usage"].clone();
    let compressed = &usage["compressed_tokens"];
    assert!(compressed["text_tokens"].as_u64().unwrap() >= 100 && usage["truncated_tokens"].is_null(), "{usage}");
    assert!(compressed["special_tokens"].as_u64().unwrap() < 100, "{usage}");
    // Many short turns, of which each alone is too short to be compressed, and what the user says goes on.
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let turn = |i: usize| json!({ "role": role(i), "content": format!("Turn {i}.") });
    let turns: Vec<Value> = (0..60).map(turn).chain([json!({ "role": "user", "content": "And?" })]).collect();
    for (overflow, counted) in [("truncate", "truncated_tokens"), ("compress", "compressed_tokens")] {
        let body = json!({ "messages": turns, "max_tokens": 8, "overflow": overflow, "stream": true,
                           "stream_options": { "include_usage": true } });
        let answer = served.post("/v1/chat/completions", &body);
        assert!(answer.status == 200 && answer.body.contains(counted), "{overflow}: {}", answer.body);
        assert_eq!(answer.head.contains("warning: 299"), overflow == "truncate", "{}", answer.head);
    }
    // The last message alone is too long, and cannot be left out.
    let alone = json!({ "messages": [{ "role": "user", "content": "\u{fffd}é".repeat(120) }], "overflow": "truncate" });
    assert_eq!(served.post("/v1/chat/completions", &alone).status, 400);
    let alone = json!({ "messages": alone["messages"], "overflow": "compress", "max_tokens": 2 });
    let usage = served.post("/v1/chat/completions", &alone).json()["usage"].clone();
    assert!(usage["compressed_tokens"]["text_tokens"].as_u64().unwrap() > 400, "{usage}");
}

/// As mteb asks: a list of conversations.
#[test]
fn conversations_are_embedded_by_what_their_users_say() {
    let served = Served::start(&[]);
    let says = |text: &str| json!([{ "role": "user", "content": [{ "type": "text", "text": text }] }]);
    let many = served.post("/v1/embeddings", &json!({ "messages": [says("One."), says("Two.")] })).json();
    let one = served.post("/v1/embeddings", &json!({ "messages": says("Two.") })).json();
    let plain = served.post("/v1/embeddings", &json!({ "input": ["One.", "Two."] })).json();
    assert_eq!((&many["data"], &one["data"][0]["embedding"]), (&plain["data"], &plain["data"][1]["embedding"]));
    assert_eq!(served.post("/v1/embeddings", &json!({ "messages": says("a"), "input": "a" })).status, 400);
}

#[test]
fn ids_of_another_tokenizer_can_be_refused() {
    let served = Served::start(&["--reject-token-ids"]);
    for (path, body) in [
        ("/v1/embeddings", json!({ "input": [65] })),
        ("/v1/completions", json!({ "prompt": [[65]] })),
        ("/v1/compress", json!({ "input": [65] })),
        ("/embed", json!({ "inputs": [65] })),
        ("/embed_all", json!({ "inputs": [[65]] })),
    ] {
        let answer = served.post(path, &body);
        assert!(
            [400, 422].contains(&answer.status) && answer.body.contains("check_embedding_ctx_length=False"),
            "{}",
            answer.body
        );
    }
}

#[test]
fn an_echo_is_the_prompt_to_the_byte() {
    let served = Served::start(&[]);
    let prompt = "I \u{1f642} 日本語 žluťoučký";
    for stream in [false, true] {
        let body = json!({ "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0, "stream": stream });
        let answer = served.post("/v1/completions", &body);
        let chunks = match stream {
            false => vec![answer.json()],
            true => (answer.body.lines())
                .filter_map(|line| line.strip_prefix("data: {"))
                .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
                .collect(),
        };
        let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
        let text: String = choices.iter().filter_map(|choice| choice["text"].as_str()).collect();
        assert_eq!(text, prompt);
        let offsets = choices.iter().flat_map(|choice| choice["logprobs"]["text_offset"].as_array().unwrap());
        let offsets: Vec<u64> = offsets.map(|offset| offset.as_u64().unwrap()).collect();
        // A token a byte: those of one character begin where it does.
        assert_eq!((offsets.len(), offsets[2], offsets[5], offsets[6]), (prompt.len(), 2, 2, 3), "{offsets:?}");
    }
}

#[test]
fn what_is_null_is_not_set_and_what_is_unknown_is_refused() {
    let served = Served::start(&["--max-inputs", "6"]);
    let nulls = json!({ "stream": null, "logprobs": null, "overflow": null, "n": null, "stop": null, "tools": null });
    assert!(!said(&chat(&served, json!("Hi"), nulls), 0).is_empty());
    let nulls = json!({ "prompt": "Hi", "echo": null, "stream": null, "max_tokens": 2 });
    assert_eq!(served.post("/v1/completions", &nulls).status, 200);
    let nulls = json!({ "input": "Hi", "encoding_format": null, "dimensions": null });
    assert_eq!(served.post("/v1/embeddings", &nulls).status, 200);
    for more in [
        json!({ "guided_json": {} }),
        json!({ "stop_token_ids": [5] }),
        json!({ "function_call": "auto" }),
        json!({ "messages": [] }),
        json!({ "messages": [{ "role": "assistant", "tool_calls": [{}] }] }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "$ref": "#" } } } }),
    ] {
        let field = more.as_object().unwrap().keys().next().unwrap().clone();
        let refused = chat(&served, json!("Hi"), more);
        assert_eq!(refused["error"]["param"], json!(field), "{refused}");
        assert!(!refused["error"]["message"].as_str().unwrap().contains('\n'), "{refused}");
    }
    let body = json!({ "prompt": ["a", "b"], "n": 4 });
    assert!(served.post("/v1/completions", &body).body.contains("1 to 6 prompts"));
    let parts = json!([{ "role": "user", "content": [{ "type": "image_url" }, { "type": "text", "text": "Hi" }] }]);
    assert_eq!(served.post("/v1/embeddings", &json!({ "messages": parts })).status, 400);
}
