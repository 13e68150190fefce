//! A hub on the loopback interface.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

/// The commit of everything.
pub(crate) const COMMIT: &str = "0123456789abcdef";

/// What a hub holds, by the path of a request: descriptions of repositories, and files.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    pub(crate) infos: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Hub {
    /// Adds the description of a repository at a revision that names these files.
    pub(crate) fn info(&mut self, api_path: &str, names: &[&str]) {
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name})).collect();
        self.infos.insert(api_path.into(), serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }

    /// Answers until the test ends; the endpoint.
    pub(crate) fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut request).unwrap() > 2 {}
                let path = request.split(' ').nth(1).unwrap().split('?').next().unwrap();
                let (status, body) = match (self.files.get(path), self.infos.get(path)) {
                    (Some(bytes), _) => ("206 Partial Content", bytes.as_slice()),
                    (None, Some(info)) => ("200 OK", info.as_bytes()),
                    (None, None) => ("404 Not Found", &b""[..]),
                };
                // The first request of a file asks for one byte, to learn its size and commit.
                let one = request.to_ascii_lowercase().contains("range: bytes=0-0");
                let sent = if one { body.get(..1).unwrap_or_default() } else { body };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes 0-0/{}\r\n\
                     x-repo-commit: {COMMIT}\r\netag: \"{}\"\r\nconnection: close\r\n\r\n",
                    sent.len(),
                    body.len(),
                    path.replace('/', "-"),
                );
                stream.write_all(&[head.as_bytes(), sent].concat()).unwrap();
            }
        });
        endpoint
    }
}
