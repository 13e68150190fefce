#!/usr/bin/env python3
"""Tasks to choose a recipe by: STSBenchmark's validation split, and Banking77's training split cut in two.

    python3 scripts/development_tasks.py DATA OUT
    lapidary sweep sweeps/recipe.toml --tasks OUT

DATA holds STSBenchmark and Banking77Classification as the Hugging Face data sets mteb/* have their files; their test
splits are not read. OUT gets the same layout under other names. Needs Python alone.
"""

import argparse
import gzip
import json
import random
import shutil
from pathlib import Path

TEST_ROWS_A_CLASS = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for name in ("STSBenchmark/validation.jsonl.gz", "Banking77Classification/train.jsonl.gz"):
        if not (args.data / name).is_file():
            parser.error(f"expected a file {args.data / name}, found none")
    sts, banking = args.out / "STSBenchmarkDevelopment", args.out / "Banking77Development"
    for directory in (sts, banking):
        directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.data / "STSBenchmark/validation.jsonl.gz", sts / "test.jsonl.gz")
    with gzip.open(args.data / "Banking77Classification/train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    taken, parts = {}, {"train": [], "test": []}
    for row in rows:
        taken[row["label"]] = taken.get(row["label"], 0) + 1
        parts["test" if taken[row["label"]] <= TEST_ROWS_A_CLASS else "train"].append(row)
    for split, rows in parts.items():
        with gzip.open(banking / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{banking.name} {split}: {len(rows)} rows")


if __name__ == "__main__":
    main()
