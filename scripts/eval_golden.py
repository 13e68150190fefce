"""Writes the golden values of the evaluation tests: crates/lapidary/tests/golden/eval/*.json.

Needs numpy, scipy, scikit-learn, pytrec-eval-terrier, sacrebleu, jinja2, pyyaml, datasets and the files of lm-eval
(`pip install lm-eval --no-deps` is enough: only its task templates and a preprocessing are read).

    python scripts/eval_golden.py crates/lapidary/tests/golden/eval
"""

import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path

import jinja2
import numpy as np
import pytrec_eval
import sacrebleu
import yaml
from datasets import Dataset
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, v_measure_score


def spearman_cases():
    rng = np.random.default_rng(1)
    cases = []
    for size, levels in [(2, None), (7, 3), (50, None), (50, 6), (400, 26)]:
        x = rng.normal(size=size)
        y = x + rng.normal(size=size)
        if levels:
            y = np.round((y - y.min()) / np.ptp(y) * (levels - 1))
            x = np.round(x, 1)
        cases.append({"x": x.tolist(), "y": y.tolist(), "spearman": float(spearmanr(x, y)[0])})
    return cases


def draws(labels, samples_per_label, experiments, seed):
    """mteb 2.26, AbsTaskClassification._undersample_data, repeated on one list of indices."""
    order = np.arange(len(labels))
    drawn = []
    for _ in range(experiments):
        np.random.RandomState(seed).shuffle(order)
        count = defaultdict(int)
        rows = []
        for i in order:
            if count[labels[i]] < samples_per_label:
                rows.append(int(i))
                count[labels[i]] += 1
        drawn.append(rows)
    return drawn


def regression_case(classes, width, rows, seed, common=None):
    """With `common`, vectors of length one with a common part of that length, as decoders make them: there the default
    settings of scikit-learn stop far from the minimum."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels, test_labels = np.arange(rows) % classes, np.arange(3 * rows) % classes
    vectors, test = (centres[of] + 2.0 * rng.normal(size=(len(of), width)) for of in (labels, test_labels))
    if common is not None:
        direction = rng.normal(size=width)
        direction *= common / np.linalg.norm(direction)
        unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
        vectors, test = (unit(direction + unit(a) * (1 - common**2) ** 0.5) for a in (vectors, test))
    # Rounded first, so that both sides fit the same numbers.
    vectors, test = vectors.round(4).astype(np.float32), test.round(4).astype(np.float32)

    short = lambda a, digits: [[round(float(v), digits) for v in row] for row in a]

    def fit(dtype, **settings):
        model = LogisticRegression(**settings).fit(vectors.astype(dtype), labels)
        # What is nearly a tie is left out below.
        scores = np.sort(np.c_[model.decision_function(test.astype(dtype)), np.zeros((len(test), int(classes == 2)))])
        clear = (scores[:, -1] - scores[:, -2] > 1e-5) & (np.abs(scores).max(axis=1) > 1e-5)
        return clear, {"num_iterations": int(model.n_iter_[0]), "coef": short(model.coef_, 9),
                       "intercept": short([model.intercept_], 9)[0], "predictions": model.predict(test.astype(dtype))}

    (clear, exact), (other, usual) = fit(np.float64, tol=1e-10, max_iter=10_000), fit(np.float32, max_iter=100)
    # Else roundings decide when to stop, and two machines may disagree.
    assert usual["num_iterations"] == fit(np.float64, max_iter=100)[1]["num_iterations"]
    for result in exact, usual:
        result["predictions"] = result["predictions"][clear & other].tolist()
    return {"num_classes": classes, "vectors": short(vectors, 4), "labels": labels.tolist(),
            "test_vectors": short(test[clear & other], 4), "exact": exact, "usual": usual}


def mmlu_case(subject):
    package = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    folder = package / "tasks" / "mmlu" / "default"
    template = yaml.safe_load((folder / "_default_template_yaml").read_text())
    task = yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text().replace("include", "_"))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    ask = environment.from_string(template["doc_to_text"]).render
    document = lambda i: {
        "subject": subject,
        "question": f"  Question {i} of <{subject}>,\nin two lines & with blanks?  ",
        "choices": [f"{i} apples ", f" {i + 1} pears", "it's both", "none {{of}} these"],
        "answer": i % 4,
    }
    dev, question = [document(i) for i in range(6)], document(9)
    # ConfigurableTask.fewshot_context without chat template: target_delimiter " ",
    # fewshot_delimiter two newlines, sampler first_n.
    prompt = task["description"]
    for example in dev[:5]:
        prompt += ask(**example) + " " + template["doc_to_choice"][example["answer"]] + "\n\n"
    prompt += ask(**question)
    return {"dev": dev, "question": question, "prompt": prompt}


def hellaswag_cases():
    """lm-eval, tasks/hellaswag/utils.py."""
    package = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("hellaswag", package / "tasks" / "hellaswag" / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    docs = [
        {"activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
         "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off."], "label": "1"},
        {"activity_label": "Home and Garden", "ctx_a": " [header] How to Paint [title] Buy a BRUSH. [step] Go  there.",
         "ctx_b": "Then  You  PAINT [substeps", "endings": ["[step] Wait. [title] Paint [again] it.", " no] thing ", "x"],
         "label": "0"},
        {"activity_label": "Ödland", "ctx_a": "It is [cold\nand] wet [[here]].", "ctx_b": "", "label": 2,
         "endings": ["a", "b [] c", "ßa   d"]},
        {"activity_label": "x", "ctx_a": "y", "ctx_b": "ßA ÉTÉ", "endings": ["one", "two"], "label": "0"},
    ]
    found = [module.process_docs(Dataset.from_list([doc]))[0] for doc in docs]
    return [{"row": doc, **{name: result[name] for name in ("query", "choices", "gold")}}
            for doc, result in zip(docs, found)]


def average_precision_cases():
    rng = np.random.default_rng(11)
    cases = []
    for size, digits in [(5, 3), (60, 1), (60, 8)]:
        relevant = rng.integers(0, 2, size=size)
        relevant[0] = 1
        scores = (rng.normal(size=size) + relevant).round(digits)
        cases.append({"relevant": relevant.astype(bool).tolist(), "scores": scores.tolist(),
                      "average_precision": float(average_precision_score(relevant, scores))})
    return cases


def clustering_case(rows, width, classes, seed, spread):
    """mteb 2.x, ClusteringEvaluator and AbsTaskClusteringLegacy, one set."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=rows)
    vectors = (rng.normal(size=(classes, width))[labels] * spread + rng.normal(size=(rows, width))).round(2)
    model = MiniBatchKMeans(n_clusters=classes, batch_size=500, n_init="auto", compute_labels=True, random_state=42)
    clusters = model.fit(vectors.astype(np.float32)).labels_
    return {"num_clusters": classes, "vectors": vectors.tolist(), "labels": labels.tolist(),
            "clusters": clusters.tolist(), "v_measure": float(v_measure_score(labels, clusters))}


