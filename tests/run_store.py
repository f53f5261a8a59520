"""A store of hand-made runs: outcomes on disk, and MLflow's tables as far as they are read."""

import sqlite3

from factories import make_outcome

from gapeval_lab import cli
from gapeval_lab.outcome import Outcome, PhaseResult
from gapeval_lab.tracking_store import Store


def put(store: Store, name: str, outcome: Outcome | None = None, **changes: object) -> Outcome:
    """An outcome in the store's folder, changed."""
    folder = store.folder / "outcomes" / name
    folder.mkdir(parents=True)
    made = outcome or make_outcome(folder)
    made = made.model_copy(update={"run_id": name, **changes})
    made.save(folder)
    return made


def verdicts(result: PhaseResult, **flips: tuple[bool, bool]) -> PhaseResult:
    """The phase with other verdicts for some items, named by their ids with '_'."""
    known = {name.replace("_", "-"): pair for name, pair in flips.items()}
    rows = [
        row.model_copy(update={"understanding": known[row.id][0], "generation": known[row.id][1]})
        if row.id in known
        else row
        for row in result.rows
    ]
    return result.model_copy(update={"rows": rows})


def database(store: Store) -> sqlite3.Connection:
    """MLflow's tables, as far as they are read."""
    assert store.database is not None
    store.folder.mkdir(exist_ok=True)
    made = sqlite3.connect(store.database)
    made.executescript(
        "CREATE TABLE experiments (experiment_id INTEGER, name, lifecycle_stage);"
        "CREATE TABLE runs (run_uuid, name, status, start_time, end_time, artifact_uri, user_id, "
        "experiment_id, lifecycle_stage);"
        "CREATE TABLE latest_metrics (key, value, is_nan, run_uuid);"
        "CREATE TABLE params (key, value, run_uuid); CREATE TABLE tags (key, value, run_uuid);"
        "INSERT INTO experiments VALUES (1, 'gapeval/tiny', 'active');"
    )
    return made


def log(made: sqlite3.Connection, run_id: str, status: str = "FINISHED", **about: dict[str, object]) -> None:
    """A run in the tables; `about` is its tags, params and metrics."""
    at = made.execute("SELECT count(*) FROM runs").fetchone()[0]
    place = str(about.get("artifacts", {}).get("uri", ""))
    made.execute(
        "INSERT INTO runs VALUES (?,?,?,?,0,?,'me',1,'active')", (run_id, f"name-{run_id}", status, at, place)
    )
    tags = {"mlflow.runName": f"name-{run_id}", **about.get("tags", {})}
    made.executemany("INSERT INTO tags VALUES (?,?,?)", [(k, v, run_id) for k, v in tags.items()])
    params = about.get("params", {})
    made.executemany("INSERT INTO params VALUES (?,?,?)", [(k, v, run_id) for k, v in params.items()])
    metrics = about.get("metrics", {})
    made.executemany(
        "INSERT INTO latest_metrics VALUES (?,?,0,?)", [(k, v, run_id) for k, v in metrics.items()]
    )
    made.commit()


def call(*words: str) -> int:
    """The exit code of a command line."""
    try:
        cli.app(list(words), standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
