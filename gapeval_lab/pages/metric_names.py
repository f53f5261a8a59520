"""Which MLflow metric holds a number of an Outcome. The names are those of `tracking_scalars`."""

from gapeval_lab.gap.records import CONVERGED
from gapeval_lab.outcome import Outcome

Keys = tuple[str | int, ...]
"""The way to a value: fields, keys and places in lists."""

ENDS = {"value": "delta", "low": "low", "high": "high"}
STEPS = {"before": 0, "after": 1}


def metric_name(keys: Keys, outcome: Outcome) -> tuple[str, int | None] | None:
    """The metric for a place in the outcome, and its step (None: without steps); None where there is none.

    Whether the run has that metric is for the caller to see: some are left out where there are many.
    """
    name: str | None = None
    match keys:
        case ("shift", "gap", str(end)) if end in ENDS:
            name = f"{ENDS[end]}/gap_score"
        case ("shift", ("understanding" | "generation") as side, str(end)) if end in ENDS:
            name = f"{ENDS[end]}/{side}"
        case ("shift", "categories", category, "gap", str(end)) if end in ENDS:
            name = f"{ENDS[end]}/{category}"
        case ("shift", "one_sided", category, "accuracy", "shift", "value"):
            name = f"delta/{category}"
        case (("before" | "after" | "placebo") as state, "gap", "gap", "value"):
            name = f"{state}/gap_score"
        case (("before" | "after") as state, "gap", ("understanding" | "generation") as side, "value"):
            if outcome.before.gap.gap is not None:
                return f"{side}/overall", STEPS[state]
            name = f"{state}/{side}"
        case (("before" | "after") as state, "gap", "categories", category, "gap", "value"):
            name = f"{state}/{category}"
        case (("before" | "after") as state, "gap", "one_sided", category, "accuracy", "value"):
            name = f"{state}/{category}"
        case (("before" | "after") as state, "gap", "official", "mean"):
            name = f"official/{state}"
        case (("before" | "after"), "gap", "official", "band"):
            name = "official/rounding_band"
        case ("placebo_shift", "gap", "value"):
            name = "placebo/delta_gap_score"
        case ("identity_shift", "gap", "value"):
            name = "identity/delta_gap_score"
        case ("quality", *_):
            name = _quality(keys[1:], outcome)
        case ("protocols", int(number), *_):
            name = _protocol(keys[2:], outcome, number)
        case ("emergence", *_):
            return _emergence(keys[1:], outcome, "emergence", 0)
        case ("stages", int(number), "emergence", *_):
            return _emergence(keys[3:], outcome, f"emergence/{number + 1}", number)
        case ("seconds", phase):
            name = f"time/{phase}"
        case ("peak_memory_gib",):
            name = "memory/peak_gib"
        case ("merge_error",):
            name = "merge_error"
        case ("audit", "variants", int(number), "shift") if outcome.audit:
            name = "audit/converged" if outcome.audit.variants[number].name == CONVERGED else None
        case ("detectable", ("gap" | "understanding" | "generation") as what):
            name = "detectable/gap_score" if what == "gap" else f"detectable/{what}"
    return None if name is None else (name, None)


def _quality(keys: Keys, outcome: Outcome) -> str | None:
    protocols = outcome.quality.protocols if outcome.quality else []
    match keys:
        case ("transfer_ratio", "value"):
            return "edit/transfer_ratio"
        case ("locality_pixel_distance",):
            return "edit/locality_pixel_distance"
        case ("protocols", int(number), "cells", measure, "after", "value") if number:
            return f"edit/{measure}/{protocols[number].name}"
        case ("protocols", int(number), "over_direct", "reliability", "value"):
            return f"edit/over_direct/{protocols[number].name}"
        case (str(measure), ("text" | "image") as side, "after", "value"):
            return f"edit/{measure}/{side}"
    return None


def _protocol(keys: Keys, outcome: Outcome, number: int) -> str | None:
    protocol = outcome.protocols[number]
    last = "after" if protocol.after else "before"
    start = f"protocol/{protocol.name}"
    match keys:
        case (str(state), ("understanding" | "generation" | "gap") as what, "value") if state == last:
            return f"{start}/{'gap_score' if what == 'gap' else what}"
        case (str(state), "passed", side, "value") if state == last:
            return f"{start}/pass_{side}"
        case (str(state), "agreement", side, "value") if state == last:
            return f"{start}/agreement_{side}"
        case ("shift", what, "value"):
            return f"{start}/delta_{what}"
    return None


def _emergence(keys: Keys, outcome: Outcome, family: str, number: int) -> tuple[str, int | None] | None:
    emergence = outcome.stages[number].emergence if "/" in family else outcome.emergence
    match keys:
        case ("crossings", side, level):
            return f"{family}/crosses_{level}/{side}", None
        case ("lag", level):
            return f"{family}/lag_{level}", None
        case ("points", int(point), ("text" | "image" | "gap") as what) if emergence:
            return f"{family}/{what}", emergence.points[point].step
        case ("points", int(point), ("reliability" | "locality") as what, side) if emergence:
            return f"{family}/{what}/{side}", emergence.points[point].step
    return None
