"""Compressed JSON Lines, for the scripts beside this file."""
import gzip, json


def rows(path):
    with gzip.open(path, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file]


def write(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
