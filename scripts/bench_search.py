"""Where a trial's time goes: its fit and its measurement, and everything else.

    OMP_NUM_THREADS=1 python scripts/bench_search.py --trials 5

Runs trials of a recipe in a fresh store, each with another learning rate, and prints the median seconds of
every phase. The first trial measures the baseline and the second moments; it is shown apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from gapeval_lab.recipe import load
from gapeval_lab.tracking import Store
from gapeval_lab.trials import TrialResult, open_trials

PAID = ("fit", "after")
"""What a trial is for; the rest is overhead. `before` is the first trial's alone."""


def main() -> None:
    """Run, then print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--path", default="intervention.lr", help="what is varied: a number")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for `gapeval-lab edit`")
    args = parser.parse_args()
    results: list[tuple[float, TrialResult]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        store.check()
        began = time.monotonic()
        loaded = load(args.recipe, args.overrides)
        value = loaded.recipe.interventions[0].settings[args.path.rpartition(".")[2]]
        with open_trials(loaded, store=store, study="bench", searched=[args.path]) as trials:
            opened = time.monotonic() - began
            for number in range(args.trials + 1):
                began = time.monotonic()
                given = {args.path: value * (1 + number / 100)}
                result = trials.run(given, number=number, report=lambda so_far, step: False)
                results.append((time.monotonic() - began, result))
        logged = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    first, later = results[0], results[1:]
    asked = later[0][1].planned
    print(f"{args.recipe}: {len(later)} trials of {asked} items and probes, {os.cpu_count()} cores")
    print(f"  open a worker (model, parent run)  {opened:7.3f} s, once")
    print(f"  baseline, in the first trial       {first[1].seconds['before']:7.3f} s, once")
    for phase in later[0][1].seconds:
        seconds = statistics.median(result.seconds[phase] for _, result in later)
        print(f"  {phase:34} {seconds:7.3f} s" + ("" if phase in PAID else "   overhead"))
    paid = [sum(result.seconds[phase] for phase in PAID) for _, result in later]
    shares = [wall / own - 1 for (wall, _), own in zip(later, paid, strict=True)]
    print(f"  a whole trial                      {statistics.median(wall for wall, _ in later):7.3f} s")
    print(
        f"  overhead over fit + after          {statistics.median(shares):7.1%} (at most {max(shares):.1%})"
    )
    print(f"  on disk, all {len(results)} trials              {logged / 2**20:7.1f} MiB")


if __name__ == "__main__":
    main()
