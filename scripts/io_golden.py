"""Writes tests/golden/io with other implementations: NumPy, PyArrow, TensorBoard, Python's csv.

Run from crates/lapidary: python scripts/io_golden.py
Needs numpy, pyarrow and tensorboard. `vectors.parquet` is the one file the crate itself writes
(the ignored test `write_for_pyarrow` does); PyArrow must read from it the rows stated below.
"""

import csv
import gzip
import json
import math
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = pathlib.Path("tests/golden/io")

TEXTS = ["first text", "zweiter Text: äöü €", None, "", 'quotes " and, commas', "two\nlines"]
NEGATIVES = [["n1", "n2"], [], None, ["n3"], ["a", "b", "c"], ["last"]]
POSITIVES = ["p1", None, "p3", "p4", "p5", "p6"]


def tables():
    table = pa.table(
        {
            "id": pa.array(range(6), pa.int64()),
            "text": pa.array(TEXTS, pa.string()),
            "positive": pa.array(POSITIVES, pa.large_string()),
            "negative": pa.array(NEGATIVES, pa.list_(pa.string())),
            "struct": pa.array([{"a": "x", "b": 1}] * 6),
        }
    )
    pq.write_table(table, OUT / "pairs.parquet", row_group_size=4, compression="snappy")
    plain = [["n1", "n2"], [], [], ["n3"], ["a", "b", "c"], ["last"]]
    with gzip.GzipFile(OUT / "pairs.jsonl.gz", "wb", mtime=0) as file:
        for i, (text, positive, negative) in enumerate(zip(TEXTS, POSITIVES, plain)):
            row = {"id": i, "text": text, "positive": positive, "negative": negative}
            file.write((json.dumps(row) + "\n").encode())
    with open(OUT / "quoted.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((i, text) for i, text in enumerate(TEXTS) if text is not None)
    lines = "".join(f"line {i}\n" for i in range(5)).encode()
    with pa.CompressedOutputStream(str(OUT / "lines.txt.zst"), "zstd") as file:
        file.write(lines)
    sts = pa.table(
        {
            "sentence1": pa.array(["A cat.", "One."]).dictionary_encode(),
            "sentence2": pa.array(["A dog.", "Two."]),
            "score": pa.array([2.5, 0.2], pa.float32()),
        }
    )
    pq.write_table(sts, OUT / "sts.parquet", compression="zstd")
    # more rows than one decoding batch, lists across pages, every page version 2
    many = pa.table(
        {
            "text": [f"row {i}" for i in range(300)],
            "negative": [[f"{i}.{j}" for j in range(i % 4)] for i in range(300)],
        }
    )
    pq.write_table(
        many,
        OUT / "many.parquet",
        row_group_size=130,
        data_page_size=64,
        write_batch_size=7,
        data_page_version="2.0",
        compression="gzip",
    )


def vectors():
    rows = [[0.1, -2.5, 3.0], [0.0, 1e-30, 1e30], [1.0, 0.33333334, -0.0], [3.0, -2.5, 0.1]]
    np.save(OUT / "vectors.npy", np.array(rows, dtype="<f4"))
    schema = pa.schema(
        [
            pa.field("text", pa.string()),
            pa.field(
                "embedding",
                pa.list_(pa.field("element", pa.float32(), nullable=False), 3),
                nullable=False,
            ),
        ]
    )
    ours = OUT / "vectors.parquet"
    if ours.exists():
        table = pq.read_table(ours)
        assert table.schema.equals(schema), table.schema
        texts = ["one", 'zwei "quoted"', "", "line\nbreak"]
        columns = [pa.array(texts), pa.array(rows, schema.field("embedding").type)]
        assert table.equals(pa.table(columns, schema=schema)), table
        print("vectors.parquet is as expected")


def events():
    def scalar(tag, step, value):
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        return Event(wall_time=1700000001.25 + step, step=step, summary=summary)

    rows = [
        Event(wall_time=1700000000.5, file_version="brain.Event:2"),
        scalar("loss/contrastive", 0, 2.5),
        scalar("loss/contrastive", 1, -0.1),
        scalar("tokens_per_second", 300, 1e9),
        scalar("größe", 5_000_000_000, math.nan),
    ]
    with open(OUT / "events.tfevents", "wb") as file:
        writer = RecordWriter(file)
        for row in rows:
            writer.write(row.SerializeToString(deterministic=True))
        writer.flush()


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    tables()
    vectors()
    events()
