"""Writes data/: the part of a larger collection of data sets that may be redistributed, cut to what the quickstart needs.

    python scripts/sample_data.py COLLECTION data

COLLECTION holds one folder per task (STS17, Banking77Classification, MMLU, WikiText2) and `train`, in the layout that
data/README.md describes. The result is the same to the byte for the same collection.
"""

import gzip
import itertools
import json
import pathlib
import shutil
import sys
from collections import Counter

NUM_SENTENCES = 4096
NUM_QUESTIONS_PER_SUBJECT = 10
FIRST_ARTICLE, ARTICLE_AFTER = b"Ise @-@ class battleship", b"Second Battle of Naktong Bulge"

source, target = map(pathlib.Path, sys.argv[1:])


def lines(name):
    return gzip.open(source / name, "rb")


def write(name, content):
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(content), compresslevel=9, mtime=0))


def spread(rows, number):
    """`number` rows at equal distances, the first among them."""
    return [rows[i * len(rows) // number] for i in range(number)]


def articles(text, first, after):
    """The articles of a WikiText file from the title `first` up to the title `after`."""
    start, end = (text.index(b" \n = " + title + b" = \n") for title in (first, after))
    return text[start:end]


write("wiki_sentences.txt.gz", itertools.islice(lines("train/wiki32k.txt.gz"), NUM_SENTENCES))
write("wiki_sentences.curid.txt.gz", itertools.islice(lines("train/wiki_sentences.curid.txt.gz"), NUM_SENTENCES))
for name in ["STS17/test.jsonl.gz", "Banking77Classification/train.jsonl.gz", "Banking77Classification/test.jsonl.gz"]:
    write(name, lines(name))
shutil.copyfile(source / "STS17/LICENSE.txt", target / "STS17/LICENSE.txt")

write("MMLU/dev.jsonl.gz", lines("MMLU/dev.jsonl.gz"))
subjects = {}
for line in lines("MMLU/test.jsonl.gz"):
    subjects.setdefault(json.loads(line)["subject"], []).append(line)
chosen = [row for rows in subjects.values() for row in spread(rows, NUM_QUESTIONS_PER_SUBJECT)]
write("MMLU/test.jsonl.gz", chosen)
write("WikiText2/wiki.test.raw.gz", [articles(lines("WikiText2/wiki.test.raw.gz").read(), FIRST_ARTICLE, ARTICLE_AFTER)])

print(len(chosen), "questions, answers", sorted(Counter(json.loads(row)["answer"] for row in chosen).items()))
