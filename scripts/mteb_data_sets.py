"""Writes which data sets on the hub MTEB's English tasks are: repositories, revisions and subsets, as the mteb package
has them; and those of the language tasks, which lm-evaluation-harness reads without a revision."""

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
LANGUAGE = {
    "ARC-Challenge": ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "ARC-Challenge", ["test"]),
    "ARC-Easy": ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "ARC-Easy", ["test"]),
    "HellaSwag": ("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", None, ["validation"]),
    "LAMBADA": ("EleutherAI/lambada_openai", "879e19a2c9bb7ef03f9cf962089cf7d008f91e27", None, ["test"]),
    "MMLU": ("cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", "all", ["test", "dev"]),
    "WikiText2": ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1", ["lines"]),
}
HEAD = """\
# Which data set of the hub each task is, written by scripts/mteb_data_sets.py from the mteb package {version}.
# `parts` are the tables that the task is read from; `subset` is the one of a multilingual set that is English, or the part
# that a language task is.

# Where the tables of a set may lie in its repository. The first that is there counts; the ending of a file, or the
# number of a shard, follows. {{subset}} is `default` for a set in one language; sets in several have all tables there.
[places]
test = ["{{subset}}/test", "data/{{subset}}/test", "test/{{subset}}", "data/test/{{subset}}"]
train = ["{{subset}}/train", "data/{{subset}}/train", "train/{{subset}}", "data/train/{{subset}}"]
corpus = ["corpus/corpus", "corpus/test", "corpus/train"]
queries = ["queries/queries", "queries/test", "queries/train", "query/test", "query/query"]
qrels = ["qrels/test", "default/test"]
dev = ["{{subset}}/dev"]
lines = ["{{subset}}/test"]
top_ranked = ["top_ranked/test", "top_ranked/top_ranked", "top_ranked/train"]

# And of sets in one language also here.
[places_of_one]
test = ["data/test", "test", "data/lambada_test"]
validation = ["data/validation"]
train = ["data/train", "train"]
corpus = ["data/corpus", "corpus"]
queries = ["data/queries", "queries"]
qrels = ["data/test", "test"]
top_ranked = ["data/top_ranked", "top_ranked"]

[tasks]
"""


def main() -> None:
    tasks = dict(LANGUAGE)
    for benchmark in ["MTEB(eng, v1)", "MTEB(eng, v2)"]:
        for task in mteb.get_benchmark(benchmark).tasks:
            meta = task.metadata
            # Aggregates have no data of their own; some sets have no test split.
            if "revision" in meta.dataset and "test" in meta.eval_splits and "/" in meta.dataset["path"]:
                assert len(task.hf_subsets) == 1, (meta.name, task.hf_subsets)
                subset = None if task.hf_subsets == ["default"] else task.hf_subsets[0]
                tasks[meta.name] = (meta.dataset["path"], meta.dataset["revision"], subset, PARTS[meta.type])
    lines = []
    for name, (repository, revision, subset, parts) in sorted(tasks.items()):
        parts = ", ".join(f'"{part}"' for part in parts)
        subset = "" if subset is None else f', subset = "{subset}"'
        key = f'"{name}"' if "." in name else name
        lines.append(f'{key} = {{ repository = "{repository}", revision = "{revision}"{subset}, parts = [{parts}] }}\n')
    OUT.write_text(HEAD.format(version=mteb.__version__) + "".join(lines))


if __name__ == "__main__":
    main()
