"""Fits the constants of ops/sparse-matmul/cuda/cost.cc to measured times and prints them as its table has them.

    python bench/spmm/fit_cost.py [bench/results/2026-11-29-h200-spmm-layouts.json ...]

Then it prints the table of tests/native/sparse-matmul/cost_test.cc, which holds ProductTime() to the formula of this file, and by how
much what the constants choose is slower than the fastest layout that was measured: the geometric mean of a model's four matrices at 50
to 90 % zeros, for every number of columns. Needs NumPy and SciPy.
"""

import collections
import json
import os
import sys

import numpy as np
from scipy.optimize import least_squares

HIDDEN = {"opt-1.3b": 2048, "opt-6.7b": 4096, "opt-13b": 5120, "opt-30b": 7168}
MEASURED = (
    "2026-11-29-h200-spmm-layouts.json",  # 8 to 64 columns, of row groups 32 to 128
    "2026-11-29-h200-spmm-wide-layouts.json",  # 128
    "2026-11-30-h200-spmm-quads-layouts.json",  # quads, 8 to 32
)
BLOCKS = {1: 132, 2: 66, 4: 30}  # row blocks of an H100 or H200, by the thread blocks of a cluster
ROW_GROUPS, TRIPLETS = "row groups", "row triplets"  # teams of four warps with a tile each
PANEL_TILES = {1: 8, 4: 16}  # by the warps of a team
PADDING = 1.04
LARGE_CLUSTER = 1.03
NAMES = {1: "kWarp", 4: "kWarpgroup", ROW_GROUPS: "kRowGroup", TRIPLETS: "kRowTriplet"}
NAMES |= {"halves": "kHalves", "words": "kWords", "quads": "kQuads"}
QUAD_BLOCK = 688  # bytes of a stage's block, which is a window's

FIRST = [12, 5, 0.3, 10, 5, 3, 2, 3, 1, 1.05]
LEAST = [0, 0, 0, 0, 0, 0, -2, -2, 0, 0.95]
MOST = [60, 60, 1, 80, 60, 12, 12, 16, 6, 1.3]
MOST_WIDE = [60, 60, 1, 80, 150, 12, 12, 16, 6, 1.3]  # of 128 columns, whose X costs more


def shape(model, matrix):
    hidden = HIDDEN[model]
    return {"qkv": (3 * hidden, hidden), "o": (hidden, hidden), "fc1": (4 * hidden, hidden), "fc2": (hidden, 4 * hidden)}[matrix]


def window_units(density):
    return 8 if density < 0.275 else 7 if density < 0.36 else 6


def together(density):
    """Of the values of two pairs of columns that were brought together so many are nonzeros."""
    return min(0.74 + 0.38 * density, 0.85)


def features(model, matrix, sparsity, team, kind, cluster, bytes_per_ns, row_groups):
    """What the constants are multiplied with. `bytes_per_ns`: what the run's reading kernel reached, 0.92 of the data sheet."""
    rows, columns = shape(model, matrix)
    tiles, units = -(-rows // 16), -(-columns // 32)
    busiest = -(-tiles // min(tiles, BLOCKS[cluster]))
    share = units / cluster
    if team in (ROW_GROUPS, TRIPLETS):
        stage = window_units(1 - sparsity) if kind == "quads" else 8 if team == ROW_GROUPS and kind == "words" else 4
        panels, stages = 1, share / stage
        missing = share * (4 * row_groups - busiest)
    else:
        panels = -(-busiest // PANEL_TILES[team])
        stages = missing = 0
        for panel in range(panels):
            own = (panel + 1) * busiest // panels - panel * busiest // panels
            depth = -(-own // team)
            stages += share / (1 if depth > 4 else 2 if depth > 2 else 4 if depth > 1 else 8)
            missing += share * (depth * team - own)
    density = 1 - sparsity
    values = {"halves": 2 * density, "words": 2 * (1 - sparsity**2), "quads": 2 * density / together(density)}[kind]
    masks = {"halves": 1 / 8, "words": 1 / 16, "quads": QUAD_BLOCK / window_units(density) / 512}[kind]
    reading = rows * columns * (values + masks) * PADDING / bytes_per_ns
    return share * busiest, missing, stages, share * panels, panels, reading, density, cluster


def predict(constants, at):
    """Microseconds, as ProductTime() gives them, but for LARGE_CLUSTER."""
    tile, nonzeros, deepest, stage, unit, launch, cluster2, cluster4, panel, stream = constants
    tiles, missing, stages, panel_units, panels, reading, density, cluster = at
    issuing = (tiles + deepest * missing) * (tile + nonzeros * density) + stages * stage + panel_units * unit
    both = (issuing**4 + (reading * stream) ** 4) ** 0.25 * 1e-3
    return both + launch + {1: 0, 2: cluster2, 4: cluster4}[cluster] + panel * panels


def main():
    results = os.path.join(os.path.dirname(__file__), "..", "results")
    kinds, products = collections.defaultdict(list), collections.defaultdict(list)
    for path in sys.argv[1:] or [os.path.join(results, name) for name in MEASURED]:
        with open(path, encoding="utf8") as file:
            run = json.load(file)
        for model, matrix, sparsity, n, team, kind, cluster, plain, _, *rest in run["rows"]:
            groups = rest[0] if rest else 1
            if groups > 1:
                team = TRIPLETS if groups == 3 else ROW_GROUPS
            at = features(model, matrix, sparsity, team, kind, cluster, run["readBandwidthGBs"], groups)
            kinds[team, kind, n].append((at, plain))
            products[run["gpu"], model, n, sparsity, matrix].append((team, kind, at, plain))

    fitted, checks = {}, []
    for (team, kind, n), measured in sorted(kinds.items(), key=lambda item: (str(item[0][0]), *item[0][1:])):
        times = np.array([time for _, time in measured])

        def predictions(constants, measured=measured):
            return np.array([predict(constants, at) for at, _ in measured])

        def errors(constants, times=times, predictions=predictions):
            return np.log(np.maximum(predictions(constants), 0.1) / times)

        found = least_squares(errors, FIRST, bounds=(LEAST, MOST_WIDE if n == 128 else MOST))
        constants = [round(constant, 2) for constant in found.x]
        if team == 1:
            constants[2] = 0  # a team of one warp has no other
        fitted[team, kind, n] = constants
        layout = f"Team::{NAMES[team]}, Columns::{NAMES[kind]}, {n}"
        print(f"    {{{layout}, {', '.join(f'{constant:g}' for constant in constants)}}},")
        large = np.array([LARGE_CLUSTER if at[-1] == 4 else 1 for at, _ in measured])
        mean = np.exp(np.mean(np.log(predictions(constants) * large)))
        checks.append(f"    {{{layout}, {mean:.3f}, {100 * np.sqrt(np.mean(errors(constants) ** 2)):.2f}}},")
    print("cost_test.cc: geometric mean of what is expected, microseconds; how far it is off, percent")
    print("\n".join(checks))

    slower = collections.defaultdict(list)
    for (gpu, model, n, _, _), layouts in products.items():

        def expected(layout, n=n):
            team, kind, at, _ = layout
            return predict(fitted[team, kind, n], at) * (LARGE_CLUSTER if at[-1] == 4 else 1)

        slower[gpu, model, n].append(np.log(min(layouts, key=expected)[3] / min(layout[3] for layout in layouts)))
    for (gpu, model, n), logs in sorted(slower.items()):
        print(f"{gpu}, {model} N={n}: {100 * (np.exp(np.mean(logs)) - 1):.1f} % slower than the fastest")


if __name__ == "__main__":
    main()
