"""Writes the golden values of the evaluation tests: crates/lapidary/tests/golden/eval/*.json.

Needs numpy, scipy, scikit-learn, jinja2, pyyaml and the files of lm-eval
(`pip install lm-eval --no-deps` is enough: only its task templates are read).

    python scripts/eval_golden.py crates/lapidary/tests/golden/eval
"""

import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path

import jinja2
import numpy as np
import yaml
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression


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
    """mteb 1.x, AbsTaskClassification._undersample_data, repeated on one list of indices."""
    np.random.seed(seed)
    order = np.arange(len(labels))
    drawn = []
    for _ in range(experiments):
        np.random.shuffle(order)
        count = defaultdict(int)
        rows = []
        for i in order:
            if count[labels[i]] < samples_per_label:
                rows.append(int(i))
                count[labels[i]] += 1
        drawn.append(rows)
    return drawn


def regression_case(classes, width, rows, seed, normalise):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = np.arange(rows) % classes
    vectors = centres[labels] + 2.0 * rng.normal(size=(rows, width))
    test_labels = np.arange(3 * rows) % classes
    test = centres[test_labels] + 2.0 * rng.normal(size=(3 * rows, width))
    if normalise:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        test /= np.linalg.norm(test, axis=1, keepdims=True)
    # Rounded first, so that both sides fit the same numbers.
    vectors, test = vectors.round(4).astype(np.float32), test.round(4).astype(np.float32)
    exact = LogisticRegression(tol=1e-10, max_iter=10_000).fit(vectors.astype(float), labels)
    usual = LogisticRegression(max_iter=100).fit(vectors.astype(float), labels)
    short = lambda a: [[round(float(v), 4) for v in row] for row in a]
    return {
        "num_classes": classes,
        "vectors": short(vectors),
        "labels": labels.tolist(),
        "test_vectors": short(test),
        "coef": exact.coef_.tolist(),
        "intercept": exact.intercept_.tolist(),
        "exact_predictions": exact.predict(test.astype(float)).tolist(),
        "usual_accuracy": float(np.mean(usual.predict(test.astype(float)) == test_labels)),
        "test_labels": test_labels.tolist(),
    }


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


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(3).integers(0, 7, size=300).tolist() + [9, 9, 9]
    golden = {
        "spearman": spearman_cases(),
        "draws": {"labels": labels, "experiments": draws(labels, 8, 10, 42)},
        "logistic_regression": [
            regression_case(2, 3, 30, 5, False),
            regression_case(3, 5, 60, 6, False),
            regression_case(9, 16, 72, 7, True),
        ],
        "mmlu": [mmlu_case("abstract_algebra"), mmlu_case("high_school_us_history")],
    }
    for name, value in golden.items():
        (out / f"{name}.json").write_text(json.dumps(value) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
