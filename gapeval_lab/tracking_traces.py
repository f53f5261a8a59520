"""One MLflow trace per item of a baseline, edit or inject run: what was asked, told and drawn, and verdicts.

The run page compares the traces of two runs side by side, paired by equal inputs of the root spans: so
these hold what was asked alone, no seed and no path. An edit's traces are of its state after, those of a
baseline of the state before. A trace's id follows from its run's and its item's: repeating doubles none.

Knows MLflow's entities of traces and the client's way to send them; how they are written at once into a
database stands in `tracking_traces_sql`. A failure here never fails a run.
"""

import base64
import datetime
import functools
import hashlib
import io
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from gapeval_lab.outcome import ItemRow, Outcome
from gapeval_lab.tracking_store import Store, user_name
from gapeval_lab.tracking_tables import Pair, cell
from gapeval_lab.tracking_traces_sql import SOURCE, bulk_store, insert, present

COUNT = "gapeval.traces"
"""The run's tag: '480 of 480', traces that are there of those there should be."""

SMALLEST, LARGEST = 160, 512  # pixels of an attachment's longer side; the pictures are in pictures.zip, too
CACHED = 16384  # bytes of a picture that is kept in memory once resized
CHUNK = 32  # traces per call with their spans
THREADS = 8
SHARE = 0.05  # of a run's time that traces may take where a server makes them dear
LEAST_SECONDS = 2.0
PREVIEW = 1000  # letters, MLflow's limit
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemTrace:
    """An item in one state.

    Attributes:
        trace_id: MLflow's, `tr-` and 32 hexadecimal digits.
        inputs: what was asked; the same in every run.
        row: what came of it.
        picture: the file of what was drawn, as MLflow attaches it, or None.
    """

    trace_id: str
    inputs: dict[str, str]
    row: ItemRow
    picture: Path | None

    @property
    def verdicts(self) -> dict[str, tuple[bool | str, str]]:
        """Name of an assessment -> value, reason; what was not scored has none."""
        row = self.row
        found: dict[str, tuple[bool | str, str]] = {}
        if row.understanding is not None:
            found["understanding"] = (row.understanding, row.understanding_reason)
        if row.generation is not None:
            found["generation"] = (row.generation, row.generation_reason)
        if len(found) == 2:
            found["outcome"] = (cell(row).replace(" ", "_"), "")
        return found


@dataclass(frozen=True)
class Made:
    """A trace as MLflow takes it.

    Attributes:
        info: MLflow's entity, still without assessments.
        spans: in MLflow's dictionary form.
        verdicts: id of an assessment -> name, value, reason.
        attachments: id -> content.
    """

    info: Any
    spans: list[dict[str, Any]]
    verdicts: dict[str, tuple[str, bool | str, str]]
    attachments: dict[str, bytes]


def has_traces(outcome: Outcome) -> bool:
    """Trials come in hundreds: they have none."""
    return outcome.kind != "trial"


def complete(count: str | None) -> bool:
    """Whether the tag `COUNT` says that every trace is there."""
    there, _, wanted = (count or "").partition(" of ")
    return bool(there) and there == wanted


