"""What a run needs of the machine (processor, memory, disk, network, GPU) as metrics over its time.

A run of less than a minute has none: they begin when it has lasted that long, and cost a few
milliseconds every ten seconds. MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true begins at once, =false never.
A GPU is seen where nvidia-ml-py (or pyrsmi, for AMD) is installed.
"""

import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

from gapeval_lab.tracking_store import Store

AFTER_SECONDS = 60.0
PREFIX = "system/"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def system_metrics(store: Store, run_id: str, *, after: float | None = None) -> Iterator[None]:
    """Watch the machine while the block runs; a run that is continued goes on at its last step.

    Args:
        store: where the run is.
        run_id: MLflow's id.
        after: seconds until the watch begins; by default as the environment says.
    """
    after = _delay() if after is None else after
    if after is None:
        yield
        return
    watch = _Watch(store, run_id)
    timer = threading.Timer(after, watch.start)
    timer.daemon, timer.name = True, "gapeval-system-metrics"
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be starting the watch now
        watch.stop()


def node_id() -> str:
    """This machine's name as part of a metric's."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII) or "node"


def _delay() -> float | None:
    """Seconds until the watch begins, None where it is not wanted."""
    asked = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower()
    if asked in ("true", "1"):
        return 0.0
    return None if asked in ("false", "0") else AFTER_SECONDS


class _Watch:
    """MLflow's own monitor, silenced: what it cannot do is no reason to stop a run, or to talk."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.monitor: Any = None

    def start(self) -> None:
        try:
            logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(
                self.run_id, node_id=node_id(), resume_logging=True, tracking_uri=self.store.uri
            )
            self.monitor.start()
        except Exception as error:
            _log.debug("no system metrics: %s", error)

    def stop(self) -> None:
        if self.monitor is not None:
            with contextlib.suppress(Exception):
                self.monitor.finish()