def retrieval_case(queries, documents, seed):
    """mteb 2.x, calculate_retrieval_scores: pytrec_eval on the cosines, mean over the judged queries."""
    rng = np.random.default_rng(seed)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    q, d = rng.normal(size=(queries, 4)).round(2), rng.normal(size=(documents, 4)).round(2)
    d[7] = d[3]  # equal cosines
    ids = [f"d{i}" for i in range(documents)]
    qrels = {f"q{i}": {ids[j]: int(g) for j, g in zip(rng.choice(documents, 6, replace=False), [0, 1, 1, 2, 3, 1])}
             for i in range(queries)}
    cosines = unit(q).astype(np.float32) @ unit(d).astype(np.float32).T
    run = {f"q{i}": {ids[j]: float(cosines[i, j]) for j in range(documents)} for i in range(queries)}
    measures = {"ndcg_cut_10": "ndcg_cut.10", "map_cut_10": "map_cut.10", "map_cut_1000": "map_cut.1000",
                "recall_10": "recall.10", "recall_100": "recall.100"}
    scores = pytrec_eval.RelevanceEvaluator(qrels, set(measures.values())).evaluate(run)
    return {"queries": q.tolist(), "documents": d.tolist(), "document_ids": ids,
            "judgements": [[[ids.index(k), v] for k, v in qrels[f"q{i}"].items()] for i in range(queries)],
            **{name: float(np.mean([s[name] for s in scores.values()])) for name in measures}}


def chrf_case():
    pairs = [["The cat sat on the mat.", "A cat is sitting on the mat."], ["", "nothing came back"],
             ["Älter als  das Haus", "Das Haus ist älter"], ["short", "a much longer sentence with other words in it"]]
    found, original = zip(*pairs)
    return {"pairs": pairs, "chrf": sacrebleu.corpus_chrf(list(found), [list(original)]).score / 100}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(3).integers(0, 7, size=300).tolist() + [9, 9, 9]
    golden = {
        "spearman": spearman_cases(),
        "draws": {"labels": labels, "experiments": draws(labels, 8, 10, 42)},
        "logistic_regression": [
            regression_case(2, 3, 30, 5),
            regression_case(3, 5, 60, 6),
            regression_case(9, 8, 72, 7, 0.0),
            regression_case(2, 16, 40, 8, 0.97),
            regression_case(2, 16, 40, 9, 0.5),
            regression_case(6, 8, 48, 10, 0.97),
            regression_case(4, 3, 40, 12, 0.9),
        ],
        "average_precision": average_precision_cases(),
        "clustering": [clustering_case(120, 5, 6, 21, 1.5), clustering_case(1600, 4, 9, 22, 1.2)],
        "retrieval": retrieval_case(12, 150, 31),
        "chrf": chrf_case(),
        "hellaswag": hellaswag_cases(),
        "mmlu": [mmlu_case("abstract_algebra"), mmlu_case("high_school_us_history")],
    }
    for name, value in golden.items():
        (out / f"{name}.json").write_text(json.dumps(value) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
