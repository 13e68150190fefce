"""The mteb package against `lapidary serve`: its mock tasks in both forms of body that it sends, and a real task.

usage: mteb_server.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it. mteb 2.26 is installed
into a virtual environment in target/acceptance/mteb (torch comes with it). It asks through its own OpenAIAPIEncodeWrapper,
with `input` and with `messages`. STS17 of ../shared/data, beside this repository, must score what `lapidary eval tasks` says,
to 1e-4.
"""
import gzip, json, subprocess, sys, tempfile
from pathlib import Path

from common import ROOT, check, in_place, split, started

DATA, NAME = ROOT.parent / "shared/data", "lapidary/served"


def own_score(arguments):
    binary, flags = split(arguments)
    with tempfile.TemporaryDirectory() as work:
        command = [*binary, "--quiet", "eval", "tasks", DATA, "--tasks", "STS17", "--results", work]
        subprocess.run([*command, *flags], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        (result,) = Path(work).glob("*/*/STS17.json")
        return json.loads(result.read_text())["scores"]["test"][0]["cosine_spearman"]


def served_score(mteb, encoder):
    from datasets import Dataset, DatasetDict

    # Another task's class: those of STS17 differ in the languages alone, and its data set needs the hub.
    task = mteb.get_task("STSBenchmark")
    with gzip.open(DATA / "STS17/test.jsonl.gz", "rt", encoding="utf8") as file:
        task.dataset = DatasetDict({"test": Dataset.from_list([json.loads(line) for line in file])})
    task.data_loaded, task.hf_subsets = True, ["default"]
    return task.evaluate(encoder, split="test", encode_kwargs={"batch_size": 32})["default"]["cosine_spearman"]


def main():
    in_place("mteb", "mteb==2.26.*")
    import mteb
    from mteb.models import OpenAIAPIEncodeWrapper

    arguments = sys.argv[1:]
    ours = own_score(arguments)
    with started(arguments, "--served-model-name", NAME) as server:
        for with_messages in (False, True):
            form = "messages" if with_messages else "input"
            encoder = OpenAIAPIEncodeWrapper(
                endpoint_url=server.address, model_name=NAME, modalities=["text"], use_chat_template=with_messages)
            run = mteb.mock_run(encoder)
            print("       ", run.modality_summary()[0])
            check(f"{form}: mock tasks", run.all_passed)
            theirs = served_score(mteb, encoder)
            check(f"{form}: STS17, eval {ours:.6f}, through the server {theirs:.6f}", abs(ours - theirs) <= 1e-4)


main()
