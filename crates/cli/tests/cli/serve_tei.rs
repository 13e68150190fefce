//! The routes of Text Embeddings Inference, and reranking.

use crate::serve::{Answer, Served, numbers};
use serde_json::{Value, json};

fn error(answer: &Answer) -> (u16, String, String) {
    let body = answer.json();
    let text = |key: &str| body[key].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
    (answer.status, text("error_type"), text("error"))
}

fn cosine(a: &Value, b: &Value) -> f64 {
    numbers(a).iter().zip(numbers(b)).map(|(a, b)| a * b).sum()
}

#[test]
fn vectors_are_those_of_openais_route() {
    let served = Served::start(&[]);
    let texts = ["A bird sings.", "Rain falls on the roof."];
    let want = served.post("/v1/embeddings", &json!({ "input": texts })).json();
    let want: Vec<&Value> = want["data"].as_array().unwrap().iter().map(|entry| &entry["embedding"]).collect();
    let ids: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    for inputs in [json!(texts), json!(ids), json!(texts[0]), json!(ids[0])] {
        let vectors = served.post("/embed", &json!({ "inputs": inputs })).json();
        for (vector, want) in vectors.as_array().unwrap().iter().zip(&want) {
            assert!((cosine(vector, want) - 1.0).abs() < 1e-5, "{inputs}");
        }
    }
    let raw = served.post("/embed", &json!({ "inputs": texts[0], "normalize": false })).json();
    let norm = cosine(&raw[0], &raw[0]).sqrt();
    assert!((norm - 1.0).abs() > 0.1 && (cosine(&raw[0], want[0]) / norm - 1.0).abs() < 1e-5, "{norm}");
    let each = served.post("/embed_all", &json!({ "inputs": texts })).json();
    for (states, text) in each.as_array().unwrap().iter().zip(texts) {
        assert_eq!(states.as_array().unwrap().len(), text.len());
        assert!(states.as_array().unwrap().iter().all(|state| numbers(state).len() == 16));
    }
    // Both ends of a long text are its only parts that count.
    let long = "a".repeat(400);
    let cut = |text: String, side: &str| {
        served.post("/embed", &json!({ "inputs": text, "truncate": true, "truncation_direction": side })).json()
    };
    assert_eq!(cut(format!("{long}b"), "Right"), cut(format!("{long}c"), "Right"));
    assert_ne!(cut(format!("{long}b"), "Left"), cut(format!("{long}c"), "Left"));
    assert_eq!(cut(format!("b{long}"), "Left"), cut(format!("c{long}"), "Left"));
}

