"""What runs have in common and what not: seeds of one recipe taken together, settings that differ."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gapeval_lab.comparing_runs import Run
from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, Record
from gapeval_lab.summaries import Side, Summary
from gapeval_lab.tracking_values import flatten

NOTHING = ""
NOTHINGS = (None, "null", "{}", "[]")  # a path that a recipe lacks, or where it has nothing
OF_A_NAME = ("name", "seed")  # settings that stand in the table of runs
SIDES: tuple[Side, ...] = ("text", "image")


class Pooled(Record):
    """Runs of one recipe that differ in their seed alone: means over seeds."""

    name: str
    numbers: list[int]
    seeds: list[int]
    means: dict[str, Estimate]


class Setting(Record):
    """A dotted path of the recipes and what each run has there; None where it has nothing."""

    path: str
    values: list[str | None]


def pooled(runs: Sequence[Run]) -> list[Pooled]:
    """Runs that differ in their seed alone, taken together; those with no fellow are left out."""
    from gapeval_lab.repeats import over_seeds

    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        same = {key: value for key, value in run.summary.recipe.items() if key != "seed"}
        key = json.dumps([same, run.summary.weights_fingerprint, run.summary.data_hash], sort_keys=True)
        groups.setdefault(key, []).append(place)
    found = []
    for places in groups.values():
        if len({runs[place].summary.seed for place in places}) < 2:
            continue
        chosen = [runs[place].summary for place in places]
        means = {}
        for name in ("gap", "understanding", "generation"):
            values = [getattr(one.shift, name) for one in chosen if one.shift]
            values = [one.value for one in values if one is not None]
            if len(values) > 1:
                means[f"{name} shift"] = over_seeds(values)
        for measure in QUALITIES:
            for side in SIDES:
                shares = [one.quality.get(measure, {}).get(side) for one in chosen]
                known = [cell.after.value for cell in shares if cell is not None]
                if len(known) > 1:
                    means[f"{measure}/{side}"] = over_seeds(known, share=True)
        gaps = [one.last.gap.gap.value for one in chosen if one.last.gap.gap]
        if len(gaps) > 1:
            means["gap after" if chosen[0].shift else "gap"] = over_seeds(gaps)
        numbers, seeds = [place + 1 for place in places], [one.seed for one in chosen]
        found.append(Pooled(name=chosen[0].name, numbers=numbers, seeds=seeds, means=means))
    return found


def settings(summaries: Sequence[Summary]) -> list[Setting]:
    """Dotted paths of the recipes in which the runs differ; then versions and data that do."""
    flat: list[dict[str, str]] = []
    for one in summaries:
        found = {key: value for key, value in flatten(one.recipe).items() if key not in OF_A_NAME}
        found |= {"data_hash": one.data_hash[:12], "facts_hash": (one.facts_hash or "")[:12] or "none"}
        found |= {"weights_fingerprint": one.weights_fingerprint[:12]}
        found |= {f"versions.{name}": version for name, version in one.versions.items()}
        flat.append(found)
    # Recipes stored by an earlier version lack what stands at its default of nothing now.
    paths = sorted({path for found in flat for path in found})
    return [
        Setting(path=path, values=[found.get(path) for found in flat])
        for path in paths
        if len({NOTHING if found.get(path) in NOTHINGS else found.get(path) for found in flat}) > 1
    ]
