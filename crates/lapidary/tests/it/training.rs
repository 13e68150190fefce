//! The trainer on a tiny model: it learns, resumes exactly, stops when something is wrong, and what it saves loads.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use kernels::Tensor;
use lapidary::embed::{EmbedOptions, Embedder};
use lapidary::model::{Adapter, BaseModel, ModelFiles};
use lapidary::train::{
    Damage, Event, Outcome, Recipe, RunOptions, State, StepMetrics, Trainer, build_method, special_rows,
};
use lapidary::{Error, Lapidary};
use layout::Rng;
use rand::SeedableRng as _;
use tempfile::TempDir;

use crate::common::{bits, close_to_each_other, golden, values};

pub(crate) const TEXTS: [&str; 8] = [
    "a man plays a guitar",
    "rivers run to the sea",
    "the cat sleeps all day",
    "green tea with lemon",
    "nine trains leave at dawn",
    "old stones keep quiet",
    "she paints the blue door",
    "wind moves the dry grass",
];

/// A byte-level tokenizer of 97 tokens: the visible ASCII characters, the space, the line end, one special token.
pub(crate) fn tokenizer_json() -> String {
    let characters = ('!'..='~').chain(['Ġ', 'Ċ']);
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        characters.zip(0u64..).map(|(c, id)| (c.to_string(), id.into())).collect();
    vocab.insert("<|end|>".into(), 96.into());
    let byte_level =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    serde_json::json!({
        "version": "1.0",
        "added_tokens": [{ "id": 96, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
}

/// A folder with the tiny model and lines of text.
pub(crate) struct Workshop {
    folder: TempDir,
}

impl Workshop {
    pub(crate) fn new(lines: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("base");
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("gem_tiny").join(file), model.join(file)).unwrap();
        }
        std::fs::write(model.join("tokenizer.json"), tokenizer_json()).unwrap();
        let mut text = String::new();
        lines.iter().for_each(|line| writeln!(text, "{line}").unwrap());
        std::fs::write(folder.path().join("lines.txt"), text).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn model(&self) -> ModelFiles {
        ModelFiles::Directory(self.path("base"))
    }

    pub(crate) fn base(&self) -> BaseModel {
        BaseModel::load(&self.model()).unwrap()
    }

    /// Makes the base model another one, by one bit.
    pub(crate) fn change_base(&self) {
        let weights = self.path("base/model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let at = bytes.len() - 4;
        bytes[at] ^= 1;
        // The file is mapped by models that are in use: it is replaced, not changed.
        std::fs::remove_file(&weights).unwrap();
        std::fs::write(&weights, bytes).unwrap();
    }

    pub(crate) fn recipe(&self, changes: &[&str]) -> Recipe {
        let text = format!(
            "model = 'tiny'\n[method]\nname = 'gem'\n[method.settings]\nnum_special_tokens = 3\n[data]\npaths = [{:?}]\n\
             [budget]\nrows = 80\nbatch_rows = 4\nmin_tokens = 1\nmax_tokens = 24\nshuffle_buffer = 5\n[lora]\nr = 4\n\
             [loss.alpha]\nform = 'constant'\nvalue = 0.4\n[optimizer]\nlearning_rate = 5e-3\n",
            self.path("lines.txt")
        );
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        Recipe::parse(&text, &changes).unwrap()
    }

    pub(crate) fn options(&self, out: &str) -> RunOptions {
        RunOptions { out: self.path(out), checkpoint_every_steps: 7, keep_checkpoints: 3, stop_after_steps: 0 }
    }
}

/// All that a run told, and what it left behind.
pub(crate) struct Told {
    pub(crate) metrics: Vec<StepMetrics>,
    pub(crate) resumed: Vec<u64>,
    /// Step, what was measured, whether within the budget.
    pub(crate) damages: Vec<(u64, Damage, bool)>,
    result: Result<Outcome, Error>,
    params: Vec<ParamState>,
}

/// Name, value and both moments of a parameter.
type ParamState = (String, Vec<f32>, Vec<f32>, Vec<f32>);

impl Told {
    pub(crate) fn error(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }

    pub(crate) fn outcome(&self) -> &Outcome {
        self.result.as_ref().unwrap()
    }
}

pub(crate) fn train(recipe: &Recipe, base: &mut BaseModel, options: RunOptions) -> Told {
    let (mut metrics, mut resumed, mut damages) = (Vec::new(), Vec::new(), Vec::new());
    let mut trainer = match Trainer::new(recipe.clone(), base, options) {
        Ok(trainer) => trainer,
        Err(error) => return Told { metrics, resumed, damages, result: Err(error), params: Vec::new() },
    };
    let result = trainer.run(&AtomicBool::new(false), &mut |event| {
        match event {
            Event::Step(step) => metrics.push(*step),
            Event::Resumed { step } => resumed.push(step),
            Event::Damage { step, damage, within_budget } => damages.push((step, *damage, within_budget)),
            Event::Checkpoint(_) | Event::Validation { .. } => {}
        }
        Ok(())
    });
    let param = |p: &lapidary::train::optimizer::Param| {
        let (first, second) = p.moments.to_vecs().unwrap();
        (p.name.clone(), values(&p.var), first, second)
    };
    Told { metrics, resumed, damages, result, params: trainer.params().iter().map(param).collect() }
}

/// Without what a clock says, and comparable: no similarity loss is -1.
pub(crate) fn timeless(metrics: &[StepMetrics]) -> Vec<StepMetrics> {
    let similarity = |m: &StepMetrics| if m.similarity.is_nan() { -1.0 } else { m.similarity };
    let timeless = |m: &StepMetrics| StepMetrics {
        tokens_per_sec: 0.0,
        train_secs: 0.0,
        similarity: similarity(m),
        alignment: -1.0,
        ..*m
    };
    metrics.iter().map(timeless).collect()
}

fn mean(metrics: &[StepMetrics], of: impl Fn(&StepMetrics) -> f64) -> f64 {
    metrics.iter().map(of).sum::<f64>() / metrics.len() as f64
}

fn assert_same_params(found: &Told, want: &Told) {
    for (found, want) in found.params.iter().zip(&want.params) {
        assert_eq!(found.0, want.0);
        assert_eq!(bits(&found.1), bits(&want.1), "{}: values", want.0);
        assert_eq!(bits(&found.2), bits(&want.2), "{}: first moments", want.0);
        assert_eq!(bits(&found.3), bits(&want.3), "{}: second moments", want.0);
    }
    assert_eq!(found.params.len(), want.params.len());
}

#[test]
fn eight_texts_are_learned_by_heart() {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&["budget.rows=640", "budget.batch_rows=8", "lora.r=8", "optimizer.learning_rate=1e-2"]);
    let told = train(&recipe, &mut shop.base(), shop.options("run"));
    assert!(told.outcome().finished);
    let (first, last) = (&told.metrics[..5], &told.metrics[75..]);
    for (name, of) in
        [("next-token", (|m| m.next_token) as fn(&StepMetrics) -> f64), ("contrastive", |m| m.contrastive)]
    {
        let (before, after) = (mean(first, of), mean(last, of));
        assert!(after < 0.7 * before, "{name}: {before} before, {after} after");
    }
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_stopped() {
    // Thirteen rows, four a step: passes end within steps; two of them are too short, one is cut.
    let mut lines: Vec<&str> = TEXTS.to_vec();
    lines.extend(["a", "be", "one more text which is longer than the others are", "no", "yes and no"]);
    let shop = Workshop::new(&lines);
    for extra in [
        "loss.hidden_dropout=0.1",
        "loss.learnable_temperature=true",
        "loss.teacher.methods=[{name='mean'}, {name='last'}]",
    ] {
        let recipe = shop.recipe(&[extra, "budget.min_tokens=3"]);
        let name = |run: &str| format!("{run} {extra}");
        let straight = train(&recipe, &mut shop.base(), shop.options(&name("straight")));
        let parts: Vec<Told> = [10, 3, 0]
            .map(|stop_after_steps| {
                let options = RunOptions { stop_after_steps, ..shop.options(&name("parts")) };
                train(&recipe, &mut shop.base(), options)
            })
            .into();
        assert_eq!(parts.iter().map(|part| part.resumed.clone()).collect::<Vec<_>>(), [vec![], vec![10], vec![13]]);
        assert_eq!(parts.iter().map(|part| part.outcome().finished).collect::<Vec<_>>(), [false, false, true]);
        let metrics: Vec<StepMetrics> = parts.iter().flat_map(|part| part.metrics.clone()).collect();
        assert_eq!(timeless(&metrics), timeless(&straight.metrics));
        assert_same_params(&parts[2], &straight);
        let state = |told: &Told| State {
            train_secs: 0.0,
            cpu_secs: None,
            tensors_hash: String::new(),
            ..told.outcome().state.clone()
        };
        assert_eq!(state(&parts[2]), state(&straight));
        assert!(straight.outcome().state.position.epoch >= 7 && straight.outcome().state.position.num_short > 0);
        assert!(straight.outcome().state.position.num_cut > 0);
        let texts = ["a man sleeps", "the sea"];
        let embed = |run: &str| {
            Lapidary::load(&shop.path(&name(run)).join("model"), &shop.model()).unwrap().embed(&texts).unwrap()
        };
        assert_eq!(embed("parts"), embed("straight"));
    }
}

#[test]
fn a_finished_run_is_not_run_again() {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&["budget.rows=12"]);
    let first = train(&recipe, &mut shop.base(), shop.options("run"));
    let again = train(&recipe, &mut shop.base(), shop.options("run"));
    assert_eq!((again.resumed.as_slice(), again.metrics.len()), (&[3][..], 0));
    assert_same_params(&again, &first);
}

#[test]
fn a_checkpoint_from_before_a_setting_existed_goes_on() {
    let shop = Workshop::new(&TEXTS);
    let options = RunOptions { stop_after_steps: 2, ..shop.options("run") };
    assert!(!train(&shop.recipe(&[]), &mut shop.base(), options.clone()).outcome().finished);
    let state = shop.path("run/checkpoints/step-00000002/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    let setting = r#"cut = \"longest\"\n"#;
    assert!(text.contains(setting), "{text}");
    std::fs::write(&state, text.replace(setting, "")).unwrap();
    assert_eq!(train(&shop.recipe(&[]), &mut shop.base(), options).resumed, [2]);
}

#[test]
fn another_recipe_cannot_resume() {
    let shop = Workshop::new(&TEXTS);
    let options = RunOptions { stop_after_steps: 2, ..shop.options("run") };
    assert!(!train(&shop.recipe(&[]), &mut shop.base(), options.clone()).outcome().finished);
    let told = train(&shop.recipe(&["seed=1"]), &mut shop.base(), options);
    assert!(told.error().contains("another recipe"), "{}", told.error());
}

#[test]
fn a_damaged_checkpoint_falls_back_on_the_one_before() {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&[]);
    let straight = train(&recipe, &mut shop.base(), shop.options("straight"));
    for (run, file, keep) in [
        ("a", "state.safetensors", 100),
        ("b", "state.json", 10),
        ("c", "state.safetensors", 0),
        ("d", "state.json", 0),
    ] {
        train(&recipe, &mut shop.base(), RunOptions { stop_after_steps: 10, ..shop.options(run) });
        let newest = shop.path(run).join("checkpoints/step-00000010").join(file);
        let mut bytes = std::fs::read(&newest).unwrap();
        bytes.truncate(bytes.len() * keep / 100);
        if keep == 100 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        std::fs::write(&newest, bytes).unwrap();
        let told = train(&recipe, &mut shop.base(), shop.options(run));
        assert_eq!(told.resumed, [7], "{run}");
        assert_same_params(&told, &straight);
    }
}

#[test]
fn when_every_checkpoint_is_damaged_nothing_is_started_over() {
    let shop = Workshop::new(&TEXTS);
    train(&shop.recipe(&[]), &mut shop.base(), RunOptions { stop_after_steps: 2, ..shop.options("run") });
    std::fs::write(shop.path("run/checkpoints/step-00000002/state.safetensors"), b"").unwrap();
    let told = train(&shop.recipe(&[]), &mut shop.base(), shop.options("run"));
    assert!(told.error().contains("state.safetensors: expected hash"), "{}", told.error());
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_its_rows() {
    let shop = Workshop::new(&TEXTS);
    for full in ["trained=lora", "trained=full"] {
        let recipe = shop.recipe(&[
            "optimizer.learning_rate=1e30",
            "optimizer.warmup_ratio=0",
            full,
            "method.settings.scope=all",
        ]);
        let options = RunOptions { checkpoint_every_steps: 1, ..shop.options(full) };
        let told = train(&recipe, &mut shop.base(), options);
        let message = told.error();
        assert!(matches!(told.result, Err(Error::Training { .. })), "{message}");
        assert!(message.starts_with("training stopped at step "), "{message}");
        let names_rows = TEXTS.len() >= 4 && (1..=8).any(|row| message.contains(&format!("lines.txt:{row}")));
        assert!(names_rows, "{message}");
        assert!(shop.path(full).join(format!("checkpoints/step-{:08}", told.metrics.len())).is_dir());
        assert!(told.metrics.iter().all(|m| m.loss.is_finite() && m.grad_norm.is_finite()));
    }
}

/// The learning rate is 0 in f32, and every step has the same rows and no noise.
#[test]
fn a_loss_that_never_moves_stops_the_run() {
    let shop = Workshop::new(&TEXTS[..4]);
    let still = ["optimizer.learning_rate=1e-60", "optimizer.special_learning_rate=1e-60", "budget.shuffle_buffer=1"];
    let recipe = shop.recipe(
        &[
            &still[..],
            &[
                "budget.rows=200",
                "method.settings.token_dropout.ratio=0.0",
                "method.settings.token_dropout.form=visibility",
            ],
        ]
        .concat(),
    );
    let told = train(&recipe, &mut shop.base(), shop.options("run"));
    assert!(told.error().starts_with("training stopped at step 20: the loss is "), "{}", told.error());
}

#[test]
fn collapsed_vectors_stop_the_run() {
    let shop = Workshop::new(&[TEXTS[0]; 4]);
    let told = train(&shop.recipe(&["budget.rows=200"]), &mut shop.base(), shop.options("run"));
    assert!(told.error().starts_with("training stopped at step 20: the vectors have collapsed"), "{}", told.error());
}

/// The vectors of the variables in memory, raw.
fn vectors_of(base: &BaseModel, recipe: &Recipe, told: &Told, texts: &[&str]) -> Vec<Vec<f32>> {
    let method = build_method(base, "gem", recipe.method.settings.clone().into()).unwrap();
    let special = special_rows(base, method.as_ref()).unwrap();
    let lora = told.params.iter().any(|p| p.0.contains("lora_A")).then(|| recipe.lora.clone());
    let adapter = Adapter::new(&base.decoder, lora, &special, &mut Rng::seed_from_u64(0)).unwrap();
    let vars =
        adapter.lora_vars().into_iter().chain([("special_tokens".to_owned(), adapter.special_var().unwrap().clone())]);
    for (name, var) in vars {
        let trained = told.params.iter().find(|param| param.0 == name).unwrap();
        var.set(&Tensor::from_vec(trained.1.clone(), var.dims(), var.device()).unwrap()).unwrap();
    }
    let (decoder, view) = (base.decoder.detached(), adapter.view(false));
    let embedder = Embedder {
        decoder: &decoder,
        tokenizer: &base.tokenizer,
        method: method.as_ref(),
        adapter: Some(&view),
        standardisation: None,
    };
    embedder.embed(texts, &raw(), &mut |_| {}).unwrap().vectors
}

fn raw() -> EmbedOptions {
    EmbedOptions { standardise: false, normalise: false, ..EmbedOptions::default() }
}

/// In the mode `trained`: what is saved gives the vectors of what was trained, wherever it is moved.
fn saved_and_loaded(trained: &str, tolerance: f64) {
    let shop = Workshop::new(&TEXTS);
    let recipe = shop.recipe(&[trained, "method.settings.scope=all", "optimizer.learning_rate=2e-3"]);
    let texts = ["a man sleeps", "the sea is blue", "Green"];
    let mut base = shop.base();
    let told = train(&recipe, &mut base, shop.options("run"));
    let model = told.outcome().model.clone().unwrap();
    let want = vectors_of(&base, &recipe, &told, &texts);
    let loaded = Lapidary::load(&model, &shop.model()).unwrap();
    let found = loaded.embed_with(&texts, &raw(), &mut |_| {}).unwrap().vectors;
    let untrained = Lapidary::untrained(&shop.model(), "gem", recipe.method.settings.clone().into()).unwrap();
    let before = untrained.embed_with(&texts, &raw(), &mut |_| {}).unwrap().vectors;
    for ((found, want), before) in found.iter().zip(&want).zip(&before) {
        close_to_each_other(found, want, tolerance, "vector");
        assert!(want.iter().zip(before).any(|(a, b)| (a - b).abs() > 0.05), "training moved nothing");
    }
    let unit = loaded.embed(&texts).unwrap();
    assert!(unit.iter().all(|v| (v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    std::fs::rename(&model, shop.path("moved")).unwrap();
    let moved = Lapidary::load(&shop.path("moved"), &shop.model()).unwrap();
    assert_eq!((moved.fingerprint(), moved.embed(&texts).unwrap()), (loaded.fingerprint(), unit));
    every_file_counts(&shop.path("moved"), &shop.model(), &loaded.fingerprint());
    wrong_base(&shop);
}

/// The fingerprint tells apart any two GEMs whose vectors may differ.
fn every_file_counts(model: &Path, base: &ModelFiles, fingerprint: &str) {
    for file in
        ["adapter_model.safetensors", "special_tokens.safetensors", "standardisation.safetensors", "model.safetensors"]
    {
        let path = model.join(file);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let mut changed = bytes.clone();
        // The lowest byte of a number: its value changes and stays finite.
        let at = changed.len() - 4;
        changed[at] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert_ne!(Lapidary::load(model, base).unwrap().fingerprint(), fingerprint, "{file}");
        std::fs::write(&path, bytes).unwrap();
    }
    let path = model.join("adapter_config.json");
    if let Ok(text) = std::fs::read_to_string(&path) {
        std::fs::write(&path, text.replace("\"lora_alpha\": 32.0", "\"lora_alpha\": 16.0")).unwrap();
        assert_ne!(Lapidary::load(model, base).unwrap().fingerprint(), fingerprint, "lora_alpha");
        std::fs::write(&path, text).unwrap();
    }
}

fn wrong_base(shop: &Workshop) {
    shop.change_base();
    let found = Lapidary::load(&shop.path("moved"), &shop.model());
    assert!(matches!(found, Err(Error::Fingerprint { .. })), "{:?}", found.err());
}

/// The adapter is saved in bf16: a relative error of 2^-9 for each number of A and B.
#[test]
fn an_adapter_is_saved_and_loaded() {
    saved_and_loaded("trained=lora", 1e-2);
}

#[test]
fn a_full_fine_tune_is_saved_and_loaded() {
    saved_and_loaded("trained=full", 1e-6);
}
