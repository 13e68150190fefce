"""Writes which data sets on the hub MTEB's English tasks are: repositories, revisions and subsets, as the mteb package
has them."""

from pathlib import Path

import mteb

OUT = Path(__file__).parent.parent / "crates/cli/src/fetch/data_sets.toml"
PARTS = {
    "STS": ["test"],
    "Classification": ["train", "test"],
    "Clustering": ["test"],
    "PairClassification": ["test"],
    "Summarization": ["test"],
    "Retrieval": ["corpus", "queries", "qrels"],
    "Reranking": ["corpus", "queries", "qrels", "top_ranked"],
}
HEAD = """\
# Which data set of the hub each task is, written by scripts/mteb_data_sets.py from the mteb package {version}.
# `parts` are the tables that the task is read from; `subset` is the one of a multilingual set that is English.

# Where the tables of a set may lie in its repository. The first that is there counts; the ending of a file, or the
# number of a shard, follows. {{subset}} is `default` for a set in one language; sets in several have all tables there.
[places]
test = ["{{subset}}/test", "data/{{subset}}/test", "test/{{subset}}", "data/test/{{subset}}"]
train = ["{{subset}}/train", "data/{{subset}}/train", "train/{{subset}}", "data/train/{{subset}}"]
corpus = ["corpus/corpus", "corpus/test", "corpus/train"]
queries = ["queries/queries", "queries/test", "queries/train", "query/test", "query/query"]
qrels = ["qrels/test", "default/test"]
top_ranked = ["top_ranked/test", "top_ranked/top_ranked", "top_ranked/train"]

# And of sets in one language also here.
[places_of_one]
test = ["data/test", "test"]
train = ["data/train", "train"]
corpus = ["data/corpus", "corpus"]
queries = ["data/queries", "queries"]
qrels = ["data/test", "test"]
top_ranked = ["data/top_ranked", "top_ranked"]

[tasks]
"""


def main() -> None:
    tasks = {}
    for benchmark in ["MTEB(eng, v1)", "MTEB(eng, v2)"]:
        for task in mteb.get_benchmark(benchmark).tasks:
            meta = task.metadata
            # Aggregates have no data of their own; some sets have no test split.
            if "revision" in meta.dataset and "test" in meta.eval_splits and "/" in meta.dataset["path"]:
                tasks[meta.name] = (meta, task.hf_subsets)
    lines = []
    for name, (meta, subsets) in sorted(tasks.items()):
        parts = ", ".join(f'"{part}"' for part in PARTS[meta.type])
        subset = "" if subsets == ["default"] else f', subset = "{subsets[0]}"'
        assert len(subsets) == 1, (name, subsets)
        repository, revision = meta.dataset["path"], meta.dataset["revision"]
        key = f'"{name}"' if "." in name else name
        lines.append(f'{key} = {{ repository = "{repository}", revision = "{revision}"{subset}, parts = [{parts}] }}\n')
    OUT.write_text(HEAD.format(version=mteb.__version__) + "".join(lines))


if __name__ == "__main__":
    main()
