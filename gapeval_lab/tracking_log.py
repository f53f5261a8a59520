"""Writes an Outcome into one MLflow run. Safe to repeat: what is already there is not written twice.

Artifacts overwrite themselves, metrics and probes are asked for first, and a batch of metrics is one
transaction of the database. So a run that was killed while it was logging can simply be logged again.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from gapeval_lab import tracking_pictures, tracking_scalars, tracking_values, tracking_views
from gapeval_lab.files import write_text
from gapeval_lab.outcome import INPUTS, REPORT, Outcome
from gapeval_lab.tracking_figure import (
    draw_emergence,
    draw_gap_shift,
    draw_retention,
    emergence_data,
    gap_shift_data,
    retention_data,
)
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_system import PREFIX
from gapeval_lab.tracking_tables import Pair, Table, pairs, tables
from gapeval_lab.tracking_traces import COUNT, changed, has_traces, log_traces, traces_link

TITLES = {"updates": "When the facts were learned", "facts": "Facts written one after the other"}
METRIC_BATCH = 1000  # MLflow's limits per call
PARAM_BATCH = 100
DIGEST = 12  # letters of a hash in a dataset's chip; MLflow takes at most 36


def log_outcome(
    store: Store,
    run_id: str,
    *,
    outcome: Outcome,
    folder: Path,
    baseline_run_id: str | None,
    fingerprint: str,
    first: Collection[str] | None = None,
    patient: bool = False,
    report: bool = True,
) -> None:
    """Log everything about an outcome.

    Args:
        store: where the run is.
        run_id: MLflow's id of the run.
        outcome: what to log.
        folder: where the outcome's pictures and delta lie.
        baseline_run_id: the run to compare with, None for a baseline.
        fingerprint: of everything that the before phase depends on.
        first: ids of items whose traces come first; by default those that changed.
        patient: take the time for every trace, also at a slow server.
        report: bring the folder's report along; a baseline's folder is that of an edit, whose report it is.
    """
    client = store.client
    run = client.get_run(run_id)
    found = pairs(outcome)
    # Trials come in hundreds: their pictures stay in their folders.
    probes = [] if outcome.kind == "trial" else tracking_pictures.probes(found)
    with tempfile.TemporaryDirectory(prefix="gapeval-log-") as name:
        stage = Path(name)
        made = _stage_artifacts(outcome, found, folder=folder, stage=stage)
        if report and (folder / REPORT).exists():
            shutil.copyfile(folder / REPORT, stage / REPORT)
        client.log_artifacts(run_id, str(stage))
    model_id = _log_model(client, run, outcome=outcome, folder=folder)
    datasets = _log_datasets(client, run, outcome)
    _log_params(client, run, tracking_values.params(outcome))
    _log_metrics(client, run, outcome=outcome, model_id=model_id, dataset=datasets[0])
    _log_probes(client, run, probes=probes, folder=folder)
    tags = tracking_values.tags(outcome) | {"gapeval.fingerprint": fingerprint}
    if has_traces(outcome):
        count = log_traces(
            *(store, run, outcome, found),
            folder=folder,
            first=changed(found) if first is None else first,
            patient=patient,
        )
        tags |= {COUNT: count} if count else {}
    links: dict[str, str] = {}
    if baseline_run_id:
        tags["gapeval.baseline_run_id"] = baseline_run_id
        if baseline_run_id != run_id:
            ids, experiment_id = quote(json.dumps([baseline_run_id, run_id])), run.info.experiment_id
            if COUNT in tags:
                links["See every item beside the baseline's"] = traces_link(
                    experiment_id, run_id, baseline_run_id
                )
            links["Compare with the baseline"] = (
                f"#/compare-runs?runs={ids}&experiments={quote(json.dumps([experiment_id]))}"
                "&workflowType=machine_learning"
            )
    tags["mlflow.note.content"] = tracking_values.note(outcome, links=links)
    # The UI finds tables by this tag; the first one is what its compare page opens with.
    tags["mlflow.loggedArtifacts"] = json.dumps([{"path": table.path, "type": "table"} for table in made])
    set_tags(client, run_id, tags)
    tracking_views.write(
        client,
        run.info.experiment_id,
        categories=[tracking_values.clean_key(name) for name in outcome.before.gap.categories],
        probes=[_probe_key(pair) for pair in probes],
    )


def set_tags(client: Any, run_id: str, tags: dict[str, str]) -> None:
    """Set all tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _stage_artifacts(outcome: Outcome, found: Sequence[Pair], *, folder: Path, stage: Path) -> list[Table]:
    """Write every artifact into a local folder; returns the tables, in the order of the UI."""
    made = tables(outcome, found)
    if outcome.kind != "trial":
        chosen = tracking_pictures.selected(outcome, found)
        if chosen:
            made.insert(0, tracking_pictures.picture_table(chosen, folder, stage))
        tracking_pictures.archive(outcome, folder, stage / "pictures" / "pictures.zip")
        shift, kept = gap_shift_data(outcome), retention_data(outcome)
        figures: dict[str, Any] = {}
        if kept:
            figures["retention"] = draw_retention(kept, title="What each fact set still holds")
        for name, emergence in outcome.trainings().items():
            number = name.partition("/")[2]
            title = TITLES[emergence.unit] + (f", intervention {number}" if number else "")
            figures[name.replace("/", "-")] = draw_emergence(emergence_data(emergence), title=title)
        if shift:
            figures["gap_shift"] = draw_gap_shift(shift, title=tracking_values.headline(outcome))
        for name, figure in figures.items():
            (stage / "figures").mkdir(exist_ok=True)
            figure.savefig(stage / "figures" / f"{name}.svg")
            figure.savefig(stage / "figures" / f"{name}.png", dpi=110)
    if outcome.inputs and (folder / INPUTS).is_dir():
        shutil.copytree(folder / INPUTS, stage / INPUTS)
    for name in outcome.engine_logs:
        (stage / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, stage / "logs" / name)
    for table in made:
        table.write(stage)
    if outcome.recipe_text:
        write_text(stage / "recipe" / "recipe.yaml", outcome.recipe_text)
    resolved = yaml.safe_dump(outcome.recipe, sort_keys=False, allow_unicode=True)
    write_text(stage / "recipe" / "resolved.yaml", resolved)
    outcome.save(stage)
    return made


