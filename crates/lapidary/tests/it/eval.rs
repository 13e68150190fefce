//! Evaluation against values written by scipy, numpy, scikit-learn and the templates of
//! lm-evaluation-harness (`scripts/eval_golden.py`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lapidary::data::hellaswag::load_hellaswag;
use lapidary::eval::classification::{Protocol, draw_samples};
use lapidary::eval::clustering::{MiniBatch, mini_batch_k_means, v_measure};
use lapidary::eval::language::LanguageModel;
use lapidary::eval::logistic_regression::{LogisticRegression, LogisticRegressionConfig};
use lapidary::eval::metrics::{accuracy, spearman};
use lapidary::eval::multiple_choice::{Question, prompts};
use lapidary::eval::overlap::chrf;
use lapidary::eval::pair_classification::average_precision;
use lapidary::eval::retrieval::{RetrievalTask, score_retrieval};
use lapidary::eval::task::TaskKind;
use lapidary::eval::task::embedding::{Side, score_embedding_task};
use lapidary::model::{BaseModel, ModelFiles};
use serde::de::DeserializeOwned;

use crate::common::real_model;

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/eval/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn spearman_equals_scipy() {
    #[derive(serde::Deserialize)]
    struct Case {
        x: Vec<f64>,
        y: Vec<f64>,
        spearman: f64,
    }
    for case in golden::<Vec<Case>>("spearman") {
        let found = spearman(&case.x, &case.y).unwrap();
        // Both sum at most 400 products of ranks in f64.
        assert!((found - case.spearman).abs() < 1e-12, "{found} {}", case.spearman);
    }
}

#[test]
fn draws_equal_mteb_with_numpy() {
    #[derive(serde::Deserialize)]
    struct Case {
        labels: Vec<usize>,
        experiments: Vec<Vec<usize>>,
    }
    let case: Case = golden("draws");
    let draws = draw_samples(&case.labels, &Protocol::default()).unwrap();
    for (sample, expected) in draws.experiments.iter().zip(&case.experiments) {
        let rows: Vec<usize> = sample.iter().map(|&index| draws.rows[index]).collect();
        assert_eq!(rows, *expected);
    }
    assert_eq!(draws.experiments.len(), case.experiments.len());
}

#[test]
fn average_precision_equals_scikit_learn() {
    #[derive(serde::Deserialize)]
    struct Case {
        relevant: Vec<bool>,
        scores: Vec<f64>,
        average_precision: f64,
    }
    for case in golden::<Vec<Case>>("average_precision") {
        let found = average_precision(&case.relevant, &case.scores).unwrap();
        assert!((found - case.average_precision).abs() < 1e-12, "{found} {}", case.average_precision);
    }
}

#[test]
fn chrf_equals_sacrebleu() {
    #[derive(serde::Deserialize)]
    struct Case {
        pairs: Vec<(String, String)>,
        chrf: f64,
    }
    let case: Case = golden("chrf");
    let pairs: Vec<(&str, &str)> = case.pairs.iter().map(|(found, original)| (&**found, &**original)).collect();
    let found = chrf(&pairs).unwrap();
    assert!((found - case.chrf).abs() < 1e-12, "{found} {}", case.chrf);
}

#[test]
fn clusters_equal_scikit_learn() {
    #[derive(serde::Deserialize)]
    struct Case {
        num_clusters: usize,
        vectors: Vec<Vec<f32>>,
        labels: Vec<usize>,
        clusters: Vec<usize>,
        v_measure: f64,
    }
    for case in golden::<Vec<Case>>("clustering") {
        let found = v_measure(&case.labels, &case.clusters).unwrap();
        assert!((found - case.v_measure).abs() < 1e-12, "{found} {}", case.v_measure);
        let clusters =
            mini_batch_k_means(&case.vectors, case.num_clusters, &MiniBatch { batch_size: 500, seed: 42 }).unwrap();
        assert_eq!(clusters, case.clusters);
    }
}

