"""The interventions and the models of a store, ranked: a list for each thing that they have in common.

Runs on other items, by other judges or of other models stand in lists of their own, since their numbers are
not of one scale. Ranks are ranges: what the data cannot tell apart is not put in an order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gapeval_lab.comparing_runs import LEAST_TOLD, marks, open_all
from gapeval_lab.errors import UserError
from gapeval_lab.gap.ranks import rank_ranges
from gapeval_lab.gap.records import Estimate
from gapeval_lab.leaderboard_measures import Measured, Sort, measure
from gapeval_lab.outcome import Record
from gapeval_lab.summaries import Summary
from gapeval_lab.tracking_find import FINISHED, METRICS, Entry, entries
from gapeval_lab.tracking_read import Logged, metric_names
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_values import flatten, shortened
from gapeval_lab.validation import did_you_mean

LONGEST = 60  # letters of a judge's settings
KINDS = ("baseline", "edit", "inject", "trial")
OF_MODELS = "before/gap_score"  # what models are ranked by, unless another state of theirs is asked for

Candidate = tuple[Entry, Summary | None]


class Place(Record):
    """A run in a list.

    Attributes:
        best, worst: the ranks that the data allow, from 1; None where nothing is known of the metric's error,
            or the run lacks the metric.
        value: of the metric that is sorted by; low, high: its interval, None without one.
        reliability: side -> share of the edited facts that are right after the edit.
        marks: what speaks against the run.
    """

    best: int | None
    worst: int | None
    run_id: str
    mlflow_id: str
    name: str
    recipe: str
    method: str
    direction: str
    target: str
    umm: str
    seed: str
    value: float | None
    low: float | None
    high: float | None
    gap_before: float | None
    gap_after: float | None
    shift: Estimate | None
    gap: Estimate | None
    null_gap: float | None
    told: Estimate | None
    drawn: Estimate | None
    reliability: dict[str, float]
    placebo_shift: float | None
    marks: list[str]


class Ranked(Record):
    """Runs of one scale, best first; those without the metric come last.

    Attributes:
        of: "interventions" or "models".
        common: what they have in common, name -> value.
        metric, lower_is_better: what they are ranked by.
        how: how rows are told apart.
    """

    of: str
    common: dict[str, str]
    metric: str
    lower_is_better: bool
    how: str
    places: list[Place]


class Unfinished(Record):
    """A run without a result."""

    run_id: str
    name: str
    status: str
    started: float
    why: str


class Board(Record):
    """Everything that `leaderboard` tells."""

    lists: list[Ranked]
    unfinished: list[Unfinished]
    problems: list[str]
    trials: int = 0  # that are left out, unless asked for
    repeated: int = 0  # repetitions by `reproduce` that are left out, unless a filter takes them


def leaderboard(
    store: Store, *, where: str | None = None, sort: str = "delta/gap_score", kind: str | None = None
) -> Board:
    """Rank what is in a store.

    Args:
        store: where.
        where: a search filter in MLflow's syntax.
        sort: a metric, perhaps with 'asc' or 'desc'.
        kind: only runs of that kind; by default all but trials.

    Raises:
        UserError: an argument is wrong, or there is nothing to rank.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind: '{kind}' is none of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    order = Sort.parse(sort)
    found = entries(store, where=where, metrics=dict.fromkeys((*METRICS, order.metric)))
    trials = sum(entry.kind == "trial" for entry in found) if kind is None else 0
    # A run that MLflow does not know, or that failed early, has no kind yet.
    wanted = [e for e in found if (e.kind in (kind, "") if kind else e.kind != "trial")]
    runs, others, problems = open_all([e for e in wanted if e.status == FINISHED], store)
    candidates: list[Candidate] = [(run.entry, run.summary) for run in runs]
    candidates += [(entry, None) for entry in others if entry.logged and "data_hash" in entry.logged.params]
    # A repetition is no further evidence: it is taken only where a filter asks for it.
    repeated = [one for one in candidates if where is None and _repeats(one)]
    candidates = [one for one in candidates if one not in repeated]
    if kind:
        candidates = [one for one in candidates if _kind(one) == kind]
    unfinished = [] if kind == "baseline" else [_unfinished(e) for e in wanted if e.status != FINISHED]
    if not candidates and not unfinished:
        what = "matches" if where or kind else "is"
        raise UserError(
            f"leaderboard: no finished run {what} in {store.folder}; make one with 'gapeval-lab edit', see "
            "'gapeval-lab ls runs'"
        )
    edits = [one for one in candidates if _kind(one) != "baseline"]
    models = _once([one for one in candidates if _kind(one) == "baseline"])
    lists = [_ranked("interventions", common, rows, order) for common, rows in _groups(edits, models=False)]
    of_models = order if not order.metric.startswith(("delta/", "after/", "edit/")) else Sort(OF_MODELS, True)
    lists += [_ranked("models", common, rows, of_models) for common, rows in _groups(models, models=True)]
    _check_known(lists, order, edits or models, store)
    return Board(lists=lists, unfinished=unfinished, problems=problems, trials=trials, repeated=len(repeated))


