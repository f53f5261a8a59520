"""Saved views of MLflow's UI: a leaderboard and a chart page that asks questions. Nothing else.

The format is MLflow's own and undocumented: a view is an experiment tag
`mlflow.sharedViewState.<key>` that holds {name, createdAt, updatedAt, state}, the state being
"deflate;" + base64(zlib(JSON)). Read from the UI of 3.17.2. So everything here may fail without
harm: another major version, or a refusal of the store, and no view is written.
"""

import base64
import json
import logging
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gapeval_lab.outcome import QUALITIES

PREFIX = "mlflow.sharedViewState."
LEADERBOARD = "gapeval-leaderboard"
GAP_SHIFT = "gapeval-gap-shift"
NAMES = {LEADERBOARD: "0 · Leaderboard", GAP_SHIFT: "1 · Gap shift (charts)"}
SUPPORTED_MAJOR = "3"
AXES = 5  # parallel coordinates are unreadable beyond
BARS = 4  # metrics in one bar card
WIDE, NARROW, SORTED = 140, 95, 165  # pixels of columns: their names are whole, also beside the sorting arrow
_HEADER = "deflate;"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewLinks:
    """Full addresses of one experiment's pages, for people to open."""

    experiment: str
    leaderboard: str
    gap_shift: str
    pictures: str


def encode(state: dict[str, Any]) -> str:
    """A view's state as the UI stores it."""
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return _HEADER + base64.b64encode(packed).decode()


def decode(text: str) -> dict[str, Any]:
    """The inverse of `encode`, as the UI does it.

    Raises:
        ValueError: the text has another header.
    """
    if not text.startswith(_HEADER):
        raise ValueError("a saved view's state starts with 'deflate;'")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text.removeprefix(_HEADER))))
    return state


