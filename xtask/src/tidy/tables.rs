//! What the rules allow, each exception with its reason.

/// Longest source file, without the tests at its end.
pub(super) const MAX_LINES: usize = 450;

/// Files that may be longer: the file, its own limit, the reason.
pub(super) const LONG_FILES: &[(&str, usize, &str)] =
    &[("crates/lapidary/tests/it/hf_config.rs", 600, "a table of cases")];

/// The tensor library, and the only folder that knows it.
pub(super) const TENSOR_LIBRARY: (&str, &str) = ("candle", "crates/kernels/");

/// Dependencies of one crate alone, with that crate.
pub(super) const OWN_DEPENDENCIES: &[(&str, &str)] = &[
    ("anyhow", "cli"),
    ("clap", "cli"),
    ("ctrlc", "cli"),
    ("hf-hub", "cli"),
    ("indicatif", "cli"),
    ("rustyline", "cli"),
    ("candle-core", "kernels"),
    ("gemm", "kernels"),
    ("parquet", "lapidary"),
    ("tokenizers", "lapidary"),
];

/// The crates of the workspace that each crate may use.
pub(super) const CRATE_ARROWS: &[(&str, &[&str])] =
    &[("layout", &[]), ("kernels", &[]), ("lapidary", &["layout", "kernels"]), ("cli", &["lapidary"])];

/// What each module of the library may import from its own crate. The longest matching path counts; an entry allows
/// everything below it.
pub(super) const MODULE_ARROWS: &[(&str, &[&str])] = &[
    ("lib", &["*"]),
    // one enum for the caller, with a variant for the error of every area
    ("error", &["*"]),
    ("data", &[]),
    ("output", &[]),
    ("report", &[]),
    // a GGUF file holds its tokenizer
    ("text", &["model::gguf"]),
    // a model directory holds the standardisation and is written in one piece
    ("model", &["error", "eval::standardise", "output::atomic", "text"]),
    ("embed", &["error", "eval::standardise", "model", "text"]),
    ("eval", &["data", "error", "model"]),
    // used by `model` and `embed`, and therefore below them
    ("eval/standardise", &["eval::error"]),
    ("train", &["data", "embed", "error", "eval", "model", "output", "text"]),
    ("gem", &["embed", "error", "eval::standardise", "model", "text", "train"]),
    ("generate", &["error", "gem", "model", "text"]),
    ("engine", &["embed", "error", "gem", "generate", "model"]),
];

/// Names that the library's root re-exports, with their modules.
pub(super) const ROOT_ITEMS: &[(&str, &str)] = &[("Error", "error"), ("Lapidary", "gem"), ("ModelFiles", "model")];

/// What only the command may do: paths and macros, with what they would do.
pub(super) const COMMAND_ONLY: &[(&str, &str)] = &[
    ("std::env", "reads the environment"),
    ("std::net", "reaches the network"),
    ("std::process::Command", "starts a process"),
    ("std::process::abort", "ends the process"),
    ("std::process::exit", "ends the process"),
    ("print", "prints"),
    ("println", "prints"),
    ("eprint", "prints"),
    ("eprintln", "prints"),
    ("dbg", "prints"),
];

/// Where the library may do so all the same.
pub(super) const COMMAND_ONLY_PLACES: &[Allowed] = &[Allowed {
    path: "crates/kernels/src/lib.rs",
    word: Some("std::env::set_var"),
    reason: "prepare_process, which the command calls, switches off the tensor library's own threads",
}];

/// Names of model families. They are looked for inside words, but for the last, which is a part of everyday words.
pub(super) const FAMILIES: &[&str] = &["llama", "mistral", "qwen", "gemma", "smollm", "phi"];

/// Methods whose names are everyday words in code: `mean` is also a tensor, `last` also a pooling.
pub(super) const EVERYDAY_METHODS: &[&str] = &["mean", "last"];

/// Where something may stand that may not stand elsewhere in code that is no test.
pub(super) struct Allowed {
    /// A file, or the beginning of its path.
    pub(super) path: &'static str,
    /// The one word that is allowed there; none: all.
    pub(super) word: Option<&'static str>,
    /// Why.
    pub(super) reason: &'static str,
}

/// Where the names of families may stand.
pub(super) const FAMILY_PLACES: &[Allowed] = &[
    Allowed { path: "crates/lapidary/src/model/hf/", word: None, reason: "the place where families are told apart" },
    Allowed { path: "crates/lapidary/src/model/source.rs", word: None, reason: "built-in models and their files" },
    Allowed { path: "crates/lapidary/src/text/tokenizer", word: None, reason: "GGUF's names of kinds of tokenizer" },
    Allowed { path: "crates/lapidary/src/model/base.rs", word: Some("llama"), reason: "GGUF's name of SentencePiece" },
    Allowed { path: "crates/lapidary/src/model/", word: Some("Llama3"), reason: "a RoPE scaling, named as in configs" },
    Allowed { path: "crates/kernels/src/cuda/product.rs", word: Some("cublasGemmAlgo_t"), reason: "cuBLAS's own name" },
    Allowed { path: "crates/cli/src/", word: None, reason: "the default model, and examples in help texts" },
    Allowed { path: "crates/lapidary/examples/", word: None, reason: "documentation" },
    Allowed { path: "xtask/", word: None, reason: "these tables" },
];

/// Where the names of methods may stand.
pub(super) const METHOD_PLACES: &[Allowed] = &[
    Allowed { path: "crates/layout/src/method", word: None, reason: "the methods and their registry" },
    Allowed { path: "crates/cli/src/", word: None, reason: "the default method and the baselines compared with it" },
    Allowed { path: "crates/lapidary/examples/", word: None, reason: "documentation" },
    Allowed { path: "xtask/", word: None, reason: "these tables" },
];

/// Package registries, as the two parts of their host names: packages are fetched by their ordinary clients, which
/// know where to look.
pub(super) const REGISTRIES: &[(&str, &str)] =
    &[("pypi", "org"), ("pythonhosted", "org"), ("crates", "io"), ("npmjs", "org"), ("npmjs", "com")];
