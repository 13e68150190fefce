"""Writes a result file with lm-evaluation-harness itself (0.4.13), what `lapidary report` has to read: two tasks and a
group of two, answered at random by the harness's own `dummy` model. The questions are made up; the layout is its own."""

import json
import shutil
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

OUT = Path(__file__).parent.parent / "crates/lapidary/tests/golden/report_lm_eval"
CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "perhaps not"]
doc_to_target: answer
metric_list:
{metrics}
"""
LAST_WORD = """task: lambada_openai
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " word"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
GROUP = """group: mmlu
task: [mmlu_astronomy, mmlu_virology]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""
METRIC = "  - {{metric: {}, aggregation: mean, higher_is_better: true}}"


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for count in (30, 50):
            rows = [{"question": f"Is {i} lucky?", "answer": i % 3 % 2} for i in range(count)]
            (work / f"{count}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = lambda *names: "\n".join(METRIC.format(name) for name in names)
        task = lambda name, count, *names: (work / f"{name}.yaml").write_text(
            CHOICE.format(name=name, data=work / f"{count}.jsonl", metrics=metrics(*names)))
        task("arc_easy", 50, "acc", "acc_norm")
        task("mmlu_astronomy", 30, "acc")
        task("mmlu_virology", 50, "acc")
        (work / "lambada_openai.yaml").write_text(LAST_WORD.format(data=work / "30.jsonl"))
        (work / "mmlu.yaml").write_text(GROUP)
        manager = TaskManager(include_path=str(work), include_defaults=False)
        results = lm_eval.simple_evaluate(
            model="dummy", tasks=["arc_easy", "lambada_openai", "mmlu"], task_manager=manager, limit=40, random_seed=0,
            bootstrap_iters=0)
        tracker = EvaluationTracker(output_path=str(work / "out"))
        tracker.general_config_tracker.model_name = "org/published"
        tracker.general_config_tracker.model_name_sanitized = "org__published"
        results.pop("samples", None)
        tracker.save_results_aggregated(results=results, samples=None)
        (file,) = (work / "out").rglob("results_*.json")
        kept = json.loads(file.read_text())
        # What tells of the machine alone, and the tasks' settings.
        for key in ("pretty_env_info", "configs", "transformers_version", "git_hash", "date"):
            kept.pop(key, None)
        folder = OUT / "org__published"
        folder.mkdir(parents=True)
        (folder / "results_2026-11-26T00-00-00.000000.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
