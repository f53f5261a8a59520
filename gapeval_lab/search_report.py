"""A study in numbers: what was found, at what cost, and how much of it holds on test. Plain data alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.trial import TrialState

from gapeval_lab.gap.records import Estimate
from gapeval_lab.search_study import SearchStudy, Taken
from gapeval_lab.study_settings import Search

PAID = ("fit", "after")
"""What a trial is for."""

FEWEST = 4
"""Finished trials below which importances mean nothing."""


@dataclass(frozen=True)
class Best:
    """A trial that won.

    Attributes:
        number: in the study.
        overrides: dotted path -> value.
        dev: goal -> value on dev.
        test: goal -> value on test; empty until it was run.
        optimism: goal -> dev minus test.
    """

    number: int
    overrides: dict[str, Any]
    dev: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    optimism: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """A study.

    Attributes:
        study, recipe, place: names, and where it is kept.
        goal: metric -> direction.
        constraints: as the recipe has them.
        finished, pruned, failed: trials that have a place; failed ones have no value.
        lost: trials that were begun and not ended (killed workers, Ctrl-C); they were tried again.
        running: trials that are going on, or wait.
        past: earlier runs that the study knows.
        saved: share of the planned item evaluations that pruning spared; None where nothing was planned.
        overhead: time of a trial beside its fit and its measurement, as a share of them; the median.
        best: the winners; none where no trial keeps the constraints.
        importances: goal -> parameter -> share of the goal's variation (PED-ANOVA).
        reasons: number -> why a trial has no value.
        recipes: the winners' recipes, where a search has just written them; no part of the study.
    """

    study: str
    recipe: str
    place: str
    goal: dict[str, str]
    constraints: list[str]
    finished: int
    pruned: int
    failed: int
    lost: int
    running: int
    past: int
    saved: float | None
    overhead: float | None
    best: list[Best]
    importances: dict[str, dict[str, float]]
    reasons: dict[int, str]
    recipes: tuple[Path, ...] = field(default=(), compare=False)


def summary(study: SearchStudy) -> Summary:
    """The study as it stands now."""
    trials = study.trials()
    own = [trial for trial in trials if "past" not in trial.user_attrs]
    failed = [t for t in own if t.state == TrialState.FAIL and "surplus" not in t.user_attrs]
    results = [trial.user_attrs["result"] for trial in own if "result" in trial.user_attrs]
    planned = sum(result["planned"] for result in results)
    return Summary(
        study=study.name,
        recipe=study.recipe,
        place=study.place.words,
        goal=dict(study.section.goal),
        constraints=list(study.section.constraints),
        finished=sum(trial.state == TrialState.COMPLETE for trial in own),
        pruned=sum(trial.state == TrialState.PRUNED for trial in own),
        failed=sum("reason" in trial.user_attrs for trial in failed),
        lost=sum("reason" not in trial.user_attrs for trial in failed),
        running=sum(not trial.state.is_finished() for trial in own),
        past=len(trials) - len(own),
        saved=1 - sum(result["asked"] for result in results) / planned if planned else None,
        overhead=_overhead(own),
        best=[_best(study, trial) for trial in study.winners()],
        importances=importances(study.optuna, study.section),
        reasons={t.number: t.user_attrs["reason"] for t in failed if "reason" in t.user_attrs},
    )


def importances(study: Any, section: Search) -> dict[str, dict[str, float]]:
    """Goal -> parameter -> importance, greatest first; empty while there are too few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < FEWEST:
        return {}
    found = {}
    for number, (goal, direction) in enumerate(section.goal.items()):
        if len({trial.values[number] for trial in done}) == 1:
            continue  # nothing varies, so nothing can be important
        sign = -1 if direction == "maximize" else 1  # the evaluator asks what makes a target small
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about that sign, and about parameters seen twice or less
            found[goal] = optuna.importance.get_param_importances(
                study, target=lambda trial, number=number, sign=sign: sign * trial.values[number]
            )
    return found


def trial_line(study: SearchStudy, taken: Taken, reason: str | None) -> str:
    """What a trial of this process gave, in a line."""
    trial = next(trial for trial in study.trials() if trial.number == taken.number)
    if reason is not None:
        outcome = f"no value: {reason}"
    else:
        values = {goal: _value(trial, goal, n) for n, goal in enumerate(study.section.goal)}
        outcome = "  ".join(f"{goal} {value:.4g}" for goal, value in values.items() if value is not None)
        outcome = f"pruned {outcome}" if trial.state == TrialState.PRUNED else outcome
    again = f" (again, was #{taken.retry_of:03d})" if taken.retry_of is not None else ""
    return f"#{taken.number:03d}{again}  {outcome}  [{told(taken.overrides)}]"


def told(overrides: Mapping[str, Any]) -> str:
    """Overrides in short: 'lr=0.2135 layers=[1, 2]'."""
    shown = {
        path.removeprefix("intervention."): f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        for path, value in overrides.items()
    }
    return " ".join(f"{path}={value}" for path, value in shown.items())


def note(found: Summary) -> list[str]:
    """The study as paragraphs of Markdown, the result in the first."""
    goals = ", ".join(f"{direction} `{goal}`" for goal, direction in found.goal.items())
    counts = f"{found.finished} trials finished, {found.pruned} pruned, {found.failed} without a value"
    lines = [f"**Search `{found.study}`** of `{found.recipe}`: {goals}. {counts}."]
    if found.constraints:
        lines.append("Kept: " + ", ".join(f"`{limit}`" for limit in found.constraints) + ".")
    if found.saved:
        lines.append(f"Pruning saved {100 * found.saved:.0f} % of the planned item evaluations.")
    rows = [
        f"| {best.number} | {told(best.overrides)} | {goal} | {best.dev[goal]:.4f} | {_on_test(best, goal)} |"
        for best in found.best
        for goal in found.goal
    ]
    if rows:
        head = ["| trial | settings | goal | dev | test | dev − test |", "|---|---|---|---|---|---|"]
        lines.append("\n".join([*head, *rows]))
    return lines


def _on_test(best: Best, goal: str) -> str:
    value, gap = best.test.get(goal), best.optimism.get(goal)
    shown = "" if value is None else f"{value:.4f}"
    return f"{shown} | " + ("" if gap is None else f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")


def _value(trial: Any, goal: str, number: int) -> float | None:
    """The goal's value; of a pruned trial, what was measured last."""
    values = trial.values
    return None if values is None or len(values) <= number else float(values[number])


def _best(study: SearchStudy, trial: Any) -> Best:
    tested = study.tested(trial) or {"metrics": {}, "optimism": {}}
    dev, test, optimism = {}, {}, {}
    for (measure, _), goal, value in zip(
        study.section.goals(), study.section.goal, trial.values, strict=True
    ):
        dev[goal] = float(value)
        on_test = measure.of(tested["metrics"])
        if on_test is not None:
            test[goal] = on_test
        if measure.name in tested["optimism"] and not measure.absolute:
            optimism[goal] = Estimate(**tested["optimism"][measure.name])
    return Best(trial.number, study.overrides(trial), dev, test, optimism)


def _overhead(trials: list[Any]) -> float | None:
    shares = []
    for trial in trials:
        seconds = trial.user_attrs.get("result", {}).get("seconds", {})
        paid = sum(seconds.get(phase, 0.0) for phase in PAID)
        if trial.state == TrialState.COMPLETE and paid:
            shares.append(trial.duration.total_seconds() / paid - 1)
    return median(shares) if shares else None
