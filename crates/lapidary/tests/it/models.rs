//! Where the real models of the tests lie: the cache that `lapidary fetch` fills.

use std::path::PathBuf;

/// The default model. A test that needs it fails without it: a skipped test proves nothing.
pub(crate) fn real_model() -> PathBuf {
    cached("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf", "default")
}

/// The second built-in model, which only ignored tests need.
pub(crate) fn gemma3() -> PathBuf {
    cached("gemma3-270m", "gemma-3-270m-q4_k_m.gguf", "Gemma")
}

fn cached(name: &str, file_name: &str, what: &str) -> PathBuf {
    let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("LAPIDARY_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME").filter(|dir| dir.is_absolute())?.join("lapidary")))
        .or_else(|| Some(set("HOME")?.join(".cache/lapidary")))
        .expect("one of LAPIDARY_CACHE, XDG_CACHE_HOME and HOME");
    let path = cache.join("models").join(file_name);
    assert!(
        path.is_file(),
        "the {what} model is missing: run `cargo run --release -- fetch {name}` ({})",
        path.display()
    );
    path
}
