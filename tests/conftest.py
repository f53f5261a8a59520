"""What all tests share: one torch thread per process, and the longest files first.

Two test processes run side by side and take file after file; a long one that comes last keeps one waiting.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

LONGEST = ("test_end_to_end", "test_search", "test_trials", "test_gap_official", "test_tracking_store")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, and keep the order in each."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