def traces_link(experiment_id: str, run_id: str, baseline_run_id: str) -> str:
    """The address, in MLflow's UI, of a run's traces beside those of its baseline."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}/traces"
    return f"{page}?workflowType=machine_learning&compareToRunUuid={baseline_run_id}"


def changed(found: Sequence[Pair]) -> set[str]:
    """The ids of items whose verdict changed in a direction."""
    return {pair.before.id for pair in found if pair.flipped_image or pair.flipped_text}


def item_traces(
    run_id: str, found: Sequence[Pair], *, folder: Path, first: Collection[str]
) -> list[ItemTrace]:
    """A trace per item, those named in `first` before the others; pictures lie in the folder."""
    ordered = sorted(found, key=lambda pair: pair.before.id not in first)
    return [
        ItemTrace(
            trace_id=f"tr-{_digest(run_id, row.id)}",
            # Three: of four, MLflow's comparison would fold the first away, which is the item's name.
            inputs={"item": row.id, "question": row.question, "draw": row.draw_prompt},
            row=row,
            picture=folder / row.picture if row.picture else None,
        )
        for row in (pair.after or pair.before for pair in ordered)
    ]


def log_traces(
    store: Store,
    run: Any,
    outcome: Outcome,
    found: Sequence[Pair],
    *,
    folder: Path,
    first: Collection[str],
    patient: bool = False,
) -> str | None:
    """Write the traces of a run that are not there yet.

    Args:
        store: where the run is.
        run: MLflow's run.
        outcome: what is logged.
        found: its pairs.
        folder: where its pictures lie.
        first: ids of items whose traces come first, where there may be no time for all.
        patient: take the time that all of them need, also at a slow server.

    Returns:
        What the tag `COUNT` is to say, None where nothing could be written (a warning says why).
    """
    wanted = item_traces(run.info.run_id, found, folder=folder, first=first)
    try:
        there = _write(store, run, outcome, wanted, first=len(first), patient=patient)
    except Exception as error:  # whatever it is: numbers, tables and pictures are logged without traces
        words = " ".join(str(error).split())[:200]
        _log.warning(
            "the traces of run %s could not be written (%s: %s); all else is logged",
            *(run.info.run_id, type(error).__name__, words),
        )
        return None
    return f"{there} of {len(wanted)}"


def _write(
    store: Store, run: Any, outcome: Outcome, wanted: Sequence[ItemTrace], *, first: int, patient: bool
) -> int:
    """Write what is missing, the first of them in any case; returns how many are there."""
    make = functools.partial(_made, run=run, start=_milliseconds(outcome.started))
    quick = None if store.served else bulk_store(store.client)
    if quick is not None:
        ids = [trace.trace_id for trace in wanted]
        known = present(quick, ids)
        missing = [trace for trace in wanted if trace.trace_id not in known]
        insert(quick, run.info.experiment_id, (make(trace, place) for place, trace in enumerate(missing)))
        return len(wanted)
    began, seconds = time.monotonic(), max(LEAST_SECONDS, SHARE * sum(outcome.seconds.values()))
    known = _whole(store.client, run)
    missing = [trace for trace in wanted if trace.trace_id not in known]
    needed = sum(trace.trace_id not in known for trace in wanted[:first])
    sent = 0
    while sent < len(missing) and (patient or sent < needed or time.monotonic() - began < seconds):
        part = missing[sent : sent + CHUNK]
        _send(store, run, [make(trace, sent + place) for place, trace in enumerate(part)])
        sent += len(part)
    return len(known & {trace.trace_id for trace in wanted}) + sent


def _send(store: Store, run: Any, traces: Sequence[Made]) -> None:
    """Send traces through MLflow's client."""
    from mlflow.entities import Span
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.client import TracingClient

    client = TracingClient(store.uri)

    def start(made: Made) -> None:
        made.info.assessments = [feedback(made.info, *one) for one in made.verdicts.items()]
        place = client.start_trace(made.info).tags["mlflow.artifactLocation"]
        for name, content in made.attachments.items():
            get_artifact_repository(place, tracking_uri=store.uri).upload_attachment(name, content)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="gapeval-traces") as pool:
        list(pool.map(start, traces))
    # Last: with its spans a trace is whole.
    client.log_spans(run.info.experiment_id, [Span.from_dict(span) for made in traces for span in made.spans])


def _whole(client: Any, run: Any) -> set[str]:
    """The ids of the run's traces that have their spans."""
    found: set[str] = set()
    token = None
    while True:
        page = client.search_traces(
            locations=[run.info.experiment_id],
            run_id=run.info.run_id,
            max_results=500,
            page_token=token,
            include_spans=False,
        )
        found |= {t.info.trace_id for t in page if "mlflow.trace.spansLocation" in t.info.tags}
        token = page.token
        if not token:
            return found