#[test]
fn retrieval_equals_trec_eval() {
    #[derive(serde::Deserialize)]
    struct Case {
        queries: Vec<Vec<f32>>,
        documents: Vec<Vec<f32>>,
        document_ids: Vec<String>,
        judgements: Vec<Vec<(usize, u32)>>,
        ndcg_cut_10: f64,
        map_cut_10: f64,
        map_cut_1000: f64,
        recall_10: f64,
        recall_100: f64,
    }
    let case: Case = golden("retrieval");
    let judgements: Vec<_> = case.judgements.into_iter().map(|query| query.into_iter().collect()).collect();
    let itself = vec![None; judgements.len()];
    let task =
        RetrievalTask { document_ids: &case.document_ids, judgements: &judgements, candidates: None, itself: &itself };
    let found = score_retrieval(&case.queries, &case.documents, &task).unwrap();
    for (found, want) in [
        (found.ndcg_at_10, case.ndcg_cut_10),
        (found.map_at_10, case.map_cut_10),
        (found.map_at_1000, case.map_cut_1000),
        (found.recall_at_10, case.recall_10),
        (found.recall_at_100, case.recall_100),
    ] {
        assert!((found - want).abs() < 1e-9, "{found} {want}");
    }
}

#[test]
fn logistic_regression_equals_scikit_learn() {
    #[derive(serde::Deserialize)]
    struct Fit {
        num_iterations: usize,
        coef: Vec<Vec<f64>>,
        intercept: Vec<f64>,
        predictions: Vec<usize>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        num_classes: usize,
        vectors: Vec<Vec<f32>>,
        labels: Vec<usize>,
        test_vectors: Vec<Vec<f32>>,
        /// To the minimum, in f64.
        exact: Fit,
        /// With the default settings, in f32.
        usual: Fit,
    }
    for case in golden::<Vec<Case>>("logistic_regression") {
        let fit = |config| LogisticRegression::fit(&case.vectors, &case.labels, case.num_classes, &config).unwrap();
        let farthest = |fitted: &LogisticRegression, expected: &Fit| {
            let coefficients = fitted.coefficients();
            assert_eq!(coefficients.len(), expected.coef.len());
            let expected =
                expected.coef.iter().zip(&expected.intercept).flat_map(|(row, last)| row.iter().chain([last]));
            coefficients.iter().flatten().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };

        let exact = fit(LogisticRegressionConfig { tol: 1e-10, max_iter: 10_000, ..Default::default() });
        assert_eq!(exact.predict(&case.test_vectors).unwrap(), case.exact.predictions);
        // Gradients below 1e-10 over curvatures above 1e-3.
        assert!(farthest(&exact, &case.exact) < 1e-6, "{}", farthest(&exact, &case.exact));

        let usual = fit(LogisticRegressionConfig::default());
        assert_eq!(usual.num_iterations(), case.usual.num_iterations);
        assert_eq!(usual.predict(&case.test_vectors).unwrap(), case.usual.predictions);
        // scikit-learn itself differs by up to 6e-6 between f32 and f64; the minimum is up to 5e-3 away.
        assert!(farthest(&usual, &case.usual) < 1e-4, "{}", farthest(&usual, &case.usual));
    }
}

/// Whole tasks: their files, what is embedded of them, and the scores.
#[test]
fn tasks_score_as_with_mteb() {
    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        rows: Vec<serde_json::Value>,
        vectors: Vec<Vec<f32>>,
        scores: BTreeMap<String, f64>,
    }
    for case in golden::<Vec<Case>>("tasks") {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = case.rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
        let kind = TaskKind::of(dir.path()).unwrap().unwrap();
        // A text is the number of its vector.
        let mut embed = |texts: &[&str], _| {
            Ok(texts.iter().map(|text| case.vectors[text.parse::<usize>().unwrap()].clone()).collect())
        };
        let score = score_embedding_task(dir.path(), &case.name, kind, &mut embed).unwrap();
        assert_eq!(score.metrics.len(), case.scores.len());
        for (metric, found) in &score.metrics {
            // mteb computes similarities in f32.
            assert!(
                (found - case.scores[*metric]).abs() < 1e-6,
                "{} {metric}: {found} {}",
                case.name,
                case.scores[*metric]
            );
        }
    }
}

/// Not a golden value: the size of Banking77 with the vectors of a small model.
#[test]
fn logistic_regression_of_77_classes_is_quick() {
    let (num_classes, width) = (77, 576);
    // A rotation by an irrational angle spreads the entries; each class has its own offset.
    let vectors: Vec<Vec<f32>> = (0..616)
        .map(|row| {
            let entry = |d: usize| {
                let centre = (((row % num_classes) * 97 + d * 31) as f32 * 0.618).sin();
                let noise = ((row * 7919 + d * 104_729) as f32 * 0.414).sin();
                (centre + noise) / (width as f32).sqrt()
            };
            (0..width).map(entry).collect()
        })
        .collect();
    let labels: Vec<usize> = (0..616).map(|row| row % num_classes).collect();
    let config = LogisticRegressionConfig::default();
    let start = Instant::now();
    let fitted = LogisticRegression::fit(&vectors, &labels, num_classes, &config).unwrap();
    let predicted = fitted.predict(&vectors).unwrap();
    println!("fit and prediction took {:?}", start.elapsed());
    assert!(accuracy(&predicted, &labels).unwrap() > 0.99);
}

