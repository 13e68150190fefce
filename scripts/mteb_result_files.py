"""Writes result files with the mteb package itself, and the scores that it reads from them again: what `lapidary report`
has to read. The scores are made up; the layout is the package's."""

import json
import shutil
from pathlib import Path

import mteb
from mteb.models import ModelMeta
from mteb.results.task_result import TaskResult

OUT = Path(__file__).parent.parent / "crates/lapidary/tests/golden/report"
NAME, REVISION = "org/published", "0123456789abcdef0123456789abcdef01234567"
# Task -> split -> subset -> main score. One set is multilingual with two English subsets, one has undefined metrics.
SCORES = {
    "STS17": {"test": {"ar-ar": 0.41, "en-ar": 0.32, "en-en": 0.8125, "es-es": 0.77}},
    "AmazonCounterfactualClassification": {"test": {"de": 0.61, "en": 0.7, "en-ext": 0.66}},
    "SciFact": {"test": {"default": 0.6478}},
}
# How `MTEB(eng, v2)` restricts the multilingual ones, and what the others are read with.
SUBSETS = {task.metadata.name: task.hf_subsets for task in mteb.get_benchmark("MTEB(eng, v2)").tasks}


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    folder = OUT / "results" / NAME.replace("/", "__") / REVISION
    folder.mkdir(parents=True)
    expected = {}
    for name, splits in SCORES.items():
        task = mteb.get_task(name)
        scores = {
            split: {subset: {"main_score": score, "nauc_undefined": float("nan")} for subset, score in subsets.items()}
            for split, subsets in splits.items()
        }
        result = TaskResult.from_task_results(task, scores, evaluation_time=1.5)
        path = folder / f"{name}.json"
        result.to_disk(path)
        read = TaskResult.from_disk(path)
        subsets = SUBSETS.get(name, ["default"])
        expected[name] = read._get_score_fast(splits=["test"], subsets=subsets)
    meta = ModelMeta.create_empty().model_copy(
        update={"name": NAME, "revision": REVISION, "n_parameters": 22_700_000, "embed_dim": 384, "max_tokens": 256}
    )
    (folder / "model_meta.json").write_text(json.dumps(meta.to_dict(), indent=2) + "\n")
    text = {"mteb_version": mteb.__version__, "main_scores": expected}
    (OUT / "expected.json").write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
