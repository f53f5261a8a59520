"""A scripted `Trials`, with its own recipe: as a module for tests, as a program for those that kill it.

python search_fake.py FOLDER TRIALS WORKERS SECONDS [KEY=VALUE ...]
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab import registry
from gapeval_lab.gap.records import Estimate
from gapeval_lab.recipe import LoadedRecipe, resolve
from gapeval_lab.search import Plan, run_search
from gapeval_lab.trials_types import Report, TestResult, TrialResult

PARTS = 4
ITEMS = 10

RECIPE = """\
name: searched
about: A fake.
seed: 3
model: {use: fake}
benchmark: {use: fake}
judge: {use: fake}
facts: {file: facts/x.jsonl}
intervention: {use: fake}
search:
  goal: {score: maximize}
  constraints: ["locality >= 0.5"]
  sampler: {use: tpe, n_startup_trials: 4}
  space:
    intervention.lr: {type: float, low: 0.01, high: 1.0, log: true}
    intervention.steps: {type: int, low: 1, high: 9}
    intervention.site: {type: choice, choices: [up, down, [both, sides]]}
    intervention.layers: {type: layers, first: [0, 3], count: [1, 2], when: {intervention.site: [up, down]}}
"""


class Nothing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FakeIntervention(Nothing):
    lr: float = Field(default=0.5, gt=0)
    steps: int = Field(default=5, ge=1)
    site: str | list[str] = "down"
    layers: tuple[int, ...] = (1,)


def use_fake_plug_ins() -> None:
    """Stand in for the built-in plug-ins, in this process."""
    parts = {kind: {"fake": f"{__name__}:Nothing"} for kind in ("models", "benchmarks", "judges")}
    table = {**parts, "interventions": {"fake": f"{__name__}:FakeIntervention"}}
    registry.BUILT_IN = table  # type: ignore[assignment]


def recipe(*overrides: str) -> LoadedRecipe:
    return resolve(RECIPE, source="searched.yaml", overrides=overrides)


class FakeTrials:
    """Scores by a formula, part by part; writes every start and end into a log."""

    parent_id = "parent"
    notes = ("Scripted.",)

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.earlier: list[tuple[dict[str, Any], dict[str, float]]] = []
        self.figures: dict[str, Any] = {}
        self.artifacts: list[Path] = []

    def note(self, event: str, number: int, **more: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps({"event": event, "number": number, "pid": os.getpid(), **more}) + "\n")

    def metric_names(self) -> frozenset[str]:
        return frozenset({"score", "locality", "cost/seconds"})

    def pairs(self, metric: str) -> int:
        return PARTS - 1

    def run(
        self, overrides: Mapping[str, Any], *, number: int, report: Report, retry_of: int | None = None
    ) -> TrialResult:
        self.note("start", number, retry_of=retry_of, overrides=dict(overrides))
        lr, steps = overrides["intervention.lr"], overrides.get("intervention.steps", 5)
        total = 1 - (lr - 0.3) ** 2 - abs(steps - 5) / 20 - len(overrides.get("intervention.layers", ())) / 50
        metrics: dict[str, float] = {}
        stopped = False
        for part in range(PARTS):
            time.sleep(self.seconds / PARTS)
            metrics = {"score": total, "part/score": total + part / 100, "locality": 1.1 - lr}
            if report(metrics, part):
                stopped = part + 1 < PARTS
                break
        self.note("end", number)
        asked = ITEMS * (part + 1)
        metrics["cost/seconds"] = float(steps)
        spent = {"fit": 0.0, "after": self.seconds * asked / (ITEMS * PARTS)}
        return TrialResult(metrics, f"run-{number}", stopped, asked, ITEMS * PARTS, spent)

    def past(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        return self.earlier

    def test(self, overrides: Mapping[str, Any], *, number: int) -> TestResult:
        self.note("test", number)
        optimism = {"score": Estimate(0.25, 0.1, 0.4)}
        return TestResult(metrics={"score": 0.5}, run_id=f"test-{number}", optimism=optimism)

    def recipe_of(self, overrides: Mapping[str, Any]) -> LoadedRecipe:
        return recipe("search=null", *(f"{path}={json.dumps(value)}" for path, value in overrides.items()))

    def run_of(self, number: int) -> str | None:
        return f"run-{number}"

    def lost(self, run_id: str) -> None:
        self.note("lost", int(run_id.removeprefix("run-")))

    def figure(self, name: str, figure: Any) -> None:
        self.figures[name] = figure

    def artifact(self, path: Path) -> None:
        self.artifacts.append(path)

    def tell(self, metrics: Mapping[str, float], *, note: str | None = None) -> None:
        self.told = (dict(metrics), note)


@contextlib.contextmanager
def fake_trials(folder: Path, seconds: float) -> Iterator[FakeTrials]:
    yield FakeTrials(folder, seconds)


def plan(folder: Path, *overrides: str, trials: int, workers: int = 1, storage: str | None = None) -> Plan:
    loaded = recipe(*overrides)
    return Plan(loaded, "searched", storage, trials, workers, folder / "optuna", folder / "locks")


def main() -> None:
    use_fake_plug_ins()
    folder, trials, workers, seconds = sys.argv[1:5]
    make = functools.partial(fake_trials, Path(folder), float(seconds))
    found = plan(Path(folder), *sys.argv[5:], trials=int(trials), workers=int(workers))
    run_search(found, make, say=functools.partial(print, flush=True))


if __name__ == "__main__":
    main()