def _made(trace: ItemTrace, place: int, *, run: Any, start: int) -> Made:
    """The trace as MLflow's entities. The UI lists the newest first, so earlier places are newer."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    content = _attachment(trace.picture)
    name, reference = "", None
    if content is not None:
        name = str(UUID(_digest(trace.trace_id, "picture")))
        query = f"content_type=image%2Fpng&trace_id={trace.trace_id}&size={len(content)}"
        reference = f"mlflow-attachment://{name}?{query}"
    outputs = {"answer": trace.row.answer, "picture": reference}
    when = start - place  # milliseconds; a trace lasts none of them, since prompts go in batches
    spans = _spans(trace, outputs, when * 1_000_000)
    sizes = sorted(len(str(span["attributes"])) for span in spans)
    asked, told = (json.dumps(value, ensure_ascii=False) for value in (trace.inputs, outputs))
    info = TraceInfo(
        trace_id=trace.trace_id,
        trace_location=TraceLocation.from_experiment_id(run.info.experiment_id),
        request_time=when,
        state=TraceState.OK,
        request_preview=asked[:PREVIEW],
        response_preview=told[:PREVIEW],
        execution_duration=0,
        trace_metadata={
            "mlflow.trace_schema.version": "3",
            "mlflow.sourceRun": run.info.run_id,
            "mlflow.source.name": "gapeval-lab",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
            "mlflow.traceInputs": asked[:PREVIEW],
            "mlflow.traceOutputs": told[:PREVIEW],
            "mlflow.trace.sizeBytes": str(sum(sizes)),
            "mlflow.trace.sizeStats": json.dumps(
                {"total_size_bytes": sum(sizes), "num_spans": len(sizes), "max": sizes[-1]}
                | {f"p{share}": sizes[len(sizes) * share // 100] for share in (25, 50, 75)}
            ),
        },
        tags={"mlflow.traceName": "item", "category": trace.row.category},
        assessments=[],
    )
    verdicts = {f"a-{_digest(trace.trace_id, one)}": (one, *said) for one, said in trace.verdicts.items()}
    return Made(info, spans, verdicts, {} if content is None else {name: content})


def feedback(info: Any, assessment_id: str, verdict: tuple[str, bool | str, str]) -> Any:
    """A verdict as MLflow's entity; repeated, it has the same id and is the same one."""
    from mlflow.entities import AssessmentSource, Feedback

    name, value, reason = verdict
    made = Feedback(
        name=name,
        value=value,
        rationale=reason or None,
        source=AssessmentSource(source_type="CODE", source_id=SOURCE),
        trace_id=info.trace_id,
        create_time_ms=info.request_time,
        last_update_time_ms=info.request_time,
    )
    made.assessment_id = assessment_id
    return made


def _spans(trace: ItemTrace, outputs: Mapping[str, Any], when: int) -> list[dict[str, Any]]:
    """The root span and one for each direction that was asked, in MLflow's dictionary form."""
    row = trace.row
    parts: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("item", trace.inputs, outputs)]
    if row.question:
        parts.append(("understanding", {"question": row.question}, {"answer": row.answer}))
    if row.draw_prompt:
        parts.append(("generation", {"draw": row.draw_prompt}, {"picture": outputs["picture"]}))
    root = _span_id(trace.trace_id, "item")
    return [
        {
            "trace_id": base64.b64encode(bytes.fromhex(trace.trace_id.removeprefix("tr-"))).decode(),
            "span_id": _span_id(trace.trace_id, name),
            "parent_span_id": None if name == "item" else root,
            "name": name,
            "start_time_unix_nano": when,
            "end_time_unix_nano": when,
            "events": [],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {
                "mlflow.traceRequestId": json.dumps(trace.trace_id),
                "mlflow.spanType": json.dumps("UNKNOWN"),
                "mlflow.spanInputs": json.dumps(asked, ensure_ascii=False),
                "mlflow.spanOutputs": json.dumps(told, ensure_ascii=False),
            },
            "links": [],
        }
        for name, asked, told in parts
    ]


def _span_id(trace_id: str, name: str) -> str:
    return base64.b64encode(bytes.fromhex(_digest(trace_id, name)[:16])).decode()


def _attachment(file: Path | None) -> bytes | None:
    """A PNG as the UI can show it, at most 512 pixels a side; None where there is no picture."""
    if file is None:
        return None
    content = file.read_bytes()
    # A PNG's width and height stand at a fixed place, so most files need not be opened as pictures.
    side = max(int.from_bytes(content[16:20]), int.from_bytes(content[20:24]))
    if content.startswith(b"\x89PNG") and SMALLEST <= side <= LARGEST:
        return content
    return _resized(content) if len(content) > CACHED else _resized_once(content)


def _resized(content: bytes) -> bytes:
    """Large pictures smaller, tiny ones with larger pixels: the UI shows them as they are."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
        if max(picture.size) > LARGEST:
            picture.thumbnail((LARGEST, LARGEST))
        elif (times := -(-SMALLEST // max(picture.size))) > 1:
            wide = (picture.width * times, picture.height * times)
            picture = picture.resize(wide, Image.Resampling.NEAREST)
        made = io.BytesIO()
        picture.save(made, "PNG", compress_level=1)
    return made.getvalue()


# Most items are drawn after as they are before.
_resized_once = functools.lru_cache(maxsize=1024)(_resized)


def _digest(*parts: str) -> str:
    """32 hexadecimal digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _milliseconds(started: str) -> int:
    return int(datetime.datetime.fromisoformat(started).timestamp() * 1000)


@functools.cache
def _user() -> str:
    return user_name()
