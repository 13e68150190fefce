//! `/openapi.json` and `/docs`: what the server says of itself is so.

use crate::serve::Served;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read as _;

/// Method, path and what is said of it.
pub(crate) fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let of_path = |(path, item): (&String, &Value)| {
        let all = item.as_object().unwrap().iter();
        all.map(|(method, operation)| (method.to_uppercase(), path.clone(), operation.clone())).collect::<Vec<_>>()
    };
    paths.flat_map(of_path).collect()
}

/// All that a value refers to.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(all) => {
            found.extend(all.get("$ref").and_then(Value::as_str));
            all.values().for_each(|one| references(one, found));
        }
        Value::Array(all) => all.iter().for_each(|one| references(one, found)),
        _ => {}
    }
}

#[test]
fn the_document_is_whole_and_knows_the_model() {
    let served = Served::start(&["--api-key", "one"]);
    let answer = served.ask("GET", "/openapi.json", "", "");
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["ModelName"]["enum"], json!(["tiny"]));
    assert_eq!(schemas["TokenId"]["maximum"], 255);
    assert_eq!(schemas["Dimensions"]["enum"], json!([16]));
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let unused: Vec<&String> = (schemas.as_object().unwrap().keys())
        .filter(|name| !found.contains(format!("#/components/schemas/{name}").as_str()))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
    for reference in found {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas[name].is_object(), "{reference}");
    }
    let mut names = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}: {operation}");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{path}");
        assert_eq!(operation["requestBody"].is_object(), method == "POST", "{path}");
        let body = if method == "POST" { "{" } else { "" };
        // Its errors are of the form that it says, the first of them being that the body is none.
        let status = served.ask(&method, &path, "one", body).status;
        assert!(operation["responses"][status.to_string()].is_object(), "{path}: {status} is not declared");
    }
    let media = |path: &str| document["paths"][path]["post"]["responses"]["200"]["content"].clone();
    for path in ["/v1/chat/completions", "/v1/completions"] {
        assert!(media(path)["application/json"].is_object() && media(path)["text/event-stream"].is_object(), "{path}");
    }
}

#[test]
fn the_docs_load_from_the_server_alone() {
    let served = Served::start(&["--api-key", "one"]);
    let text = |path: &str, kind: &str| {
        let answer = served.ask("GET", path, "", "");
        assert!(answer.status == 200 && answer.head.contains(&format!("content-type: {kind}")), "{}", answer.head);
        let policy = "content-security-policy: default-src 'self'; img-src 'self' data:\r";
        assert!(answer.head.contains(policy), "{}", answer.head);
        if !answer.head.contains("content-encoding: gzip") {
            return answer.body;
        }
        let mut text = String::new();
        GzDecoder::new(&answer.bytes[..]).read_to_string(&mut text).unwrap();
        text
    };
    let moved = served.ask("GET", "/docs", "", "");
    assert!(moved.status == 303 && moved.head.contains("location: docs/\r"), "{}", moved.head);
    let index = text("/docs/", "text/html");
    let links: Vec<&str> = (["src=\"", "href=\""].iter())
        .flat_map(|start| index.split(start).skip(1).filter_map(|rest| rest.split('"').next()))
        .collect();
    assert!(links.len() > 4, "{index}");
    for link in links {
        assert!(!link.contains(':') && !link.starts_with("//"), "{link}");
        let file = format!("/docs/{}", link.trim_start_matches("./"));
        match link.rsplit_once('.').unwrap().1 {
            "css" => drop(text(&file, "text/css")),
            "js" => drop(text(&file, "text/javascript")),
            _ => assert_eq!(served.ask("GET", &file, "", "").status, 200, "{file}"),
        }
    }
    let start = text("/docs/swagger-initializer.js", "text/javascript");
    assert!(start.contains(r#""url": "../openapi.json""#) && start.contains(r#""validatorUrl": "none""#), "{start}");
    for path in ["/docs/none.js", "/docs/..%2fserve.rs"] {
        assert_eq!(served.ask("GET", path, "", "").status, 404, "{path}");
    }
}
