"""What tracking costs: the same run with MLflow and without, in turns, part by part.

    python scripts/bench_tracking.py --runs 3
    python scripts/bench_tracking.py --runs 1 --limit 60                # a quick look
    python scripts/bench_tracking.py --runs 12 --modes without beside   # no parts, but pairs

Each run is a fresh process; all write the same files. `beside` is what the command does: a process of its
own logs the run. `inside` logs it in the run's own process, and shows the parts that the other hides; parts
inside others are set in. The store is made by a first, uncounted run, as a project has it from its second run
on; `--new` gives each run a new one. Each run has a seed of its own, so that each logs a new baseline, too.
Seconds are by the clock and of the processor, those of the other process included.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapeval_lab.tracking_store import Store

MODES = ("without", "beside", "inside")
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
    """Seconds by the clock, and of the processor: this process's and its ended children's."""
    spent = os.times()
    return time.monotonic(), spent.user + spent.system + spent.children_user + spent.children_system


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
    from gapeval_lab.tracking_store import Store

    store = Store.open()
    if mode == "beside":
        from gapeval_lab.tracking_process import beside

        with beside(store) as tracker:
            from gapeval_lab.bench import load_bench
            from gapeval_lab.recipe import load
            from gapeval_lab.tracked_run import tracked_run

            bench = load_bench(load(recipe, overrides))
            tracked_run(bench, store=store, on_progress=lambda *_: None, track=tracker.track)
    elif mode == "inside":
        from gapeval_lab.bench import load_bench
        from gapeval_lab.recipe import load
        from gapeval_lab.tracked_run import tracked_run
        from gapeval_lab.tracking_patient import prepare

        watch(spent)
        began = clock()
        import mlflow  # noqa: F401

        spent["import MLflow"] = list(since(began))
        prepare(store)
        tracked_run(load_bench(load(recipe, overrides)), store=store, on_progress=lambda *_: None)
    else:
        untracked(recipe, overrides, store)
    print(json.dumps({"whole": since(start), "parts": spent}))


def untracked(recipe: str, overrides: list[str], store: "Store") -> None:
    """The run and its files, and no word to MLflow."""
    from gapeval_lab.bench import load_bench
    from gapeval_lab.pages.run_page import write_report
    from gapeval_lab.recipe import load
    from gapeval_lab.run import run
    from gapeval_lab.summaries import summary_of
    from gapeval_lab.work_folder import archive, working_folder

    bench = load_bench(load(recipe, overrides))
    with working_folder(store.folder, bench.key) as work:
        outcome = run(
            bench, home=store.folder, work=work, on_stage=lambda _: None, on_progress=lambda *_: None
        )
        write_report(outcome, work)
        summary_of(archive(work, store.folder / "outcomes" / outcome.run_id))


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


def in_pairs(without: list[list[float]], with_it: list[list[float]]) -> str:
    """The mean difference of runs beside each other, with its 95 % interval (Student's t).

    A machine whose speed drifts moves both runs of a pair, so this says more than two medians do.
    """
    from scipy.stats import t

    more = [one[0] - base[0] for one, base in zip(with_it, without, strict=True)]
    half = t.ppf(0.975, len(more) - 1) * statistics.stdev(more) / len(more) ** 0.5
    mean, base = statistics.mean(more), statistics.mean(value[0] for value in without)
    low, high = mean - half, mean + half
    shares = f"{100 * mean / base:+.1f} % ({100 * low / base:+.1f} to {100 * high / base:+.1f} %)"
    return f"{mean:+.2f} s ({low:+.2f} to {high:+.2f}), {shares}"


def main() -> None:
    """Run in turns, then print medians."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--new", action="store_true", help="a new store for each run")
    parser.add_argument("--pause", type=float, default=0, help="seconds before each run: let a machine cool")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for the command itself")
    args = parser.parse_args()
    given = [*args.overrides, *([f"evaluation.limit={args.limit}"] if args.limit else [])]
    if args.child:
        child(args.child, args.recipe, given)
        return
    modes = [mode for mode in MODES if mode in {"without", *args.modes}]
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        homes = {mode: Path(folder) / mode for mode in modes}
        if not args.new:
            for mode in modes[1:]:
                one(mode, homes[mode], args.recipe, [*given, "controls.placebo=false", "evaluation.limit=8"])
        for number in range(args.runs):
            for mode in modes[:: 1 if number % 2 else -1]:
                time.sleep(args.pause)
                home = Path(folder) / f"{mode}-{number}" if args.new else homes[mode]
                found[mode].append(one(mode, home, args.recipe, [*given, f"seed={number}"]))
    show(args.recipe, found)


def show(recipe: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Print what was measured."""
    runs = len(found["without"])
    print(
        f"{recipe}: {runs} runs of each kind, medians of seconds (clock, processor), and the share of a run"
    )
    whole = {mode: [run["whole"] for run in of_mode] for mode, of_mode in found.items()}
    base = median(whole["without"], 0), median(whole["without"], 1)
    for mode, values in whole.items():
        seconds = [median(values, which) for which in (0, 1)]
        more = " ".join(f"{100 * (seconds[which] / base[which] - 1):+7.1f} %" for which in (0, 1))
        print(f"  {'MLflow ' + mode:30} {seconds[0]:7.2f} {seconds[1]:7.2f}   {more}")
        print(f"    {'of ' + mode + ', by the clock':28} {' '.join(f'{value[0]:.1f}' for value in values)}")
        if mode != "without" and runs > 1:
            print(f"    {'in pairs, by the clock':28} {in_pairs(whole['without'], values)}")
    for name in ("import MLflow", *PARTS) if "inside" in found else ():
        values = [run["parts"][name] for run in found["inside"]]
        # The baseline is logged by `log_outcome`, too: its own seconds are in both lines.
        shares = " ".join(f"{100 * median(values, which) / base[which]:7.1f} %" for which in (0, 1))
        print(f"    {name:28} {median(values, 0):7.2f} {median(values, 1):7.2f}   {shares}")


if __name__ == "__main__":
    main()
