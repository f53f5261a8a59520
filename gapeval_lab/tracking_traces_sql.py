"""Hundreds of traces in one transaction of MLflow's database, where the client writes to one itself.

MLflow's own way takes 30 to 80 ms a trace, this one less than 1 ms. It uses MLflow's tables and its own
turning of entities into rows; where those are not as they were when this was written, `bulk_store` says
so, and traces go MLflow's way.
"""

import base64
import functools
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from gapeval_lab.tracking_traces import Made

KNOWN = ("3.17",)  # MLflow's minor versions whose tables are known
ROWS = 100  # traces per transaction: other processes wait for the database meanwhile
ASKED = 500  # ids per query
SOURCE = "gapeval_lab"
"""Who says what an assessment says."""


def bulk_store(client: Any) -> Any | None:
    """The store behind a client, where rows can be written into its database; else None."""
    import mlflow
    from mlflow.environment_variables import MLFLOW_SQL_TRACE_ROLLUPS_ENABLED
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    # A subclass (one of workspaces, say) may write more; rollups are kept up to date by MLflow's way alone.
    if type(store) is not SqlAlchemyStore or MLFLOW_SQL_TRACE_ROLLUPS_ENABLED.get():
        return None
    return store if mlflow.__version__.rpartition(".")[0] in KNOWN else None


def present(store: Any, ids: list[str]) -> set[str]:
    """Those of the ids that are traces already; they are whole, since they came in one transaction."""
    from mlflow.store.tracking.dbmodels.models import SqlTraceInfo

    found: set[str] = set()
    with store.ManagedSessionMaker() as session:
        for first in range(0, len(ids), ASKED):
            query = session.query(SqlTraceInfo.request_id)
            query = query.filter(SqlTraceInfo.request_id.in_(ids[first : first + ASKED]))
            found |= {name for (name,) in query}
    return found


def insert(store: Any, experiment_id: str, traces: "Iterable[Made]") -> None:
    """Write traces that are not there: files first, so that a trace that is there has its picture."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from sqlalchemy import insert as into

    base = str(store.get_experiment(experiment_id).artifact_location).rstrip("/")
    for part in _parts(iter(traces)):
        rows: dict[Any, list[dict[str, Any]]] = {}
        for made in part:
            place = f"{base}/traces/{made.info.trace_id}/artifacts"
            folder = _local(place)
            for name, content in made.attachments.items():
                if folder is None:
                    get_artifact_repository(place).upload_attachment(name, content)
                    continue
                (folder / "attachments").mkdir(parents=True, exist_ok=True)
                (folder / "attachments" / name).write_bytes(content)
            for table, row in _rows(made, place):
                rows.setdefault(table, []).append(row)
        with store.ManagedSessionMaker() as session:
            for table, values in rows.items():
                session.execute(into(table.__table__), values)


def _parts(traces: "Iterator[Made]") -> "Iterator[list[Made]]":
    while part := list(islice(traces, ROWS)):
        yield part


def _local(place: str) -> Path | None:
    """The folder of an address on this machine."""
    parts = urlsplit(place)
    if parts.scheme == "file" and not parts.netloc:
        return Path(unquote(parts.path))
    return Path(place) if parts.scheme == "" else None


def _rows(made: "Made", place: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(table, row) of everything about a trace, its own row first."""
    from mlflow.store.tracking.dbmodels.models import (
        SqlAssessments,
        SqlSpan,
        SqlTraceInfo,
        SqlTraceMetadata,
        SqlTraceTag,
    )

    info, trace_id, experiment = made.info, made.info.trace_id, int(made.info.experiment_id)
    yield (
        SqlTraceInfo,
        {
            "request_id": trace_id,
            "experiment_id": experiment,
            "timestamp_ms": info.request_time,
            "execution_time_ms": info.execution_duration,
            "status": info.state.value,
            "request_preview": info.request_preview,
            "response_preview": info.response_preview,
            "trace_name": info.tags["mlflow.traceName"],
        },
    )
    tags = {"mlflow.artifactLocation": place, "mlflow.trace.spansLocation": "TRACKING_STORE"}
    for key, value in (tags | {"category": info.tags["category"]}).items():
        yield SqlTraceTag, {"request_id": trace_id, "key": key, "value": value}
    for key, value in (info.trace_metadata | {"mlflow.trace.infoFinalized": "true"}).items():
        yield SqlTraceMetadata, {"request_id": trace_id, "key": key, "value": value}
    for span in made.spans:
        parent = span["parent_span_id"]
        yield (
            SqlSpan,
            {
                "trace_id": trace_id,
                "experiment_id": experiment,
                "span_id": base64.b64decode(span["span_id"]).hex(),
                "parent_span_id": None if parent is None else base64.b64decode(parent).hex(),
                "name": span["name"],
                "type": "UNKNOWN",
                "status": "OK",
                "start_time_unix_nano": span["start_time_unix_nano"],
                "end_time_unix_nano": span["end_time_unix_nano"],
                "content": json.dumps(span, ensure_ascii=False),
            },
        )
    for assessment_id, verdict in made.verdicts.items():
        own = {
            "assessment_id": assessment_id,
            "trace_id": trace_id,
            "rationale": verdict[2] or None,
            "experiment_id": experiment,
            "created_timestamp": info.request_time,
            "last_updated_timestamp": info.request_time,
            "trace_timestamp_ms": info.request_time,
        }
        yield SqlAssessments, _assessment(verdict[:2]) | own


@functools.cache
def _assessment(verdict: tuple[str, bool | str]) -> dict[str, Any]:
    """The row of an assessment as MLflow makes it: a handful of names and values in thousands of rows."""
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.store.tracking.dbmodels.models import SqlAssessments

    source = AssessmentSource(source_type="CODE", source_id=SOURCE)
    row = SqlAssessments.from_mlflow_entity(Feedback(name=verdict[0], value=verdict[1], source=source))
    return {column.key: getattr(row, column.key) for column in SqlAssessments.__table__.columns}
