"""Hold the port of the published Gap Score against its golden numbers on this machine.

The golden files (tests/golden/gap_official) are inputs and the authors' own evaluator's outputs, made
on one machine. Prints per case the largest difference of a row and of the mean, and how far rows and
mean move when the input is perturbed by 1e-6: what the same comparison allows in the tests.

    python scripts/gap_rounding_band.py
"""

import json
from pathlib import Path

import numpy as np

from gapeval_lab.gap.official import fit, perturbed
from gapeval_lab.gap.official_batch import refit

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "gap_official"
REPEATS = 64


def main() -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())
    golden = json.loads((GOLDEN / "cases_gapres.json").read_text())["results"]
    equal = 0
    print(f"{'case':<20} {'row':>9} {'mean':>9} {'row band':>9} {'mean band':>9}")
    for name, rows in cases.items():
        table = np.array(rows, dtype=np.float64)
        table /= table.sum(axis=1, keepdims=True)
        gaps = fit(table)
        moved = refit(perturbed(table, seed=0, repeats=REPEATS))
        row = float(np.abs(gaps - golden[name]["gaps"]).max())
        mean = abs(float(gaps.mean()) - golden[name]["gap_mean"])
        equal += row <= 1e-6
        bands = float(np.abs(moved - gaps).max()), float(np.abs(moved.mean(axis=1) - gaps.mean()).max())
        print(f"{name:<20} {row:9.6f} {mean:9.6f} {bands[0]:9.6f} {bands[1]:9.6f}", flush=True)
    print(f"{equal} of {len(cases)} cases equal to 1e-6")


if __name__ == "__main__":
    main()
