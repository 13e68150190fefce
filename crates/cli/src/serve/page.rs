//! `/` and `/page/…`: the page for people, which is part of the program.

use super::api_error::ApiError;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The page's files: name, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("index.html", HTML, include_str!("page/index.html")),
    ("style.css", CSS, include_str!("page/style.css")),
    ("icon.svg", SVG, include_str!("page/icon.svg")),
    ("api.js", JS, include_str!("page/api.js")),
    ("app.js", JS, include_str!("page/app.js")),
    ("chat.js", JS, include_str!("page/chat.js")),
    ("compress.js", JS, include_str!("page/compress.js")),
    ("dom.js", JS, include_str!("page/dom.js")),
    ("geometry.js", JS, include_str!("page/geometry.js")),
    ("live.js", JS, include_str!("page/live.js")),
    ("texts.js", JS, include_str!("page/texts.js")),
    ("theme.js", JS, include_str!("page/theme.js")),
    ("words.js", JS, include_str!("page/words.js")),
];

/// The browser asks again each time, because the next version of the program has other files; and loads nothing from elsewhere.
type File = ([(HeaderName, &'static str); 3], &'static str);

fn file(name: &str) -> Result<File, ApiError> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, text) = found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "no such file"))?;
    let policy = (CONTENT_SECURITY_POLICY, "default-src 'self'");
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache"), policy], text))
}

pub(crate) async fn index() -> Result<File, ApiError> {
    file("index.html")
}

pub(crate) async fn named(Path(name): Path<String>) -> Result<File, ApiError> {
    file(&name)
}

#[cfg(test)]
mod tests {
    use super::FILES;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_of_the_page_is_there() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/page");
        let entries = std::fs::read_dir(directory).unwrap();
        let there: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(FILES.iter().map(|(name, ..)| (*name).to_owned()).collect::<BTreeSet<_>>(), there);
    }
}