#[test]
fn queries_and_documents_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("R/corpus.jsonl", "{\"_id\":\"d\",\"title\":\"\",\"text\":\"document\"}\n");
    write("R/queries.jsonl", "{\"_id\":\"q\",\"text\":\"query\"}\n");
    write("R/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td\t1\n");
    write("O/test.jsonl", "{\"query\":\"query\",\"positive\":[\"document\"],\"negative\":[\"document 2\"]}\n");
    write("P/test.jsonl", "{\"sentence1\":\"query\",\"sentence2\":\"query 2\",\"labels\":1}\n");
    for name in ["R", "O", "P"] {
        let dir = dir.path().join(name);
        let kind = TaskKind::of(&dir).unwrap().unwrap();
        let mut sides = Vec::new();
        let mut embed = |texts: &[&str], side| {
            assert!(texts.iter().all(|text| text.starts_with("query") == (side == Side::Query)), "{texts:?} {side:?}");
            sides.push(side);
            Ok(vec![vec![1.0f32, 2.0]; texts.len()])
        };
        score_embedding_task(&dir, name, kind, &mut embed).unwrap();
        assert_eq!(sides.contains(&Side::Document), name != "P");
    }
}

#[test]
fn hellaswag_is_prepared_as_by_the_harness() {
    #[derive(serde::Deserialize)]
    struct Case {
        row: serde_json::Value,
        query: String,
        choices: Vec<String>,
        gold: usize,
    }
    let file = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
    let cases: Vec<Case> = golden("hellaswag");
    std::fs::write(file.path(), cases.iter().map(|case| format!("{}\n", case.row)).collect::<String>()).unwrap();
    let found = load_hellaswag(file.path()).unwrap();
    assert_eq!(found.len(), cases.len());
    for (found, case) in found.iter().zip(cases) {
        assert_eq!((&found.question, &found.choices, found.answer), (&case.query, &case.choices, case.gold));
    }
    for (wrong, what) in [
        (r#"{"activity_label":"x","ctx_a":"y","ctx_b":"z","endings":["a","b"],"label":"2"}"#, "label"),
        (r#"{"activity_label":"x","ctx_a":"y","ctx_b":"z","endings":["a"],"label":"0"}"#, "endings"),
    ] {
        std::fs::write(file.path(), wrong).unwrap();
        let error = load_hellaswag(file.path()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn prompts_equal_the_harness() {
    #[derive(serde::Deserialize)]
    struct Document {
        subject: String,
        question: String,
        choices: [String; 4],
        answer: u8,
    }
    impl From<Document> for Question {
        fn from(document: Document) -> Self {
            Self {
                subject: document.subject,
                question: document.question,
                choices: document.choices,
                answer: document.answer,
            }
        }
    }
    #[derive(serde::Deserialize)]
    struct Case {
        dev: Vec<Document>,
        question: Document,
        prompt: String,
    }
    let (mut dev, mut questions, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for case in golden::<Vec<Case>>("mmlu") {
        dev.extend(case.dev.into_iter().map(Question::from));
        questions.push(case.question.into());
        expected.push(case.prompt);
    }
    assert_eq!(prompts(&questions, &dev, 5).unwrap(), expected);
}

/// Prompts that begin alike share what has run of them, and score as they do alone.
#[test]
fn letter_scores_do_not_depend_on_the_prompt_before() {
    let base = BaseModel::load(&ModelFiles::Gguf(real_model())).unwrap();
    let model = LanguageModel::of_base(&base);
    let head = "Question: Which is a river?\nA. Rhine\nB. Rome\nC. Rice\nD. Rust\nAnswer: A\n\n";
    let tails =
        ["Question: Which is a city?\nA. Rhine\nB. Rome\nC. Rice\nD. Rust\nAnswer:", "Question: Two and two?\nAnswer:"];
    let prompts: Vec<String> = tails.iter().map(|tail| format!("{head}{tail}")).chain(["Answer:".into()]).collect();
    let together = model.letter_scores(&prompts, &mut |_| {}).unwrap();
    for (prompt, together) in prompts.iter().zip(together) {
        let alone = model.letter_scores(std::slice::from_ref(prompt), &mut |_| {}).unwrap()[0];
        // Sums in another order, over thirty layers.
        assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-3), "{together:?} {alone:?}");
    }
}
