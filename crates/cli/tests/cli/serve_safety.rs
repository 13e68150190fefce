//! `lapidary serve` and clients that are slow, many, or up to no good.

use crate::serve::{Answer, Served};
use crate::serve_openapi::operations;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Routes that are for people, and another name.
const UNDOCUMENTED: &[&str] = &["/", "/page/app.js", "/docs", "/docs/", "/docs/swagger-ui.css", "/ping"];
/// Those of the document that need no key.
const PUBLIC: &[&str] = &["/health", "/metrics", "/openapi.json", "/v1/models"];

/// Every route with its method, and whether it needs a key.
fn routes(served: &Served) -> Vec<(String, String, bool)> {
    let documented = operations(&served.ask("GET", "/openapi.json", "", "").json());
    let documented = documented.into_iter().map(|(method, path, operation)| {
        let needs_key = operation["security"] == json!([{ "key": [] }]);
        assert_eq!(needs_key, !PUBLIC.contains(&path.as_str()), "{path}: {operation}");
        (method, path, needs_key)
    });
    let undocumented = UNDOCUMENTED.iter().map(|path| ("GET".to_owned(), (*path).to_owned(), false));
    documented.chain(undocumented).collect()
}

#[test]
fn keys_are_asked_for_on_every_route_but_the_public_ones() {
    let served = Served::start_in(&[("LAPIDARY_API_KEY", "two, three")], &["--api-key", "one"]);
    let routes = routes(&served);
    assert!(routes.len() > 20, "{routes:?}");
    for (method, path, needs_key) in &routes {
        for key in ["", "four", "two, three"] {
            let answer = served.ask(method, path, key, "{}");
            assert_eq!(answer.status == 401, *needs_key, "{method} {path}: {}", answer.status);
        }
        for key in ["one", "two", "three"] {
            let answer = served.ask(method, path, key, "{}");
            assert!(![401, 404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
            assert_eq!(answer.head.contains("\nx-model-fingerprint: "), *needs_key, "{path}: {}", answer.head);
            assert!(answer.head.contains("\nx-content-type-options: nosniff"), "{path}: {}", answer.head);
            assert!(!answer.head.contains("access-control"), "{path}: {}", answer.head);
        }
    }
    assert_eq!(served.ask("OPTIONS", "/v1/embeddings", "one", "").status, 405);
    let refused = |keys: &str| {
        let mut command = crate::lapidary(served.path());
        let output = command.args(["serve", "--model", "tiny"]).env("LAPIDARY_API_KEY", keys).output().unwrap();
        crate::error_line(&output)
    };
    assert!(refused("").contains("LAPIDARY_API_KEY: expected keys"));
    assert!(refused("one,,two").contains("found an empty one"));
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let served = Served::start(&[]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/page/style.css", "text/css"),
        ("/page/app.js", "text/javascript"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let answer = served.ask("GET", path, "", "");
        assert!(answer.status == 200 && answer.head.contains(&format!("content-type: {kind}")), "{}", answer.head);
        assert!(answer.head.contains("content-security-policy: default-src 'self'\r"), "{}", answer.head);
        assert!(answer.head.contains("cache-control: no-cache"), "{}", answer.head);
        assert!(!answer.body.contains("https://") && !answer.body.contains("src=\"//"), "{path}");
    }
    for path in ["/page/none.js", "/page/..%2f..%2fserve.rs", "/page/../Cargo.toml", "/page/"] {
        assert_eq!(served.ask("GET", path, "", "").status, 404, "{path}");
    }
}

#[test]
fn an_address_that_ends_with_v1_already_works() {
    let served = Served::start(&[]);
    assert_eq!(served.ask("GET", "/v1/v1/models", "", "").json()["data"][0]["id"], "tiny");
    let body = json!({ "input": "a" });
    assert_eq!(served.post("/v1/v1/embeddings", &body).json(), served.post("/v1/embeddings", &body).json());
}

#[test]
fn nesting_has_a_limit() {
    let served = Served::start(&[]);
    for (path, body) in [
        ("/v1/embeddings", format!(r#"{{"input": {}"a"{}}}"#, "[".repeat(100_000), "]".repeat(100_000))),
        (
            "/v1/chat/completions",
            format!(r#"{{"messages": [], "tools": {}{}}}"#, r#"{"a":"#.repeat(500), "}".repeat(500)),
        ),
    ] {
        let answer = served.ask("POST", path, "", &body);
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
    assert_eq!(served.ask("GET", "/health", "", "").status, 200);
}

/// Reads until the other end closes; fails after ten seconds.
fn rest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[test]
fn slow_clients_are_let_go() {
    let served = Served::start(&["--header-timeout", "0.5", "--client-timeout", "0.7", "--max-connections", "2"]);
    let connect = |text: &str| {
        let mut stream = TcpStream::connect(&served.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    // Half a head; two of them take all places, and are gone in time for others.
    let clock = Instant::now();
    let slow: Vec<TcpStream> = (0..4).map(|_| connect("GET /health HTTP/1.1\r\nHost: ")).collect();
    assert_eq!(served.ask("GET", "/health", "", "").status, 200);
    assert!(clock.elapsed() > Duration::from_millis(500), "{:?}", clock.elapsed());
    for mut stream in slow {
        rest(&mut stream);
    }
    // Half a body.
    let head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n";
    let answer = rest(&mut connect(&format!("{head}{{\"inp")));
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // A client that asks for much and reads nothing holds the engine no longer than that.
    let ids: Vec<Vec<u8>> = vec![vec![65; 200]; 1000];
    let body = json!({ "inputs": ids }).to_string();
    let length = body.len();
    let stream =
        connect(&format!("POST /embed_all HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"));
    let gone = || served.ask("GET", "/metrics", "", "").body.contains("lapidary_queue_tokens{model_name=\"tiny\"} 0\n");
    let mut places = Vec::new();
    let clock = Instant::now();
    while !gone() {
        assert!(clock.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(1500));
    // Its place is free again.
    for _ in 0..2 {
        places.push(connect("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }
    for mut stream in places {
        assert!(rest(&mut stream).starts_with("HTTP/1.1 200 "));
    }
    drop(stream);
}

#[test]
fn too_much_is_refused_with_a_time_to_come_back() {
    for (more, status) in [(&[][..], 429), (&["--overload-status", "503"][..], 503)] {
        let served = Served::start(&[&["--max-waiting-tokens", "220"], more].concat());
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let ask = || served.post("/v1/completions", &json!({ "prompt": "a".repeat(100), "max_tokens": 150 }));
            let all: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status != 200).collect();
        assert!(!refused.is_empty() && refused.len() < 6, "{}", refused.len());
        for answer in refused {
            assert_eq!(answer.status, status, "{}", answer.body);
            let head = answer.head.split_once("\nretry-after: ").unwrap().1;
            assert!(head.lines().next().unwrap().parse::<u64>().unwrap() >= 1);
            assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
        }
    }
}

/// Asked to end, it answers what it has begun, and tells others that it is ending; then, or after a while, it ends.
#[cfg(unix)]
#[test]
fn it_drains_with_a_deadline() {
    let started = |drain: &str| Served::start(&["--drain-timeout", drain]);
    let body = json!({ "prompt": "Hi", "max_tokens": 253, "temperature": 0, "n": 1 }).to_string();
    let length = body.len();
    let ask = |served: &Served, part: &str| {
        let mut stream = TcpStream::connect(&served.address).unwrap();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{part}");
        stream.write_all(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream
    };
    let terminate = |served: &Served| {
        let id = served.child.id().to_string();
        assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(200));
    };
    // A request of which only the head is there is on its way.
    let mut served = started("20");
    let mut stream = ask(&served, "");
    terminate(&served);
    let health = served.ask("GET", "/health", "", "");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("draining")));
    let late = served.post("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!((late.status, &late.json()["error"]["type"]), (503, &json!("server_error")));
    stream.write_all(body.as_bytes()).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
    // One that never comes is not waited for.
    let mut served = started("0.5");
    let stream = ask(&served, "");
    let clock = Instant::now();
    terminate(&served);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
    assert!(clock.elapsed() < Duration::from_secs(10));
    drop(stream);
}

#[test]
fn no_answer_has_a_number_that_is_none() {
    fn numbers(value: &Value) -> bool {
        match value {
            Value::Array(all) => all.iter().all(numbers),
            value => value.is_number(),
        }
    }
    let served = Served::start(&[]);
    for inputs in [json!("\u{0}"), json!([[0, 0, 0], [255]]), json!("🙂".repeat(10))] {
        assert!(numbers(&served.post("/embed", &json!({ "inputs": inputs })).json()), "{inputs}");
        assert!(numbers(&served.post("/embed_all", &json!({ "inputs": inputs })).json()), "{inputs}");
    }
}

/// A page of another server, in the browser of somebody who may reach this one.
#[test]
fn pages_of_other_servers_are_not_answered() {
    let served = Served::start(&[]);
    let own = served.address.clone();
    let asked = |host: &str, origin: &str| {
        let body = r#"{"input": "a"}"#;
        let mut stream = TcpStream::connect(&served.address).unwrap();
        let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        let len = body.len();
        let head = format!("Host: {host}\r\n{origin}Connection: close\r\nContent-Length: {len}\r\n\r\n");
        write!(stream, "POST /v1/embeddings HTTP/1.1\r\n{head}{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for (host, origin) in
        [(own.as_str(), ""), (&own, &format!("http://{own}")), ("localhost:1", ""), ("[::1]:8080", "")]
    {
        assert_eq!(asked(host, origin), "200", "{host} {origin}");
    }
    for (host, origin) in [(own.as_str(), "https://example.com"), (&own, "null"), ("evil.example:8080", "")] {
        assert_eq!(asked(host, origin), "403", "{host} {origin}");
    }
}
