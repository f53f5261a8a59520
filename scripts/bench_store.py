"""How long `compare` and `leaderboard` take on a store of 500 runs with 200 metrics each.

    python scripts/bench_store.py [--runs 500] [--metrics 200] [--folder /tmp/bench-store]

Makes the store through MLflow's client, with outcomes of the shape of real ones (416 items, random
verdicts), and times whole commands, from the start of the process to its end; beside them, MLflow's own
search of the same runs. Wall seconds depend on what else the machine does, CPU seconds less so.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gapeval_lab.gap.one_sided import state_report, state_shift
from gapeval_lab.gap.table import ItemVerdict
from gapeval_lab.outcome import ItemRow, Outcome, PhaseResult
from gapeval_lab.tracking import Store, experiment_name
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_values import params, run_name, tags

CATEGORIES = ("world_knowledge", "numerical_perception", "instruction_following", "reasoning")
ITEMS = 104  # per category
METHODS = ("rome", "memit", "lora", "finetune", "alphaedit")
MODEL = "bench"
COMMANDS = {
    "leaderboard": ["leaderboard"],
    "leaderboard --where": [
        "leaderboard",
        "--where",
        "tags.method = 'rome' and metrics.`delta/gap_score` < 0",
    ],
    "compare --where (5 match)": ["compare", "--where", "params.benched = 'five'"],
    "compare --where (all match)": ["compare", "--where", "metrics.`delta/gap_score` < 10"],
    "ls runs": ["ls", "runs"],
}
SEARCH = """
from mlflow import MlflowClient
import sys
client = MlflowClient(tracking_uri=sys.argv[1])
ids = [e.experiment_id for e in client.search_experiments()]
print(len(client.search_runs(ids, sys.argv[2], max_results=5000)))
"""


def main() -> None:
    """Make the store where it is not there, and time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--metrics", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench-store"))
    given = parser.parse_args()
    store = Store.open(given.folder)
    if not (given.folder / "made").exists():
        shutil.rmtree(given.folder, ignore_errors=True)
        began = time.monotonic()
        make(store, runs=given.runs, metrics=given.metrics)
        (given.folder / "made").touch()
        print(f"{given.runs} runs x {given.metrics} metrics made in {time.monotonic() - began:.0f} s")
    print(f"{'':34}{'wall s':>8}{'CPU s':>8}")
    for file in store.folder.glob("outcomes/*/summary.json"):
        file.unlink()
    cli = [sys.executable, "-m", "gapeval_lab.cli"]
    timed("first leaderboard, no summaries", [*cli, "leaderboard"], given.folder)
    for name, words in COMMANDS.items():
        timed(name, [*cli, *words], given.folder)
    for name, where in (("all", ""), ("method", "tags.method = 'rome'")):
        timed(f"MLflow's search_runs, {name}", [sys.executable, "-c", SEARCH, store.uri, where], given.folder)


def timed(name: str, command: list[str], folder: Path) -> None:
    """Run a command and print what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "GAPEVAL_LAB_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    failed = f"   FAILED: {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""
    print(f"{name:34}{wall:8.2f}{spent:8.2f}{failed}")


def make(store: Store, *, runs: int, metrics: int) -> None:
    """The store: runs with outcomes on disk, logged in bulk."""
    from mlflow.entities import Metric, Param, RunTag

    store.check()
    experiment = store.experiment(experiment_name(MODEL))
    client = store.client
    before = phase(random.Random(0), 0.75, 0.5)
    for number in range(runs):
        outcome = outcome_of(number, before)
        outcome.save(store.folder / "outcomes" / outcome.run_id)
        name = run_name(outcome.recipe, targets=outcome.target_categories, direction=outcome.direction)
        run_id = client.create_run(experiment, run_name=name).info.run_id
        found = scalars(outcome)
        found |= {f"extra/{i}": random.Random(i).random() for i in range(metrics - len(found))}
        logged = params(outcome) | {"benched": "five" if number < 5 else "more"}
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in found.items()],
            params=[Param(key, value) for key, value in logged.items()][:100],
            tags=[RunTag(key, value) for key, value in tags(outcome).items()],
        )
        client.set_terminated(run_id, "FINISHED")


def phase(rng: random.Random, told: float, drawn: float) -> PhaseResult:
    """Random verdicts as a phase of a run."""
    rows = [
        ItemRow(
            id=f"{category}-{number}",
            category=category,
            subcategory="plain",
            question=f"What is the colour of the thing number {number}, of all those in the picture?",
            draw_prompt=f"Draw the thing number {number} in the colour that it has.",
            reference="blue",
            answer="blue",
            picture=f"pictures/after/{category}-{number}.png",
            understanding=rng.random() < told,
            generation=rng.random() < drawn,
            understanding_reason="the answer is the reference",
            generation_reason="seen in the picture",
        )
        for category in CATEGORIES
        for number in range(ITEMS)
    ]
    return PhaseResult(gap=state_report(verdicts(rows), seed=0, replicates=500, official=False), rows=rows)


def verdicts(rows: list[ItemRow]) -> list[ItemVerdict]:
    """The rows' verdicts."""
    return [ItemVerdict(row.category, row.understanding, row.generation) for row in rows]


def outcome_of(number: int, before: PhaseResult) -> Outcome:
    """A run of its own strength."""
    rng = random.Random(number + 1)
    strength = rng.random()
    after, placebo = phase(rng, 0.75, 0.45 + 0.3 * strength), phase(rng, 0.75, 0.5)
    method = METHODS[number % len(METHODS)]
    when = f"{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}"
    first = verdicts(before.rows)

    def shift(state: PhaseResult):  # type: ignore[no-untyped-def]
        return state_shift(first, verdicts(state.rows), seed=0, replicates=500)

    return Outcome(
        run_id=f"{method}_bench-20261121T{when}-{number:06x}",
        kind="edit",
        recipe={
            "name": f"{method}_bench",
            "seed": number,
            "model": {"use": "janus", "weights": "embedded"},
            "benchmark": {"use": "tinyworld"},
            "judge": {"use": "exact"},
            "intervention": {"use": method, "layer": number % 4, "lr": strength},
            "evaluation": {f"setting{i}": i for i in range(60)},
        },
        recipe_text="",
        recipe_hash=f"{number:064x}",
        overrides=[],
        target_categories=["world_knowledge"],
        direction="text",
        umm=MODEL,
        seed=number,
        started="2026-11-21T00:00:00+00:00",
        versions={"torch": "2"},
        git_revision=None,
        data_hash="12" * 32,
        facts_hash=None,
        weights_fingerprint="34" * 32,
        weights_fingerprint_reverted="34" * 32,
        reverted=True,
        before=before,
        after=after,
        placebo=placebo,
        identity=None,
        shift=shift(after),
        placebo_shift=shift(placebo),
        identity_shift=None,
        quality=None,
        delta_file=None,
        delta_norms={},
        curves={},
        seconds={"before": 1.0},
        peak_memory_gib=1.0,
        facts=[],
    )


if __name__ == "__main__":
    main()
