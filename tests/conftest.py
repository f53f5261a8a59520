"""What all tests share: one torch thread per process, the longest files first, and one empty database.

Three test processes share two cores, since servers and browsers are waited for; each takes file after file,
and a long one that comes last keeps the others waiting.
"""

import gc
import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gapeval_lab.tracking_store import Store

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

LONGEST = (
    *("test_end_to_end", "test_docs", "test_tracking_server", "test_trials", "test_tracking_process"),
    *("test_easyedit", "test_search", "test_real_recipes", "test_browser_mlflow", "test_tracking"),
    *("test_report_audit", "test_tracking_store", "test_cli_search", "test_emu3", "test_gap_official"),
    *("test_shards", "test_interventions_contract", "test_embedded_emu3", "test_diffusion", "test_run"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, and keep the order in each."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports make no garbage, and looking for it among all that they made takes seconds, now and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 50, 1000)  # later imports make none either; tests are done before it matters


def pytest_sessionfinish() -> None:
    """Hypothesis, which may only be imported now, asks whether what others imported is still held."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _one_empty_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow takes a second to make a database, so a process makes one, and a new store gets its copy.

    test_tracking_store looks at the making itself, in processes of its own.
    """
    from gapeval_lab import tracking_store  # the process that starts the others imports none of ours

    made = tmp_path_factory.mktemp("database") / "empty.db"
    prepare = tracking_store._prepare_database

    def copied(database: Path, artifacts: Path) -> None:
        if database.exists() and database.stat().st_size:
            prepare(database, artifacts)
            return
        if not made.exists():
            prepare(made, artifacts)
        unfinished = database.with_name(database.name + ".unfinished")
        shutil.copyfile(made, unfinished)
        with sqlite3.connect(unfinished) as connection:  # of the experiment that every store has
            connection.execute("update experiments set artifact_location = ?", (f"{artifacts.as_uri()}/0",))
        connection.close()
        os.replace(unfinished, database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking_store, "_prepare_database", copied)
        yield


@pytest.fixture(scope="session", autouse=True)
def _logged_in_this_process() -> Iterator[None]:
    """A command's logging process takes seconds to import MLflow, which is here already.

    test_tracking_process looks at that process itself, and commands run as processes have theirs.
    """

    from gapeval_lab import tracking_process
    from gapeval_lab.tracking_patient import patient_track, prepare

    @contextmanager
    def here(store: Any) -> Iterator[Any]:
        prepare(store)
        yield SimpleNamespace(track=partial(patient_track, store))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking_process, "beside", here)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Store"]:
    """A store for a module's tests: what is logged takes long to make. They use different keys and seeds."""
    from gapeval_lab.tracking_store import Store

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = Store.open(tmp_path_factory.mktemp("store"))
        made.check()
        yield made
