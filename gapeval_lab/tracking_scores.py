"""A run's new scores in MLflow: metrics `judge/<name>/...` and the file, on the run that is there already."""

from __future__ import annotations

import time
from pathlib import Path

from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_log import METRIC_BATCH, set_tags
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_values import clean_key


def log_score(
    store: Store,
    outcome: Outcome,
    *,
    judge: str,
    digest: str,
    metrics: dict[str, float],
    file: Path,
) -> str | None:
    """Add a new score to the run's own MLflow run.

    A second judge of the same name gets a part of its hash after it, so that neither hides the other.

    Args:
        store: where the run may be; nothing is created in it.
        outcome: the run's record.
        judge, digest: the judge's name, and the hash of its settings.
        metrics: key -> value, without the leading `judge/<name>/`.
        file: the score, kept as an artifact.

    Returns:
        MLflow's id of the run, None where the store does not have it.
    """
    if store.database is not None and not store.database.exists():
        return None
    store.check()
    ids = [experiment_id for _, experiment_id in store.experiments()]
    query = f"tags.`gapeval.outcome` = '{outcome.run_id}' and tags.kind = '{outcome.kind}'"
    found = store.client.search_runs(ids, query, max_results=1) if ids else []
    if not found:
        return None
    from mlflow.entities import Metric

    run_id, name = str(found[0].info.run_id), clean_key(judge)
    if found[0].data.tags.get(f"gapeval.judge.{name}", digest) != digest:
        name = f"{name}-{digest[:6]}"
    now = int(time.time() * 1000)
    points = [Metric(clean_key(f"judge/{name}/{key}"), value, now, 0) for key, value in metrics.items()]
    for start in range(0, len(points), METRIC_BATCH):
        store.client.log_batch(run_id, metrics=points[start : start + METRIC_BATCH])
    store.client.log_artifact(run_id, str(file), "scores")
    set_tags(store.client, run_id, {f"gapeval.judge.{name}": digest})
    return run_id
