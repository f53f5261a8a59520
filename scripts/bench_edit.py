"""Measures `gapeval-lab edit` as a user sees it: from the command's start to its last line, by phase.

    python scripts/bench_edit.py --runs 3

Each run is a fresh process with a fresh store, so that creating the database and importing the
libraries count. Prints wall seconds, the largest resident size, and the share of each phase.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def one_run(recipe: str, overrides: list[str]) -> tuple[float, dict[str, float], float]:
    """Wall seconds, seconds per phase, and peak memory in GiB of one run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "gapeval_lab.cli", "edit", "--recipe", recipe, "--json", str(file)]
        began = time.monotonic()
        subprocess.run(
            [*command, *overrides],
            env=os.environ | {"GAPEVAL_LAB_HOME": folder},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.monotonic() - began
        outcome = json.loads(file.read_text(encoding="utf-8"))
    return wall, outcome["seconds"], outcome["peak_memory_gib"]


def main() -> None:
    """Run, then print medians."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for the command itself")
    args = parser.parse_args()
    results = [one_run(args.recipe, args.overrides) for _ in range(args.runs)]
    walls = [wall for wall, _, _ in results]
    print(f"{args.recipe}: {args.runs} runs on {os.cpu_count()} cores")
    print(f"  wall     median {statistics.median(walls):6.1f} s   ({min(walls):.1f} to {max(walls):.1f})")
    largest = max(memory for _, _, memory in results)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    print(f"  memory   {max(largest, children):6.2f} GiB at most")
    told = 0.0
    for phase in results[0][1]:
        seconds = statistics.median(phases[phase] for _, phases, _ in results)
        told += seconds
        print(f"  {phase:12} {seconds:6.1f} s")
    print(f"  {'the rest':12} {statistics.median(walls) - told:6.1f} s   (imports, store, logging, printing)")


if __name__ == "__main__":
    main()
