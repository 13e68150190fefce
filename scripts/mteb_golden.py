"""Writes the golden values of whole evaluation tasks: crates/lapidary/tests/golden/eval/tasks.json.

Needs mteb 2.26 and its packages. Each task is run by its official class, with data and vectors made here: a text is
the number of its vector.

    python scripts/mteb_golden.py crates/lapidary/tests/golden/eval
"""

import json
import sys
from pathlib import Path

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta


class Stored(AbsEncoder):
    """The vector of each text by its number."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "golden/stored", "revision": "1"})

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, inputs, **_):
        return self.vectors[[int(text) for batch in inputs for text in batch["text"]]]


def case(name, rows, vectors, metrics):
    """`rows` as the data set has them; the scores of the class `name` on them."""
    vectors = vectors.round(2).astype(np.float32)
    task = mteb.get_task(name)
    task.dataset = DatasetDict({"test": Dataset.from_list(rows)})
    task.dataset_transform()
    task.data_loaded, task.hf_subsets = True, ["default"]
    scores = task.evaluate(Stored(vectors), split="test", encode_kwargs={"batch_size": 32})["default"]
    assert scores["main_score"] == scores[metrics[0]], (name, scores)
    short = [[round(float(x), 2) for x in vector] for vector in vectors]
    return {"name": name, "rows": rows, "vectors": short, "scores": {metric: scores[metric] for metric in metrics}}


def pairs(seed):
    """Lengths differ, so that the four similarities rank differently."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(60, 6))
    labels = rng.integers(0, 2, size=60)
    second = first * labels[:, None] + rng.normal(size=(60, 6)) * rng.uniform(0.5, 3, size=(60, 1))
    rows = [{"sent1": str(i), "sent2": str(60 + i), "labels": int(label)} for i, label in enumerate(labels)]
    return case("SprintDuplicateQuestions", rows, np.r_[first, second],
                ["max_ap", "cosine_ap", "dot_ap", "euclidean_ap", "manhattan_ap"])


def summaries(seed):
    """The last text's summaries are all as relevant, so it has no correlation."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    for text in range(6):
        number = len(vectors)
        human, machine = rng.normal(size=(3, 5)), rng.normal(size=(8, 5))
        machine += human[rng.integers(0, 3, size=8)] * rng.uniform(0, 3, size=(8, 1))
        vectors += [*human, *machine]
        relevance = rng.integers(3, 16, size=8) / 3 if text < 5 else np.full(8, 4.0)
        rows.append({"text": "unused", "human_summaries": [str(number + i) for i in range(3)],
                     "machine_summaries": [str(number + 3 + i) for i in range(8)], "relevance": relevance.tolist()})
    return case("SummEvalSummarization.v2", rows, np.array(vectors), ["cosine_spearman", "dot_spearman"])


def clustering(name, labels, seed, a_row):
    """Eight vectors a class, which its texts share, so that the file stays small."""
    rng = np.random.default_rng(seed)
    names = sorted(set(labels))
    vectors = np.concatenate([rng.normal(size=(8, 3)) + 2 * rng.normal(size=3) for _ in names])
    texts = [str(names.index(label) * 8 + int(rng.integers(8))) for label in labels]
    rows = [{"sentences": texts[i:i + a_row], "labels": labels[i:i + a_row]} for i in range(0, len(labels), a_row)]
    if a_row == 1:
        rows = [{"sentences": row["sentences"][0], "labels": row["labels"][0]} for row in rows]
    return case(name, rows, vectors, ["v_measure", "v_measure_std"])


def clusterings():
    rng = np.random.default_rng(5)
    draw = lambda names, n: [str(name) for name in rng.choice(names, size=n)]
    yield clustering("TwentyNewsgroupsClustering.v2", draw(["a", "b", "c", "d"], 1500), 6, 500)
    yield clustering("BiorxivClusteringP2P.v2", draw(["a", "b", "c"], 1000), 7, 1)
    yield clustering("StackExchangeClusteringP2P.v2", [*draw(["a", "b", "c"], 900), "alone", "once", *draw(["a", "b"], 98)], 8, 500)
    yield clustering("StackExchangeClustering.v2", draw(["a", "b", "b", "c", "d", "d", "e"], 2500), 9, 1250)
    yield clustering("ArXivHierarchicalClusteringS2S", draw(["cs.LG", "cs.CL", "math.AG", "hep-th", "math.CO"], 2400), 10, 800)


def main(out):
    cases = [pairs(1), summaries(2), *clusterings()]
    (out / "tasks.json").write_text(json.dumps(cases) + "\n")
    for each in cases:
        print(each["name"], each["scores"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
