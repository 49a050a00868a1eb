"""Fits the constants of JaggedTime() (ops/sparse-matmul/cuda/cost.cc) to measured times and prints them as its table has them.

    python bench/spmm/fit_jagged_cost.py [bench/results/2026-11-29-h200-spmm-jagged-layouts.json]

A product of n columns, all at once, takes launch + reading * (bytes / bandwidth) + x * (elements of X) / 1000 microseconds. Needs NumPy
and SciPy.
"""

import json
import os
import sys

import numpy as np
from scipy.optimize import least_squares

from fit_cost import shape

MEASURED = "2026-11-29-h200-spmm-jagged-layouts.json"


def main():
    results = os.path.join(os.path.dirname(__file__), "..", "results")
    with open(sys.argv[1] if len(sys.argv) > 1 else os.path.join(results, MEASURED), encoding="utf8") as file:
        run = json.load(file)
    for n in (1, 2):
        products = [row for row in run["rows"] if row[3] == n and row[4] == n]
        reading = np.array([stream_bytes / run["readBandwidthGBs"] for *_, stream_bytes, _, _ in products]) * 1e-3
        x = np.array([shape(model, matrix)[1] * n for model, matrix, *_ in products]) * 1e-3
        times = np.array([plain for *_, plain, _ in products])

        def errors(constants, reading=reading, x=x, times=times):
            return np.log((constants[0] + constants[1] * reading + constants[2] * x) / times)

        found = least_squares(errors, [4, 1.1, 0.1], bounds=([0, 0.9, 0], [10, 2, 1]))
        print(f"{{{found.x[0]:.2f}, {found.x[1]:.3f}, {found.x[2]:.4f}}}  // {len(times)} products, off by {100 * np.std(found.fun):.1f} %")


if __name__ == "__main__":
    main()
