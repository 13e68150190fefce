//! What training costs the model as a language model: measured, held to the recipe's budget, the same after a resume.

use std::collections::BTreeMap;
use std::path::Path;

use lapidary::Lapidary;
use lapidary::eval::damage::drift;
use lapidary::eval::language::LanguageModel;
use lapidary::eval::task::TaskKind;
use lapidary::eval::task::language::{LanguageOptions, score_language_task};
use lapidary::train::{Recipe, RunOptions, State};

use crate::training::{TEXTS, Told, Workshop, timeless, tokenizer_json, train};

/// Twenty steps, measured at every fifth.
const MEASURED: [&str; 3] = ["validation.every_steps=5", "method.settings.scope=all", "damage.num_chats=3"];
const CHATS: [&str; 3] = ["where do trains go", "the sea", "old tea"];

fn workshop() -> Workshop {
    let shop = Workshop::new(&TEXTS);
    let chats: String = CHATS.iter().map(|said| format!("{}\n", serde_json::json!({ "text": said }))).collect();
    std::fs::write(shop.path("chats.jsonl"), chats).unwrap();
    shop
}

fn recipe(shop: &Workshop, changes: &[&str]) -> Recipe {
    let chats = format!("damage.chats={:?}", shop.path("chats.jsonl"));
    shop.recipe(&[&MEASURED[..], &[&chats], changes].concat())
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())).collect()
}

fn state(told: &Told) -> State {
    State { train_secs: 0.0, cpu_secs: None, tensors_hash: String::new(), ..told.outcome().state.clone() }
}

/// A limit between the damage of some measurement and that of the next, and the number of the latter.
fn limit_between(told: &Told) -> (f64, usize) {
    let found: Vec<f64> = told.damages.iter().map(|(_, damage, _)| damage.mean_kl).collect();
    let before = |next: usize| found[..next].iter().copied().fold(0.0, f64::max);
    let next = (1..found.len()).find(|next| found[*next] > 1.01 * before(*next)).expect("the damage grows");
    (f64::midpoint(before(next), found[next]), next)
}

#[test]
fn a_run_beyond_its_budget_stops_and_keeps_what_was_within_it() {
    let shop = workshop();
    for (name, more) in [("lora", vec![]), ("full", vec!["trained=full", "optimizer.learning_rate=1e-3"])] {
        let with = |limit: f64| recipe(&shop, &[&more[..], &[&format!("damage.max_kl={limit}")]].concat());
        let run = |run: &str, limit: f64, stop_after_steps: u64| {
            let options = RunOptions { stop_after_steps, ..shop.options(&format!("{name} {run}")) };
            train(&with(limit), &mut shop.base(), options)
        };
        let dir = |run: &str, part: &str| shop.path(&format!("{name} {run}")).join(part);
        let free = run("free", 1e9, 0);
        assert_eq!(free.damages.iter().map(|(step, ..)| *step).collect::<Vec<_>>(), [5, 10, 15, 20]);
        assert!(free.damages.iter().all(|(_, damage, within)| *within && damage.mmlu_drop.is_none()));
        assert!(free.damages.iter().all(|(_, damage, _)| 0.0 < damage.mean_kl && damage.mean_kl < damage.max_kl));

        let (limit, beyond) = limit_between(&free);
        let limited = run("limited", limit, 0);
        let (last_good, end) = (5 * beyond as u64, 5 * (beyond as u64 + 1));
        let outcome = limited.outcome();
        assert!(outcome.finished);
        assert_eq!((outcome.state.step, outcome.state.within_budget), (end, Some(last_good)), "{name}");
        assert!(outcome.state.over_budget.as_ref().unwrap().starts_with("mean KL(base || model) is "));
        assert_eq!(timeless(&limited.metrics), timeless(&free.metrics[..end as usize]));
        for ((found, free), number) in limited.damages.iter().zip(&free.damages).zip(0..) {
            assert_eq!((found.0, found.1, found.2), (free.0, free.1, number < beyond));
        }
        assert_eq!(limited.damages.len(), beyond + 1);

        // The model is that of the last measurement within the budget.
        assert!(!run("halted", limit, last_good).outcome().finished);
        assert_eq!(files(&dir("limited", "model")), files(&dir("halted", "best")), "{name}");

        for (stop_after_steps, finished) in [(3, false), (last_good, false), (0, true)] {
            assert_eq!(run("parts", limit, stop_after_steps).outcome().finished, finished);
        }
        let again = run("parts", limit, 0);
        assert_eq!((again.resumed.as_slice(), again.metrics.len(), again.damages.len()), (&[end][..], 0, 0));
        assert_eq!(state(&again), state(&limited));
        assert_eq!(files(&dir("parts", "model")), files(&dir("limited", "model")));
    }
}

/// The validation chooses among what is within the budget alone.
#[test]
fn the_best_model_is_within_the_budget() {
    let shop = workshop();
    let pairs: String = (0..8).map(|i| format!("{},{},{}\n", TEXTS[i], TEXTS[(3 * i + 1) % 8], i % 5)).collect();
    std::fs::write(shop.path("sts.csv"), format!("sentence1,sentence2,score\n{pairs}")).unwrap();
    let sts = format!("validation.sts={:?}", shop.path("sts.csv"));
    let free = train(&recipe(&shop, &[&sts, "damage.max_kl=1e9"]), &mut shop.base(), shop.options("free"));
    let (limit, beyond) = limit_between(&free);
    let limited = recipe(&shop, &[&sts, &format!("damage.max_kl={limit}")]);
    let told = train(&limited, &mut shop.base(), shop.options("limited"));
    let (_, best) = told.outcome().state.best.unwrap();
    assert!(told.outcome().state.over_budget.is_some() && best <= 5 * beyond as u64);
    assert_eq!(files(&shop.path("limited/model")), files(&shop.path("limited/best")));
}

