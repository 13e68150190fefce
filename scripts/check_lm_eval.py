"""Scores of `lapidary eval tasks` against lm-evaluation-harness on the same weights, a slice of three tasks.

usage: check_lm_eval.py DATA_DIR MODEL.gguf HF_DIR [--binary target/release/lapidary]
Needs lm-eval 0.4.13, torch and transformers. HF_DIR has the model's weights dequantised to f32 in the Hugging Face
layout, its tokenizer.json in it. DATA_DIR has MMLU, ARC-Easy and LAMBADA in the layout of `lapidary eval tasks`.
The harness's own model class scores requests that its own templates (MMLU) or their words (ARC, LAMBADA) make; its data
sets need the hub, so the slices come from DATA_DIR. Ends with an error where a figure differs: accuracies at all, the
perplexity by more than 1e-4 of itself.
"""
import argparse, importlib.util, json, math, subprocess, sys, tempfile
from pathlib import Path

import jinja2
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from json_lines import rows, write

SLICES = {"LAMBADA": 100, "ARC-Easy": 60, "MMLU": 57}
LETTERS = "ABCD"


def sliced(items, count):
    return items[:: max(1, len(items) // count)][:count]


def mmlu_prompts(questions, dev):
    package = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks/mmlu/default"
    ask = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        yaml.safe_load((package / "_default_template_yaml").read_text())["doc_to_text"]).render
    prompts = []
    for question in questions:
        subject = question["subject"]
        task = yaml.safe_load((package / f"mmlu_{subject}.yaml").read_text().replace("include", "_"))
        prompt = task["description"]
        for example in [row for row in dev if row["subject"] == subject][:5]:
            prompt += ask(**example) + " " + LETTERS[example["answer"]] + "\n\n"
        prompts.append(prompt + ask(**question))
    return prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("hf", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/lapidary"))
    args = parser.parse_args()
    test = {name: sliced(rows(args.data / name / "test.jsonl.gz"), count) for name, count in SLICES.items()}
    # One question of each subject, so that the five examples of each are used.
    by_subject = {}
    for row in rows(args.data / "MMLU/test.jsonl.gz"):
        by_subject.setdefault(row["subject"], row)
    test["MMLU"] = list(by_subject.values())[: SLICES["MMLU"]]
    dev = rows(args.data / "MMLU/dev.jsonl.gz")
    with tempfile.TemporaryDirectory() as work:
        for name, items in test.items():
            write(Path(work) / "data" / name / "test.jsonl.gz", items)
        write(Path(work) / "data/MMLU/dev.jsonl.gz", dev)
        subprocess.run([args.binary, "--quiet", "eval", "tasks", Path(work) / "data", "--model", args.model, "--method",
                        "mean", "--results", Path(work) / "results"], check=True, stdout=subprocess.DEVNULL)
        (found,) = Path(work).glob("results/*/*")
        ours = {name: json.loads((found / f"{name}.json").read_text())["results"][name] for name in test}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.hf / "tokenizer.json"), eos_token="<|im_end|>")
    model = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(args.hf), tokenizer=tokenizer, batch_size=1)
    score = lambda pairs: model.loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True)
    theirs = {}
    found = score([(row["text"].rsplit(" ", 1)[0], " " + row["text"].rsplit(" ", 1)[1]) for row in test["LAMBADA"]])
    theirs["LAMBADA"] = {"acc,none": sum(greedy for _, greedy in found) / len(found),
                         "perplexity,none": math.exp(-sum(ll for ll, _ in found) / len(found))}
    right = {"acc,none": 0, "acc_norm,none": 0}
    for row in test["ARC-Easy"]:
        choices = row["choices"]["text"]
        found = [ll for ll, _ in score([(f"Question: {row['question']}\nAnswer:", " " + choice) for choice in choices])]
        answer = row["choices"]["label"].index(row["answerKey"])
        by_length = [ll / len(choice) for ll, choice in zip(found, choices)]
        right["acc,none"] += found.index(max(found)) == answer
        right["acc_norm,none"] += by_length.index(max(by_length)) == answer
    theirs["ARC-Easy"] = {name: count / len(test["ARC-Easy"]) for name, count in right.items()}
    count = 0
    for row, prompt in zip(test["MMLU"], mmlu_prompts(test["MMLU"], dev)):
        found = [ll for ll, _ in score([(prompt, " " + letter) for letter in LETTERS])]
        count += found.index(max(found)) == row["answer"]
    theirs["MMLU"] = {"acc,none": count / len(test["MMLU"])}
    wrong = False
    for name, metrics in theirs.items():
        for metric, value in metrics.items():
            differs = abs(ours[name][metric] - value) > (1e-4 * value if "perplexity" in metric else 1e-9)
            wrong |= differs
            print(f"{name:10} {metric:16} ours {ours[name][metric]:.6f}  lm-eval {value:.6f}{'  DIFFERS' if differs else ''}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
