"""lm-evaluation-harness against `lapidary serve`: MMLU with five examples and LAMBADA score what `lapidary eval tasks` says.

usage: lm_eval_server.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it; minutes, fewer with
--weights bf16. lm-eval 0.4.13 is installed into a virtual environment in target/acceptance/lm_eval; it asks as
`lm_eval run --model local-completions`, with the server's own tokenizer. Its tasks are its own but for where the data are:
slices of ../shared/data, beside this repository, because its data sets need the hub. Accuracies must be equal, the perplexity
to 1e-4 of itself.
"""
import json, os, subprocess, sys, tempfile, urllib.request
from pathlib import Path

from common import ROOT, check, in_place, split, started
from json_lines import rows, write

DATA = ROOT.parent / "shared/data"
# One question of every third subject, and texts spread over all.
SUBJECTS, TEXTS = slice(None, None, 3), 40


def slices(data):
    """Writes them; returns the questions and their examples by subject."""
    first, dev = {}, {}
    for row in rows(DATA / "MMLU/test.jsonl.gz"):
        first.setdefault(row["subject"], row)
    for row in rows(DATA / "MMLU/dev.jsonl.gz"):
        dev.setdefault(row["subject"], []).append(row)
    questions = {subject: first[subject] for subject in sorted(first)[SUBJECTS]}
    write(data / "MMLU/test.jsonl.gz", questions.values())
    write(data / "MMLU/dev.jsonl.gz", [row for subject in questions for row in dev[subject]])
    texts = rows(DATA / "LAMBADA/test.jsonl.gz")
    write(data / "LAMBADA/test.jsonl.gz", texts[:: len(texts) // TEXTS][:TEXTS])
    return questions, dev


def tasks(work, questions, dev):
    """The harness's own tasks with their data in these files; returns their names."""
    import lm_eval, yaml

    own = Path(lm_eval.__file__).parent / "tasks"

    def task(source, name, **splits):
        text = (own / source).read_text().replace("include:", "included:").replace('"include"', '"included"')
        config = yaml.safe_load((own / "mmlu/default/_default_template_yaml").read_text()) if "mmlu" in source else {}
        config |= yaml.safe_load(text)
        for key in ("included", "tag", "dataset_name"):
            config.pop(key, None)
        files = {split: str(path) for split, path in splits.items()}
        config |= {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return name

    names = [task("lambada/lambada_openai.yaml", "local_lambada", test=work / "data/LAMBADA/test.jsonl.gz")]
    for subject, question in questions.items():
        test, examples = work / f"one/{subject}/test.jsonl.gz", work / f"one/{subject}/dev.jsonl.gz"
        write(test, [question])
        write(examples, dev[subject])
        names.append(task(f"mmlu/default/mmlu_{subject}.yaml", f"local_{subject}", test=test, dev=examples))
    return names


def harness(work, names, address, model):
    """Scores by task, each with the number of examples that it takes."""
    asked = f"model={model},base_url={address}/v1/completions,max_length=2048"
    found = {}
    for shots, some in [(0, names[:1]), (5, names[1:])]:
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", asked,
                   "--batch_size", "4", "--tasks", ",".join(some), "--num_fewshot", str(shots), "--include_path", work,
                   "--output_path", work / f"out{shots}"]
        log = work / "log"
        offline = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(work / "hf"))
        with log.open("w") as file:
            ended = subprocess.run(command, env=offline, stdout=file, stderr=subprocess.STDOUT)
        if ended.returncode != 0:
            print(log.read_text()[-4000:])
        check(f"lm_eval run, {shots} examples", ended.returncode == 0)
        (result,) = (work / f"out{shots}").rglob("results*.json")
        found |= json.loads(result.read_text())["results"]
    return found


def main():
    in_place("lm_eval", "lm-eval[api]==0.4.13")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        questions, dev = slices(work / "data")
        arguments = sys.argv[1:]
        binary, flags = split(arguments)
        subprocess.run([*binary, "--quiet", "eval", "tasks", work / "data", "--results", work / "results", *flags], check=True,
                       cwd=ROOT, stdout=subprocess.DEVNULL)
        (results,) = work.glob("results/*/*")
        ours = {name: json.loads((results / f"{name}.json").read_text())["results"][name] for name in ("MMLU", "LAMBADA")}
        with started(arguments) as server:
            with urllib.request.urlopen(f"{server.address}/v1/models") as answer:
                model = json.load(answer)["data"][0]["id"]
            theirs = harness(work, tasks(work, questions, dev), server.address, model)
    lambada = theirs.pop("local_lambada")
    accuracy = sum(one["acc,none"] for one in theirs.values()) / len(theirs)
    compare = lambda what, a, b, most: check(f"{what}: eval {a:.6f}, through the server {b:.6f}", abs(a - b) <= most)
    compare("MMLU acc", ours["MMLU"]["acc,none"], accuracy, 1e-9)
    compare("LAMBADA acc", ours["LAMBADA"]["acc,none"], lambada["acc,none"], 1e-9)
    perplexity = ours["LAMBADA"]["perplexity,none"]
    compare("LAMBADA perplexity", perplexity, lambada["perplexity,none"], 1e-4 * perplexity)


main()
