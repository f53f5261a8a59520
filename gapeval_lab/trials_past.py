"""Past runs that say something about a search: the same recipe but for what is searched over.

Reads params and metrics as MLflow has them, and no artifacts.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gapeval_lab.tracking_study import PastRun
from gapeval_lab.tracking_values import flatten, shortened

NO_MATTER = ("name", "about", "search", "controls", "emergence", "evaluation")
"""Parts of a recipe that the numbers on given items do not depend on; which items, the data's hash says."""


def past_of(
    runs: Iterable[PastRun], *, recipe: Mapping[str, Any], searched: Collection[str], facts_hash: str | None
) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Overrides and metrics of the runs that are trials of a search in all but name, oldest first.

    Args:
        runs: finished ones, of the same weights and the same items.
        recipe: of a trial, resolved.
        searched: dotted paths that may differ.
        facts_hash: of a trial's facts.
    """
    wanted = _settings(shortened(flatten(recipe)), searched)
    found = []
    for run in runs:
        values = {path: run.params[path] for path in searched if path in run.params}
        if len(values) < len(searched) or run.tags.get("outcome") == "pruned":
            continue
        if run.params.get("facts_hash") != facts_hash:
            continue
        if _settings(run.params, searched, like=recipe) == wanted:
            found.append(({path: _read(value) for path, value in values.items()}, run.metrics))
    return found


def _settings(
    params: Mapping[str, str], searched: Collection[str], *, like: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The params that numbers depend on and that are not searched over; empty values are not logged."""
    return {
        path: value
        for path, value in params.items()
        if value
        and path not in searched
        and path.split(".")[0] not in NO_MATTER
        and (like is None or path.split(".")[0] in like)
    }


def _read(text: str) -> Any:
    """A param as the value that it was: texts are logged bare, all else as JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
