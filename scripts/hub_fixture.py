"""Small data sets in each layout that repositories on the hub have, and the same rows in the plain layout: what
`lapidary eval tasks --hub` is tested on. The sentences are those of STS17 and Banking77 in `data/`."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
OUT = ROOT / "crates/cli/tests/hub"
RERANKED = 6


def rows_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        # No time in the header: the same bytes each time.
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)


def tsv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore\n"] + [f"{q}\t{d}\t{score}\n" for q, d, score in rows]
    path.write_text("".join(lines))


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def main() -> None:
    for folder in OUT.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    hub, local = OUT / "mteb", OUT / "local"
    pairs = rows_of(ROOT / "data/STS17/test.jsonl.gz")[:24]
    pairs = [{key: pair[key] for key in ["sentence1", "sentence2", "score"]} for pair in pairs]

    # A multilingual set, one folder a subset, compressed lines.
    jsonl(hub / "sts17-crosslingual-sts/en-en/test.jsonl.gz", pairs)
    jsonl(hub / "sts17-crosslingual-sts/ar-ar/test.jsonl.gz", pairs[:2])
    jsonl(local / "STS17/test.jsonl", pairs)

    # Parquet in data/, in shards, one with a hash in its name.
    def labelled(name, count):
        taken = {}
        for row in rows_of(ROOT / f"data/Banking77Classification/{name}.jsonl.gz"):
            if row["label"] < 3:
                taken.setdefault(row["label"], []).append({key: row[key] for key in ["text", "label"]})
        return [row for label in sorted(taken) for row in taken[label][:count]]

    train, test = labelled("train", 10), labelled("test", 4)
    parquet(hub / "banking77/data/train-00000-of-00001-0123abcd.parquet", train)
    parquet(hub / "banking77/data/test-00000-of-00002.parquet", test[:5])
    parquet(hub / "banking77/data/test-00001-of-00002.parquet", test[5:])
    jsonl(local / "Banking77Classification/train.jsonl", train)
    jsonl(local / "Banking77Classification/test.jsonl", test)

    # Retrieval as lines and a table.
    documents = [(f"d{i}", pair["sentence2"]) for i, pair in enumerate(pairs)]
    queries = [(f"q{i}", pair["sentence1"]) for i, pair in enumerate(pairs) if pair["score"] >= 3]
    judged = [(query, "d" + query[1:], 1) for query, _ in queries]
    lines = lambda rows: [{"_id": key, "title": "", "text": text} for key, text in rows]
    for folder in [hub / "scifact", local / "SciFact"]:
        jsonl(folder / "corpus.jsonl", lines(documents))
        jsonl(folder / "queries.jsonl", lines(queries))
        tsv(folder / "qrels/test.tsv", judged)

    # Retrieval as configurations in Parquet, with numbers as ids and grades that are no integers.
    number = lambda key: int(key[1:])
    rows = lambda rows: [{"id": number(key), "text": text} for key, text in rows]
    parquet(hub / "arguana/corpus/corpus-00000-of-00001.parquet", rows(documents))
    parquet(hub / "arguana/queries/queries-00000-of-00001.parquet", rows(queries))
    grades = [{"query-id": number(q), "corpus-id": number(d), "score": float(score)} for q, d, score in judged]
    parquet(hub / "arguana/default/test-00000-of-00001.parquet", grades)
    plain = lambda rows: [{"_id": str(number(key)), "text": text} for key, text in rows]
    jsonl(local / "ArguAna/corpus.jsonl", plain(documents))
    jsonl(local / "ArguAna/queries.jsonl", plain(queries))
    tsv(local / "ArguAna/qrels/test.tsv", [(number(q), number(d), score) for q, d, score in judged])

    # Reranking: documents of each query, of which the first few numbers after its own.
    ranked = {query: [f"d{(number(query) + i) % len(documents)}" for i in range(RERANKED)] for query, _ in queries}
    folder, text = hub / "SciDocsRR", dict(documents)
    shard = "test-00000-of-00001.parquet"
    parquet(folder / "corpus" / shard, [{"_id": key, "title": "", "text": text} for key, text in documents])
    parquet(folder / "queries" / shard, [{"_id": key, "text": text} for key, text in queries])
    parquet(folder / "qrels" / shard, [{"query-id": q, "corpus-id": d, "score": score} for q, d, score in judged])
    parquet(folder / "top_ranked" / shard, [{"query-id": q, "corpus-ids": ids} for q, ids in ranked.items()])
    order = [
        {"query": query, "positive": [text[ranked[key][0]]], "negative": [text[d] for d in ranked[key][1:]]}
        for key, query in queries
    ]
    jsonl(local / "SciDocsRR/test.jsonl", order)

    # Letter choice: a split for the examples beside the one that is asked; lists in Parquet.
    sentences = [pair["sentence1"] for pair in pairs]
    choices = [sentences[i : i + 4] for i in range(len(sentences) - 4)]
    questions = [
        {"question": text, "subject": f"subject_{i % 2}", "choices": choices[i], "answer": i % 4}
        for i, text in enumerate(sentences[:16])
    ]
    for split, rows in [("test", questions[:6]), ("dev", questions[6:])]:
        parquet(OUT / f"cais/mmlu/all/{split}-00000-of-00001.parquet", rows)
        jsonl(local / f"MMLU/{split}.jsonl", rows)

    # Answer choice: a group of lists.
    rows = [
        {"id": str(i), "question": text, "choices": {"text": choices[i], "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]}
        for i, text in enumerate(sentences[:6])
    ]
    parquet(OUT / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", rows)
    parquet(OUT / "allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet", rows[:3])
    jsonl(local / "ARC-Easy/test.jsonl", rows)
    jsonl(local / "ARC-Challenge/test.jsonl", rows[:3])

    # Endings: no labels in the test split.
    endings = [
        {"activity_label": "Playing", "ctx_a": text, "ctx_b": "then", "endings": choices[i], "label": str(i % 4)}
        for i, text in enumerate(sentences[:5])
    ]
    parquet(OUT / "Rowan/hellaswag/data/validation-00000-of-00001.parquet", endings)
    parquet(OUT / "Rowan/hellaswag/data/test-00000-of-00001.parquet", [{**row, "label": ""} for row in endings])
    jsonl(local / "HellaSwag/validation.jsonl", endings)

    # Last word: other languages lie beside it.
    words = [{"text": text.rstrip(".")} for text in sentences[:8]]
    jsonl(OUT / "EleutherAI/lambada_openai/data/lambada_test.jsonl", words)
    jsonl(OUT / "EleutherAI/lambada_openai/data/lambada_test_de.jsonl", words[:2])
    jsonl(local / "LAMBADA/test.jsonl", words)

    # A text as a table of its lines, of which the blank ones are empty.
    raw = [" \n", f" = {sentences[0]} = \n", " \n"] + [f" {text} \n" for text in sentences[1:6]]
    table = [{"text": line if line.strip() else ""} for line in raw]
    parquet(OUT / "Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet", table)
    parquet(OUT / "Salesforce/wikitext/wikitext-103-raw-v1/test-00000-of-00001.parquet", table[:2])
    (local / "WikiText2").mkdir()
    (local / "WikiText2/wiki.test.raw").write_text("".join(raw))


if __name__ == "__main__":
    main()
