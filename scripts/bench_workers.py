"""Trials per minute of a search with one worker and with two, on the same trials, one thread each.

    OMP_NUM_THREADS=1 python scripts/bench_workers.py --trials 12

Both draw the same settings at random. The pace is counted from trial to trial, first end to last, so that
loading models and measuring the state before, once per worker and once per store, are left out; the wall
time holds everything, the test of the best trial too, and of the first the state before.
"""

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

from gapeval_lab.recipe import load
from gapeval_lab.search import Plan, run_search, trials_of
from gapeval_lab.tracking_store import Store


@dataclass(frozen=True)
class Pace:
    """Of one study: seconds of a trial (median), trials per minute, seconds in all."""

    trial: float
    per_minute: float
    wall: float


def quiet(line: str) -> None:
    """What a search says of each trial is not for here; workers are handed this by name."""


def paced(recipe: str, overrides: list[str], *, trials: int, workers: int) -> Pace:
    """Run a study in the store of `GAPEVAL_LAB_HOME`."""
    blind = ["search.sampler={use: random, seed: 0}", "search.pruner={use: none}", *overrides]
    loaded = load(recipe, blind)
    store = Store.open()
    store.check()
    study = f"workers-{workers}"
    plan = Plan(loaded, study, None, trials, workers, store.folder / "optuna", store.locks)
    began = time.monotonic()
    run_search(plan, functools.partial(trials_of, loaded, study), say=quiet)
    wall = time.monotonic() - began
    found = plan.open().trials()
    ends = sorted(trial.datetime_complete for trial in found)
    # The last ones may run alone, when no other is left.
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(ends)]
    counted = gaps[: len(gaps) - (workers - 1)]
    lengths = [trial.duration.total_seconds() for trial in found[1:]]
    return Pace(statistics.median(lengths), 60 * len(counted) / sum(counted), wall)


def main() -> None:
    """Run, then print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for `gapeval-lab search`")
    args = parser.parse_args()
    paces = {}
    with tempfile.TemporaryDirectory() as os.environ["GAPEVAL_LAB_HOME"]:
        for workers in (1, args.workers):
            paces[workers] = paced(args.recipe, args.overrides, trials=args.trials, workers=workers)
    print(f"{args.recipe}, {args.trials} trials, {os.cpu_count()} cores, one thread per worker")
    for workers, pace in paces.items():
        print(
            f"  {workers} workers: a trial {pace.trial:6.2f} s, {pace.per_minute:6.2f} trials a minute, "
            f"{pace.wall:6.1f} s in all"
        )
    print(f"  {paces[args.workers].per_minute / paces[1].per_minute:.2f} times the trials a minute")


if __name__ == "__main__":
    main()