def _id(name: str) -> str:
    """Ids of cards and sections: the same content gives the same tag."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"gapeval-lab/{name}"))


def _column(kind: str, key: str) -> str:
    return f"{kind}.`{key}`"


def _base_state() -> dict[str, Any]:
    return {
        "searchFilter": "",
        "orderByKey": _column("metrics", "delta/gap_score"),
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def leaderboard_state() -> dict[str, Any]:
    """The runs table: the gap before, after and its shift; on and off target; what was done; verdict."""
    scores = ("before/gap_score", "after/gap_score", "delta/gap_score", "delta/on_target", "delta/off_target")
    columns = [_column("metrics", key) for key in scores]
    columns += [_column("params", key) for key in ("method", "target", "direction")]
    columns += [_column("tags", "verdict"), _column("attributes", "Created")]
    widths = {column: WIDE if column.startswith("metrics") else NARROW for column in columns}
    widths |= {columns[2]: SORTED, _column("params", "target"): WIDE}
    return _base_state() | {"selectedColumns": columns, "columnOrder": columns, "columnWidths": widths}


def gap_shift_state(categories: Sequence[str], probes: Sequence[str]) -> dict[str, Any]:
    """The chart page: four questions, each a section of cards.

    Args:
        categories: of the benchmark, as they stand in metric keys.
        probes: image keys, as in 'probes/item-3'.
    """
    deltas = [f"delta/{name}" for name in categories]
    sections: dict[str, list[dict[str, Any]]] = {
        "Did the gap close?": [
            _bar("delta/gap_score"),
            _bar("before/gap_score", "after/gap_score"),
            _card("SCATTER", {"xaxis": _axis("delta/on_target"), "yaxis": _axis("delta/off_target")}),
        ],
        "Where did it move?": [
            _card(
                "PARALLEL",
                {
                    "selectedParams": ["method", "direction"],
                    "selectedMetrics": ["delta/on_target", "delta/off_target", "delta/gap_score"],
                    "showAllRuns": False,
                },
            ),
            *(_bar(*deltas[start : start + BARS]) for start in range(0, len(deltas), BARS)),
            _bar("delta/understanding", "delta/generation"),
            _card(
                "DIFFERENCE",
                {
                    "compareGroups": ["Model metrics"],
                    "chartName": "Runs difference view",
                    "showChangeFromBaseline": True,
                    "showDifferencesOnly": True,
                    "baselineColumnUuid": "",
                },
            ),
        ],
        "How did it get there?": [
            *(_line(key) for key in ("gap/overall", "understanding/overall", "generation/overall")),
            _line("train/loss"),
        ],
        "Did the edit take, in both directions?": [
            _bar(f"edit/{name}/text", f"edit/{name}/image") for name in QUALITIES
        ],
        "What does it draw now?": [
            _card("IMAGE", {"imageKeys": [key], "step": 1, "showRunParams": True}) for key in probes
        ],
    }
    asked = {name: cards for name, cards in sections.items() if cards}
    charts = []
    for name, cards in asked.items():
        for number, card in enumerate(cards):
            charts.append(card | {"uuid": _id(f"{name}/{number}"), "metricSectionId": _id(name)})
    # The UI adds a section for every other prefix of a metric; named here, they start folded.
    edits = [f"edit/{name}" for name in (*QUALITIES, "target_logprob")]
    folded = ["delta", "before", "after", "low", "high", "gap", "understanding", "generation", "train"]
    folded += ["edit", *edits, "placebo", "identity", "official", "delta_norm", "time", "memory", "probes"]
    both = [(name, True) for name in asked] + [(name, False) for name in folded]
    return _base_state() | {
        "selectedColumns": [_column("metrics", "delta/gap_score")],
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": _id(name),
                "name": name,
                "display": shown,
                "isReordered": False,
                "deleted": False,
                "isGenerated": not shown,
            }
            for name, shown in both
        ],
        "isAccordionReordered": True,
    }


def _card(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "runsCountToCompare": 20, "deleted": False, "isGenerated": False} | fields


def _axis(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}


def _bar(*keys: str) -> dict[str, Any]:
    fields = {"metricKey": keys[0], "selectedMetricKeys": list(keys), "displayName": " vs ".join(keys)}
    return _card("BAR", fields)


def _line(key: str) -> dict[str, Any]:
    fields = {
        "metricKey": key,
        "selectedMetricKeys": [key],
        "displayName": key,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "displayPoints": True,
    }
    return _card("LINE", fields)


def write(client: Any, experiment_id: str, *, categories: Sequence[str], probes: Sequence[str]) -> bool:
    """Write both views to the experiment; True if that was possible.

    A view that somebody has overridden in the UI is left alone (its two times differ).
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if mlflow.__version__.split(".")[0] != SUPPORTED_MAJOR:
        _log.debug("no saved views: MLflow %s is another major version", mlflow.__version__)
        return False
    states = {LEADERBOARD: leaderboard_state(), GAP_SHIFT: gap_shift_state(categories, probes)}
    try:
        present = client.get_experiment(experiment_id).tags
        for key, state in states.items():
            old = _envelope(present.get(PREFIX + key))
            packed = encode(state)
            if old and (old["createdAt"] != old["updatedAt"] or old["state"] == packed):
                continue
            # The list of views is sorted by time, newest first; ours stay in their order and last.
            made = old["createdAt"] if old else 1_700_000_000_000 - list(states).index(key)
            value = {"name": NAMES[key], "createdAt": made, "updatedAt": made, "state": packed}
            client.set_experiment_tag(experiment_id, PREFIX + key, json.dumps(value, ensure_ascii=False))
    except MlflowException as error:
        _log.debug("no saved views: %s", error)
        return False
    return True


def _envelope(text: str | None) -> dict[str, Any] | None:
    """The tag's content, or None where there is none or another MLflow wrote something else there."""
    try:
        found = json.loads(text or "null")
    except json.JSONDecodeError:
        return None
    known = isinstance(found, dict) and {"createdAt", "updatedAt", "state"} <= found.keys()
    return found if known else None


def links(base: str, experiment: str, experiment_id: str) -> ViewLinks:
    """Addresses that open the experiment in the right mode (MLflow opens in its GenAI mode) and view.

    Args:
        base: the server's address, 'http://127.0.0.1:5000'.
        experiment: the experiment's name.
        experiment_id: its id.
    """

    def page(view: str, mode: str) -> str:
        fields = {"workflowType": "machine_learning"}
        fields |= {"viewStateShareKey": view} if view else {}
        fields |= {"compareRunsMode": mode} if mode else {}
        return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(fields)}"

    return ViewLinks(experiment, page(LEADERBOARD, ""), page(GAP_SHIFT, "CHART"), page("", "ARTIFACT"))