def _check_known(lists: Sequence[Ranked], order: Sort, among: Sequence[Candidate], store: Store) -> None:
    """Refuse a metric that no run has."""
    ranked = [one for one in lists if one.metric == order.metric]
    if among and not any(place.value is not None for one in ranked for place in one.places):
        if order.metric == "delta/gap_score":
            return  # the default; models of one direction have no gap
        names = metric_names(store)
        raise UserError(
            f"--sort: no run that matches has '{order.metric}'{did_you_mean(order.metric, names)}"
        )


def _kind(one: Candidate) -> str:
    entry, summary = one
    return summary.kind if summary else entry.kind


def _repeats(one: Candidate) -> bool:
    entry, summary = one
    return bool(entry.reproduces or (summary and summary.reproduces))


def _unfinished(entry: Entry) -> Unfinished:
    tags = entry.logged.tags if entry.logged else {}
    why = tags.get("gapeval.end", "")
    return Unfinished(run_id=entry.id, name=entry.name, status=entry.status, started=entry.started, why=why)


def _once(models: Sequence[Candidate]) -> list[Candidate]:
    """Each measurement of a model once, however many runs logged it; the newest of them."""
    found: dict[str, Candidate] = {}
    for entry, summary in models:
        tag = entry.logged.tags.get("gapeval.fingerprint", "") if entry.logged else ""
        found[tag or entry.id] = (entry, summary)
    return list(found.values())


def _groups(candidates: Sequence[Candidate], *, models: bool) -> list[tuple[dict[str, str], list[Candidate]]]:
    """Runs by what makes their numbers comparable; the largest group first."""
    found: dict[tuple[str, ...], tuple[dict[str, str], list[Candidate]]] = {}
    for one in candidates:
        params = _params(one)
        judge = {name: value for name, value in params.items() if name.startswith("judge.")}
        common = {
            "benchmark": params.get("benchmark.use", "none"),
            "data": params.get("data_hash", "")[:12],
            "judge": _told(judge),
        }
        key: tuple[str, ...] = (common["benchmark"], params.get("data_hash", ""), str(sorted(judge.items())))
        if not models:
            common["model"] = _text(one, "umm")
            common["weights"] = params.get("weights_fingerprint", "")[:12]
            key += (common["model"], params.get("weights_fingerprint", ""))
        found.setdefault(key, (common, []))[1].append(one)
    return sorted(found.values(), key=lambda group: -len(group[1]))


def _told(judge: dict[str, str]) -> str:
    """A judge in a few words."""
    extra = [f"{name.removeprefix('judge.')}={value}" for name, value in judge.items() if name != "judge.use"]
    shown = ", ".join(extra)
    shown = shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
    return judge.get("judge.use", "none") + (f" ({shown})" if shown else "")


def _params(one: Candidate) -> dict[str, str]:
    """What MLflow has as params, of the outcome where it is there."""
    entry, summary = one
    if summary is None:
        return entry.logged.params if entry.logged else {}
    nodes = {key: summary.recipe[key] for key in ("benchmark", "judge") if summary.recipe.get(key)}
    found = {**flatten(nodes), "data_hash": summary.data_hash, "seed": str(summary.seed)}
    return shortened(found | {"weights_fingerprint": summary.weights_fingerprint})


def _text(one: Candidate, name: str) -> str:
    entry, summary = one
    if summary is None:
        return entry.logged.tags.get(name, "") if entry.logged else ""
    texts = {
        "umm": summary.umm,
        "recipe": summary.name,
        "method": "+".join(summary.methods) or "none",
        "direction": summary.direction if summary.methods else "",
        "target": ", ".join(summary.target_categories),
    }
    return texts[name]


