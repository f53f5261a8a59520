"""What tracking costs: the same run with MLflow and without, in turns, part by part.

    python scripts/bench_tracking.py --runs 3
    python scripts/bench_tracking.py --runs 1 --limit 60      # a quick look

Each run is a fresh process. The store is made by a first, uncounted run, as a project has it from its
second run on; `--new` gives each run a new one. Prints seconds by the clock and of processor time, the
share of the run without tracking, and the parts; parts inside others are set in. On a busy machine the
processor's seconds are the ones to look at.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = {  # name -> (module, function); importing MLflow is counted by itself
    "open the store": ("tracking_store", "Store.check"),
    "end lost runs": ("tracking_store", "Store.reconcile"),
    "stages": ("tracking", "LiveRun.stage"),
    "log the run": ("tracking", "log_outcome"),
    "  baseline": ("tracking", "baseline"),
    "  traces": ("tracking_log", "log_traces"),
    "  figures, tables, pictures": ("tracking_log", "_stage_artifacts"),
    "    picture table": ("tracking_pictures", "picture_table"),
    "    zip of all pictures": ("tracking_pictures", "archive"),
    "  model": ("tracking_log", "_log_model"),
    "  metrics": ("tracking_log", "_log_metrics"),
    "  probes": ("tracking_log", "_log_probes"),
    "  saved views": ("tracking_views", "write"),
}


def clock() -> tuple[float, float]:
    """Seconds by the clock and of the processor, both of this process."""
    return time.monotonic(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds since then."""
    now = clock()
    return now[0] - start[0], now[1] - start[1]


def timed(function: Callable[..., Any], spent: dict[str, list[float]], name: str) -> Callable[..., Any]:
    """The function, its seconds added up; calls inside a call of its own are not counted twice."""
    depth = [0]

    @functools.wraps(function)
    def wrapper(*args: Any, **how: Any) -> Any:
        start = clock()
        depth[0] += 1
        try:
            return function(*args, **how)
        finally:
            depth[0] -= 1
            if not depth[0]:
                wall, work = since(start)
                spent[name][0] += wall
                spent[name][1] += work

    return wrapper


def watch(spent: dict[str, list[float]]) -> None:
    """Put timers around the parts."""
    import importlib

    for name, (module, path) in PARTS.items():
        spent[name] = [0.0, 0.0]
        owner = importlib.import_module(f"gapeval_lab.{module}")
        *outer, last = path.split(".")
        for one in outer:
            owner = getattr(owner, one)
        setattr(owner, last, timed(getattr(owner, last), spent, name))


def child(mode: str, recipe: str, overrides: list[str]) -> None:
    """One run in this process; prints what it took as JSON."""
    start = clock()
    spent: dict[str, list[float]] = {}
    from gapeval_lab.bench import load_bench
    from gapeval_lab.recipe import load
    from gapeval_lab.run import run
    from gapeval_lab.tracked_run import tracked_run
    from gapeval_lab.tracking import Store
    from gapeval_lab.tracking_patient import prepare
    from gapeval_lab.work_folder import archive, working_folder

    loaded, store = load(recipe, overrides), Store.open()
    if mode == "with":
        watch(spent)
        began = clock()
        import mlflow  # noqa: F401

        spent["import MLflow"] = list(since(began))
        prepare(store)
        tracked_run(load_bench(loaded), store=store, on_progress=lambda *_: None)
    else:
        bench = load_bench(loaded)
        with working_folder(store.folder, bench.key) as work:
            outcome = run(
                bench, home=store.folder, work=work, on_stage=lambda _: None, on_progress=lambda *_: None
            )
            archive(work, store.folder / "outcomes" / outcome.run_id)
    print(json.dumps({"whole": since(start), "parts": spent}))


def one(mode: str, home: Path, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """What a run took, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", mode, "--recipe", recipe, *overrides],
        env=environment | {"GAPEVAL_LAB_HOME": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def median(values: list[list[float]], which: int) -> float:
    """Of the clock's (0) or the processor's (1) seconds."""
    return statistics.median(value[which] for value in values)


def main() -> None:
    """Run in turns, then print medians."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--new", action="store_true", help="a new store for each run")
    parser.add_argument("--child", choices=("with", "without"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for the command itself")
    args = parser.parse_args()
    given = [*args.overrides, *([f"evaluation.limit={args.limit}"] if args.limit else [])]
    if args.child:
        child(args.child, args.recipe, given)
        return
    found: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "shared"
        if not args.new:
            one("with", home, args.recipe, [*given, "controls.placebo=false", "evaluation.limit=8"])
        for number in range(args.runs):
            for mode in ("without", "with"):
                # A seed of its own: its answers lie in no cache, and its baseline is not logged yet.
                place = Path(folder) / f"{mode}-{number}" if args.new or mode == "without" else home
                found[mode].append(one(mode, place, args.recipe, [*given, f"seed={number}"]))
    whole = {mode: [run["whole"] for run in runs] for mode, runs in found.items()}
    print(f"{args.recipe}: {args.runs} runs of each kind, medians of seconds (clock, processor)")
    for mode, values in whole.items():
        print(f"  {mode + ' tracking':30} {median(values, 0):7.2f} {median(values, 1):7.2f}")
    base = median(whole["without"], 0), median(whole["without"], 1)
    own = ["import MLflow", *(name for name in PARTS if not name.startswith(" "))]
    for name in ("import MLflow", *PARTS):
        values = [run["parts"][name] for run in found["with"]]
        # The baseline is logged by `log_outcome`, too: its own seconds are in both lines.
        shares = [100 * median(values, which) / base[which] for which in (0, 1)]
        print(f"    {name:28} {median(values, 0):7.2f} {median(values, 1):7.2f}   {shares[1]:5.1f} %")
    for which, unit in ((0, "clock"), (1, "processor")):
        total = statistics.median(sum(run["parts"][name][which] for name in own) for run in found["with"])
        print(f"  tracking in all, {unit:13} {total:7.2f} = {100 * total / base[which]:.1f} % of the run")


if __name__ == "__main__":
    main()