#[test]
fn texts_are_ranked_by_cosine() {
    let served = Served::start(&[]);
    let (query, texts) = ("A bird sings.", ["Rain falls.", "A bird sings.", "A bird sang."]);
    let similar = json!({ "inputs": { "source_sentence": query, "sentences": texts } });
    let cosines = numbers(&served.post("/similarity", &similar).json());
    assert!((cosines[1] - 1.0).abs() < 1e-5 && cosines[0] < cosines[1], "{cosines:?}");
    let body = json!({ "query": query, "texts": texts, "return_text": true, "raw_scores": true });
    let ranked = served.post("/rerank", &body).json();
    let ranked = ranked.as_array().unwrap();
    assert_eq!((&ranked[0]["index"], &ranked[0]["text"], ranked.len()), (&json!(1), &json!(texts[1]), 3));
    for one in ranked {
        let cosine = cosines[one["index"].as_u64().unwrap() as usize];
        assert!((one["score"].as_f64().unwrap() - cosine).abs() < 1e-5);
    }
    let documents = json!([texts[0], { "text": texts[1] }, texts[2]]);
    let mut body = json!({ "model": "tiny", "query": query, "documents": documents, "top_n": 2 });
    let reranked = served.post("/v1/rerank", &body).json();
    let results = reranked["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["index"], &results[0]["document"]), (2, &json!(1), &json!(null)));
    assert!(results[0]["relevance_score"].as_f64() > results[1]["relevance_score"].as_f64());
    body["return_documents"] = json!(true);
    let reranked = served.post("/v1/rerank", &body).json();
    assert_eq!(reranked["results"][0]["document"]["text"], texts[1]);
    assert_eq!(
        served.post("/v1/rerank", &json!({ "query": "a", "documents": [] })).json()["error"]["param"],
        "documents"
    );
}

#[test]
fn tokens_have_places_in_characters() {
    let served = Served::start(&[]);
    let tokens = served.post("/tokenize", &json!({ "inputs": ["é b", "c"], "add_special_tokens": false })).json();
    // One token for each byte; both of a character have its place.
    let places: Vec<(u64, Value, Value)> = (tokens[0].as_array().unwrap().iter())
        .map(|token| (token["id"].as_u64().unwrap(), token["start"].clone(), token["stop"].clone()))
        .collect();
    let place = |id, start: u64, stop: u64| (id, json!(start), json!(stop));
    assert_eq!(places, [place(0xc3, 0, 1), place(0xa9, 0, 1), place(32, 1, 2), place(98, 2, 3)]);
    assert_eq!(tokens[1], json!([{ "id": 99, "text": "c", "special": false, "start": 0, "stop": 1 }]));
    let said = json!({ "messages": [{ "role": "user", "content": "Hi" }], "return_token_strs": true });
    let told = served.post("/tokenize", &said).json();
    let text = served.post("/detokenize", &json!({ "tokens": told["tokens"] })).json();
    assert_eq!(text["prompt"], "user: Hi\n%assistant: ");
    assert_eq!((&told["count"], told["token_strs"][0].as_str()), (&json!(21), Some("u")));
    let texts = served.post("/decode", &json!({ "ids": [[72, 105], [33]], "skip_special_tokens": true })).json();
    assert_eq!(texts, json!(["Hi", "!"]));
    assert_eq!(served.post("/decode", &json!({ "ids": [72] })).json(), json!(["H"]));
    let info = served.ask("GET", "/info", "", "").json();
    assert_eq!((&info["model_id"], &info["max_client_batch_size"]), (&json!("tiny"), &json!(2048)));
    assert_eq!(info["model_type"], json!({ "embedding": { "pooling": "prompt-eol" } }));
}

#[test]
fn errors_have_teis_form() {
    let served = Served::start(&["--max-inputs", "3", "--max-body-bytes", "2000", "--api-key", "one"]);
    let post = |path: &str, body: &Value| error(&served.ask("POST", path, "one", &body.to_string()));
    let many = json!({ "query": "a", "texts": ["a", "b", "c", "d"] });
    let long = "a".repeat(300);
    for (path, body, status, kind, told) in [
        ("/embed", json!({ "inputs": "" }), 400, "Empty", "at least one token"),
        ("/embed", json!({ "inputs": [] }), 400, "Empty", "1 to 3 texts"),
        ("/embed", json!({ "inputs": ["a", "b", "c", "d"] }), 413, "Validation", "found 4"),
        ("/rerank", many, 413, "Validation", "texts: expected 1 to 3 texts"),
        ("/embed", json!({ "inputs": long }), 422, "Validation", "found 300"),
        ("/embed", json!({ "inputs": "a", "dimensions": 8 }), 422, "Validation", "dimensions"),
        ("/embed", json!({ "inputs": "a", "prompt_name": "query" }), 422, "Validation", "prompt_name"),
        ("/embed", json!({ "inputs": [300] }), 422, "Validation", "below 256"),
        ("/embed", json!({ "inputs": "a".repeat(3000) }), 413, "Validation", ""),
        ("/similarity", json!({ "inputs": {} }), 422, "Validation", "source_sentence"),
        ("/decode", json!({ "ids": [256] }), 422, "Validation", "ids below 256"),
        ("/tokenize", json!({ "inputs": [] }), 400, "Empty", "1 to 3 texts"),
    ] {
        let found = post(path, &body);
        assert!(found.0 == status && found.1 == kind && found.2.contains(told), "{path} {body}: {found:?}");
    }
    let (status, kind, _) = error(&served.ask("POST", "/embed", "two", r#"{"inputs": "a"}"#));
    assert_eq!((status, kind.as_str()), (401, "Unauthorized"));
    // What is no route of TEI's keeps OpenAI's form.
    assert!(served.ask("POST", "/tokenize", "one", "{}").json()["error"]["message"].is_string());
}