def _ranked(of: str, common: dict[str, str], rows: Sequence[Candidate], order: Sort) -> Ranked:
    measured = measure([(summary, entry.logged) for entry, summary in rows], order.metric)
    has = ~np.isnan(measured.values)
    known = np.flatnonzero(has)
    errors = measured.errors[np.ix_(known, known)]
    # A difference of which nothing is known cannot tell two runs apart.
    ranges = rank_ranges(
        measured.values[known], np.nan_to_num(errors, nan=np.inf), lower_is_better=order.lower_is_better
    )
    # A run that has no interval is in no range but the whole one: no rank is claimed for it.
    certain = {
        int(place): span
        for place, span in zip(known, ranges, strict=True)
        if not np.isnan(measured.low[place]) or len(known) == 1
    }
    sign = 1.0 if order.lower_is_better else -1.0

    def order_of(i: int) -> tuple[bool, float, float]:
        return (not has[i], sign * float(measured.values[i]) if has[i] else 0.0, rows[i][0].started)

    sequence = sorted(range(len(rows)), key=order_of)
    return Ranked(
        of=of,
        common=common,
        metric=order.metric,
        lower_is_better=order.lower_is_better,
        how=_how(measured, known),
        places=[_place(rows[i], certain.get(i), measured, i) for i in sequence],
    )


def _how(measured: Measured, known: np.typing.NDArray[np.intp]) -> str:
    """How rows of a list are told apart, in a sentence or two."""
    if len(known) < 2:
        return ""
    bare = int(np.isnan(measured.low[known]).sum())
    if bare == len(known):
        return "the metric has no interval here: this is the order of single values, no rank is claimed"
    way = "from their own intervals, Holm-corrected over the others"
    if measured.paired == len(known):
        way = "differences paired by item, Holm-corrected over the others"
    elif measured.paired > 1:
        way = f"{measured.paired} of {len(known)} paired by item, the others not; Holm-corrected"
    more = f"; {bare} have no interval and no rank" if bare else ""
    return f"rank: the range that the data allow, for each row with 95 % ({way}){more}"


def _place(one: Candidate, span: tuple[int, int] | None, measured: Measured, i: int) -> Place:
    entry, summary = one
    metrics = entry.logged.metrics if entry.logged else {}
    best, worst = span if span is not None else (None, None)
    own = _of_summary(entry, summary) if summary else _of_metrics(metrics, entry.logged)
    return Place.model_validate(
        dict(
            best=best,
            worst=worst,
            run_id=entry.id,
            mlflow_id=entry.logged.run_id if entry.logged else "",
            name=entry.name,
            recipe=_text(one, "recipe"),
            method=_text(one, "method"),
            direction=_text(one, "direction"),
            target=_text(one, "target"),
            umm=_text(one, "umm"),
            seed=_params(one).get("seed", ""),
            value=_number(measured.values[i]),
            low=_number(measured.low[i]),
            high=_number(measured.high[i]),
            **own,
        )
    )


def _of_summary(entry: Entry, summary: Summary) -> dict[str, object]:
    before, shift = summary.states["before"].gap, summary.shift
    after = summary.states["after"].gap if "after" in summary.states else None
    placebo = summary.placebo_shift.gap if summary.placebo_shift else None
    reliability = summary.quality.get("reliability", {})
    return {
        "gap_before": before.gap.value if before.gap else None,
        "gap_after": after.gap.value if after and after.gap else None,
        "shift": shift.gap if shift else None,
        "gap": before.gap,
        "null_gap": before.null_gap,
        "told": shift.understanding if shift else before.understanding,
        "drawn": shift.generation if shift else before.generation,
        "reliability": {side: cell.after.value for side, cell in reliability.items()},
        "placebo_shift": placebo.value if placebo else None,
        "marks": marks(entry, summary),
    }


def _of_metrics(metrics: dict[str, float], logged: Logged | None) -> dict[str, object]:
    """What MLflow alone knows."""

    def shift(name: str) -> Estimate | None:
        ends = [metrics.get(f"{end}/{name}") for end in ("delta", "low", "high")]
        value, low, high = ends
        return None if value is None or low is None or high is None else Estimate(value, low, high)

    found = {side: metrics.get(f"edit/reliability/{side}") for side in ("text", "image")}
    reliability = {side: value for side, value in found.items() if value is not None}
    said = ["its outcome is not on this disk"]
    if "text" in reliability and reliability["text"] < LEAST_TOLD:
        said.append(f"edit did not take (told {100 * reliability['text']:.0f} %)")
    if logged and logged.status != FINISHED:
        said.append(logged.status.lower())
    return {
        "gap_before": metrics.get("before/gap_score"),
        "gap_after": metrics.get("after/gap_score"),
        "shift": shift("gap_score"),
        "gap": None,
        "null_gap": None,
        "told": shift("understanding"),
        "drawn": shift("generation"),
        "reliability": reliability,
        "placebo_shift": metrics.get("placebo/delta_gap_score"),
        "marks": said,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
