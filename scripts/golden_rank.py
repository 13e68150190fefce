"""Writes the golden values of the rank-correlation tests with SciPy.

    python scripts/golden_rank.py

`crates/lapidary/tests/golden/spearman.json` is a list of cases, each with `name`, the two samples
`x` and `y` and their `spearman` coefficient; equal values share the mean of their ranks.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

OUTPUT = Path(__file__).resolve().parent.parent / "crates/lapidary/tests/golden/spearman.json"


def cases():
    generator = np.random.default_rng(0)
    x = np.round(generator.normal(size=20), 3)
    yield "no ties", x, np.round(0.5 * x + generator.normal(size=20), 3)
    # Similarities against human grades, which repeat: the shape of an STS data set.
    grades = generator.integers(0, 6, 30).astype(float)
    yield "ties on one side", np.round(0.2 * grades + generator.normal(size=30), 3), grades
    yield "ties on both sides, inverse", grades, 2.0 - np.floor(grades / 2)


def main():
    written = []
    for name, x, y in cases():
        coefficient = float(spearmanr(x, y).statistic)
        written.append(dict(name=name, x=x.tolist(), y=y.tolist(), spearman=coefficient))
        print(f"{name}: {coefficient}")
    OUTPUT.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