#[test]
fn without_a_model_within_the_budget_there_is_none() {
    let shop = workshop();
    let told = train(&recipe(&shop, &["damage.max_kl=0"]), &mut shop.base(), shop.options("run"));
    assert!(told.error().starts_with("training stopped at step 5: mean KL(base || model) is "), "{}", told.error());
    assert!(!shop.path("run/model").exists() && !shop.path("run/best").exists());
}

/// By construction nothing is lost, so nothing is measured; asked for, it is measured, and nothing is what is found.
#[test]
fn a_scope_that_promises_an_unchanged_chat_costs_nothing() {
    let shop = workshop();
    for scope in ["special", "embed"] {
        let scope = format!("method.settings.scope={scope}");
        for (always, measurements) in [("false", 0), ("true", 4)] {
            let changes = [scope.as_str(), "damage.max_kl=0", &format!("damage.always={always}")];
            let told = train(&recipe(&shop, &changes), &mut shop.base(), shop.options(&format!("{scope} {always}")));
            assert_eq!((told.outcome().state.step, told.damages.len()), (20, measurements));
            assert!(told.damages.iter().all(|(_, damage, within)| *within && damage.mean_kl == 0.0));
            assert_eq!(told.outcome().state.over_budget, None);
        }
    }
}

/// The tokenizer with four tokens for the letters of the answers in the place of characters that no text here has.
fn with_letters(shop: &Workshop) {
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer_json()).unwrap();
    for (letter, unused) in ["A", "B", "C", "D"].into_iter().zip(["{", "|", "}", "~"]) {
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove(unused).unwrap();
        vocab.insert(format!("Ġ{letter}"), id);
        json["model"]["merges"].as_array_mut().unwrap().push(format!("Ġ {letter}").into());
    }
    std::fs::write(shop.path("base/tokenizer.json"), json.to_string()).unwrap();
    let question = |i: usize| {
        let choices = ["one", "two", "six", "ten"];
        serde_json::json!({ "subject": "sums", "question": format!("{i} and {i}?"), "choices": choices, "answer": i % 4 })
    };
    std::fs::create_dir(shop.path("MMLU")).unwrap();
    for (split, rows) in [("dev", 0..5), ("test", 5..45)] {
        let lines: String = rows.map(|i| format!("{}\n", question(i))).collect();
        std::fs::write(shop.path(&format!("MMLU/{split}.jsonl")), lines).unwrap();
    }
}

/// The figures of a run are those of the model that it leaves: a full fine-tune is saved as it is, in f32.
#[test]
fn figures_are_those_of_the_model_that_is_left() {
    let shop = workshop();
    with_letters(&shop);
    let mmlu = shop.path("MMLU");
    let more = ["trained=full", "damage.max_kl=1e9", "damage.max_mmlu_drop=100", "damage.num_questions=40"];
    let recipe = recipe(&shop, &[&more[..], &[&format!("damage.mmlu={mmlu:?}")]].concat());
    let told = train(&recipe, &mut shop.base(), shop.options("run"));
    let (step, found, within) = *told.damages.last().unwrap();
    assert_eq!((step, within), (20, true));
    let (base, gem) = (shop.base(), Lapidary::load(&shop.path("run/model"), &shop.model()).unwrap());
    let after = LanguageModel {
        base: &base,
        decoder: &gem.base().decoder,
        adapter: gem.adapter(),
        adapts_plain_rows: true,
        anchors: None,
    };
    let before = LanguageModel::of_base(&base);
    let rows: Vec<_> = (CHATS.iter())
        .map(|said| {
            let mut row = base.prompt_ids(said).unwrap();
            row.extend(before.greedy(&row, 32, &base.generation.eos_token_ids).unwrap());
            row
        })
        .collect();
    let drift = drift(&before, &after, &rows, &mut |_| {}).unwrap();
    assert!((found.mean_kl - drift.mean_kl).abs() < 1e-9 && (found.max_kl - drift.max_kl).abs() < 1e-9);
    let accuracy = |model: &LanguageModel<'_>| {
        let options = LanguageOptions::default();
        score_language_task(&mmlu, TaskKind::LetterChoice, model, &options, &mut |_, _| {}).unwrap().metrics[0].1
    };
    let drop = 100.0 * (accuracy(&before) - accuracy(&after));
    assert!((found.mmlu_drop.unwrap() - drop).abs() < 1e-9, "{:?} {drop}", found.mmlu_drop);
}

/// A tokenizer that cannot follow the protocol is told before the first step, not passed over.
#[test]
fn a_figure_that_cannot_be_measured_is_an_error() {
    let shop = workshop();
    let mmlu = shop.path("MMLU");
    let limited = recipe(&shop, &["damage.max_mmlu_drop=1", &format!("damage.mmlu={mmlu:?}")]);
    let told = train(&limited, &mut shop.base(), shop.options("none"));
    assert!(told.error().contains("MMLU"), "{}", told.error());
    with_letters(&shop);
    std::fs::write(shop.path("base/tokenizer.json"), tokenizer_json()).unwrap();
    let told = train(&limited, &mut shop.base(), shop.options("letters"));
    assert!(told.error().contains("answer letter"), "{}", told.error());
    assert_eq!(told.metrics.len(), 0);
}
