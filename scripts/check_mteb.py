"""Scores of `lapidary eval tasks` against the mteb package on vectors of the same binary, one task of each type.

usage: check_mteb.py DATA_DIR [--binary target/release/lapidary] [-- MODEL OPTIONS such as --model smollm2-135m]
Needs mteb 2.26 and its packages. DATA_DIR has STS17, AmazonCounterfactualClassification, TwentyNewsgroupsClustering,
MSMARCO5k and STSBenchmark in the layout of the mteb data sets. A reranking task is made of MSMARCO5k's judgements, a
pair classification of STSBenchmark's scores: the official sets need the hub. mteb runs its own task classes, evaluators
and metrics; the data are put in their place. Ends with an error where a main score differs by more than 1e-4.
"""
import argparse, json, random, subprocess, sys, tempfile
from pathlib import Path

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from json_lines import rows, write

# Directory of our task: the official class that runs it, and its main score.
TASKS = {
    "STS17": ("STSBenchmark", "cosine_spearman"),
    "AmazonCounterfactualClassification": ("AmazonCounterfactualClassification", "accuracy"),
    "TwentyNewsgroupsClustering": ("TwentyNewsgroupsClustering", "v_measure"),
    "TwentyNewsgroupsClustering.v2": ("TwentyNewsgroupsClustering.v2", "v_measure"),
    "MSMARCO5k": ("SciFact", "ndcg_at_10"),
    "Reranking": ("StackOverflowDupQuestions", "map_at_1000"),
    "PairClassification": ("SprintDuplicateQuestions", "max_ap"),
}


def qrels(directory):
    judged = {}
    for line in (directory / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        judged.setdefault(query, {})[document] = int(grade)
    return judged


def derived(data, out):
    """A reranking and a pair classification task, made of data that is there."""
    corpus = {row["_id"]: row["text"] for row in rows(data / "MSMARCO5k/corpus.jsonl.gz")}
    chance, items = random.Random(0), []
    judged = qrels(data / "MSMARCO5k")
    for query in rows(data / "MSMARCO5k/queries.jsonl.gz"):
        grades = judged.get(query["_id"], {})
        positive = [corpus[d] for d, grade in grades.items() if grade >= 2][:5]
        negative = [corpus[d] for d in chance.sample(sorted(corpus), 15) if grades.get(d, 0) == 0]
        if positive:
            items.append({"query": query["text"], "positive": positive, "negative": negative})
    write(out / "Reranking/test.jsonl.gz", items)
    pairs = [row for row in rows(data / "STSBenchmark/validation.jsonl.gz") if not 2.0 < row["score"] < 3.5]
    write(out / "PairClassification/test.jsonl.gz", [{
        "sentence1": [row["sentence1"] for row in pairs], "sentence2": [row["sentence2"] for row in pairs],
        "labels": [int(row["score"] >= 3.5) for row in pairs]}])


def official_data(task, directory):
    """The data of a directory as the official task class holds them after loading."""
    if task.metadata.type == "Retrieval":
        corpus = [{"id": r["_id"], "title": r["title"], "text": r["text"]} for r in rows(directory / "corpus.jsonl.gz")]
        judged = qrels(directory)
        queries = [{"id": r["_id"], "text": r["text"]} for r in rows(directory / "queries.jsonl.gz") if r["_id"] in judged]
        return {"default": {"test": {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries),
                                     "relevant_docs": judged, "top_ranked": None}}}
    test = rows(directory / "test.jsonl.gz")
    if task.metadata.type == "Reranking":
        corpus, queries, judged, ranked = [], [], {}, {}
        for i, row in enumerate(test):
            queries.append({"id": f"q{i}", "text": row["query"]})
            judged[f"q{i}"], ranked[f"q{i}"] = {}, []
            for j, (text, grade) in enumerate([(t, 1) for t in row["positive"]] + [(t, 0) for t in row["negative"]]):
                corpus.append({"id": f"q{i}d{j:03}", "title": "", "text": text})
                judged[f"q{i}"][f"q{i}d{j:03}"] = grade
                ranked[f"q{i}"].append(f"q{i}d{j:03}")
        return {"default": {"test": {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries),
                                     "relevant_docs": judged, "top_ranked": ranked}}}
    if task.metadata.type == "PairClassification":
        # As the class's own transform leaves them: a pair a row.
        only = test[0]
        test = [dict(zip(("sentence1", "sentence2", "labels"), pair))
                for pair in zip(only["sentence1"], only["sentence2"], only["labels"])]
    splits = {"test": Dataset.from_list(test)}
    if task.metadata.type == "Classification":
        splits["train"] = Dataset.from_list(rows(directory / "train.jsonl.gz"))
    return DatasetDict(splits)


class Encoder(AbsEncoder):
    """Vectors of `lapidary embed`."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "lapidary/checked", "revision": "1"})

    def __init__(self, command):
        self.command = command

    def encode(self, inputs, **_):
        texts = [text for batch in inputs for text in batch["text"]]
        with tempfile.TemporaryDirectory() as work:
            source, vectors = Path(work) / "texts.jsonl", Path(work) / "vectors.npy"
            source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            subprocess.run([*self.command, "--input", source, "--output", vectors], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found = np.load(vectors)
        assert len(found) == len(texts), (len(found), len(texts))
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/lapidary"))
    args, model = parser.parse_known_args()
    model = [option for option in model if option != "--"]
    encoder, wrong = Encoder([args.binary, "embed", "--no-normalise", "--max-tokens", "512", *model]), False
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        data.mkdir()
        for name in TASKS:
            source = args.data / name.removesuffix(".v2")
            if source.is_dir():
                (data / name).symlink_to(source.resolve())
        derived(args.data, data)
        command = [args.binary, "--quiet", "eval", "tasks", data, "--results", Path(work) / "results", *model]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (results,) = Path(work).glob("results/*/*")
        for name, (official, metric) in TASKS.items():
            ours = json.loads((results / f"{name}.json").read_text())["scores"]["test"][0][metric]
            task = mteb.get_task(official)
            task.dataset = official_data(task, data / name)
            if name.endswith(".v2"):
                task.dataset_transform()
            task.data_loaded, task.hf_subsets = True, ["default"]
            scores = task.evaluate(encoder, split="test", encode_kwargs={"batch_size": 32})["default"]
            theirs = scores.get(metric, scores["main_score"])
            differs = abs(ours - theirs) > 1e-4
            wrong |= differs
            print(f"{name:36} {metric:16} ours {ours:.6f}  mteb {theirs:.6f}{'  DIFFERS' if differs else ''}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