def _log_params(client: Any, run: Any, wanted: dict[str, str]) -> None:
    from mlflow.entities import Param

    new = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
    for start in range(0, len(new), PARAM_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + PARAM_BATCH])


def _log_metrics(
    client: Any, run: Any, *, outcome: Outcome, model_id: str | None, dataset: tuple[str, str]
) -> None:
    """Log scalars, then curves; (key, step) pairs that the run has already are left out.

    Scalars of a run with a model are tied to it and to the data, so that they stand in the Models tab.
    """
    from mlflow.entities import Metric

    run_id = run.info.run_id
    present = {
        (key, point.step)
        for key in run.data.metrics
        if not key.startswith(PREFIX)
        for point in client.get_metric_history(run_id, key)
    }
    now = int(time.time() * 1000)
    tied = (
        {"model_id": model_id, "dataset_name": dataset[0], "dataset_digest": dataset[1]} if model_id else {}
    )
    metrics = [
        Metric(key, value, now, 0, run_id=run_id, **tied)
        for key, value in tracking_scalars.scalars(outcome).items()
        if (key, 0) not in present
    ]
    metrics += [
        Metric(key, value, now, step)
        for key, points in tracking_values.curves(outcome).items()
        for step, value in points
        if (key, step) not in present
    ]
    for start in range(0, len(metrics), METRIC_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRIC_BATCH])


def _probe_key(pair: Pair) -> str:
    # MLflow's pattern for image keys is narrower than that for metrics.
    return "probes/" + re.sub(r"[^A-Za-z0-9_\-.]", "_", pair.before.id)


def _log_probes(client: Any, run: Any, *, probes: Sequence[Pair], folder: Path) -> None:
    """The same few items in every run, step 0 before and 1 after: charts show them with a slider."""
    run_id = run.info.run_id
    listed = {Path(entry.path).name for entry in client.list_artifacts(run_id, "images")} if probes else set()
    for pair in probes:
        key = _probe_key(pair)
        for step, row in enumerate([pair.before, *([pair.after] if pair.after else [])]):
            start = f"{key.replace('/', '~')}+step+{step}+"
            # The compressed copy is written last: with it, the probe is whole.
            whole = any(name.startswith(start) and name.endswith(".webp") for name in listed)
            if row.picture and not whole:
                picture = tracking_pictures.fit_file(folder / row.picture, 256)
                # Asynchronous by default in this one call, and lost on a kill.
                client.log_image(run_id, picture, key=key, step=step, synchronous=True)


def _log_model(client: Any, run: Any, *, outcome: Outcome, folder: Path) -> str | None:
    """The delta as a LoggedModel, downloadable as `models:/<id>`; returns the id."""
    from mlflow.entities import LoggedModelOutput

    if not outcome.delta_file or outcome.kind == "trial":
        return None
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    # One that a killed logging left unfinished is completed, not doubled.
    models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    if models:
        model = models[0]
    else:
        name = re.sub(r"[^\w-]+", "-", run.info.run_name or outcome.run_id)
        about = {
            "method": tracking_values.method(outcome.recipe),
            "direction": outcome.direction,
            "weights_fingerprint": outcome.weights_fingerprint,
        }
        model = client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            params=about,
            model_type="lora-adapter" if outcome.adapter else "weight-delta",
        )
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory(prefix="gapeval-delta-") as place:
            source = folder / outcome.delta_file
            shutil.copyfile(source, Path(place) / source.name)
            if outcome.adapter:
                shutil.copytree(folder / outcome.adapter, Path(place) / "adapter")
            client.log_model_artifacts(model.model_id, place)
        client.finalize_logged_model(model.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def _log_datasets(client: Any, run: Any, outcome: Outcome) -> list[tuple[str, str]]:
    """Benchmark and facts as datasets (a chip and a filter in the UI); returns (name, digest) of each.

    Their source is the run's own copy of the outcome, which holds both and does not move.
    """
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    node = outcome.recipe.get("benchmark")
    benchmark = str(node.get("use", "benchmark")) if isinstance(node, dict) else "benchmark"
    wanted = [(f"{benchmark}-{len(outcome.before.rows)}", outcome.data_hash[:DIGEST], "eval")]
    if outcome.facts_hash:
        target = tracking_values.short_target(outcome.target_categories)
        wanted.append((f"facts-{target}-{len(outcome.facts)}", outcome.facts_hash[:DIGEST], "inject"))
    present = {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
    source = LocalArtifactDatasetSource(f"{run.info.artifact_uri}/outcome.json")
    new = [
        DatasetInput(
            MetaDataset(source, name=name, digest=digest)._to_mlflow_entity(),
            [InputTag("mlflow.data.context", context)],
        )
        for name, digest, context in wanted
        if (name, digest) not in present
    ]
    if new:
        client.log_inputs(run.info.run_id, datasets=new)
    return [(name, digest) for name, digest, _ in wanted]
