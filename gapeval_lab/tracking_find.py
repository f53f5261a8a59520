"""A finished MLflow run's record, by the run's id or name: for runs whose folder is not at hand."""

import re
from pathlib import Path
from typing import Any

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import INPUTS
from gapeval_lab.tracking_store import Store

RECORD = "outcome.json"


def fetch(store: Store, ref: str, place: Path) -> str | None:
    """Bring a run's outcome, and the copies of what it read, into a folder.

    Args:
        store: checked.
        ref: MLflow's id of the run, or its name.
        place: an empty folder.

    Returns:
        the run's id; None where there is no such run.

    Raises:
        UserError: several runs have that name, or the run holds no outcome.
    """
    run = _run(store, ref)
    if run is None:
        return None
    run_id = str(run.info.run_id)
    names = {entry.path for entry in store.client.list_artifacts(run_id)}
    if RECORD not in names:
        raise UserError(
            f"run: the MLflow run {run_id} holds no outcome (it is {run.info.status.lower()}); name a "
            "finished run"
        )
    for name in (RECORD, INPUTS):
        if name in names:
            store.client.download_artifacts(run_id, name, str(place))
    return run_id


def _run(store: Store, ref: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    if re.fullmatch(r"[0-9a-f]{32}", ref):
        try:
            return store.client.get_run(ref)
        except MlflowException:
            return None
    ids = [identity for _, identity in store.experiments()]
    if not ids or "'" in ref:
        return None
    found = store.client.search_runs(ids, f"attributes.run_name = '{ref}' and attributes.status = 'FINISHED'")
    if len(found) > 1:
        raise UserError(
            f"run: {len(found)} MLflow runs are called '{ref}' (the newest is {found[0].info.run_id}); give "
            "the id of one"
        )
    return found[0] if found else None
