"""Shows runs in the browser: MLflow's server, started small, and the addresses worth opening.

Knows how to start a process and to ask whether it answers; refuses to print.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from gapeval_lab.errors import UserError
from gapeval_lab.tracking_stop import sigterm_raises
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_views import ViewLinks, links

HOST = "127.0.0.1"
READY_SECONDS = 600.0  # a server that dies is noticed at once; a busy machine took more than 180 s


def view_links(store: Store, base: str) -> list[ViewLinks]:
    """Addresses of every experiment of ours, newest first; empty before the first run.

    Args:
        store: where the runs are.
        base: the server's address, e.g. 'http://127.0.0.1:5000'.
    """
    return [links(base, name, experiment_id) for name, experiment_id in store.experiments()]


def server_command(store: Store, port: int) -> list[str]:
    """The command line of MLflow's server for this store.

    A bare `mlflow ui` reads other variables than the client and would open an empty database in the
    current directory.
    """
    return [
        sys.executable, "-m", "mlflow", "server",
        "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", store.uri,
        "--default-artifact-root", store.artifacts.as_uri(),
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip


def server_environment() -> dict[str, str]:
    """Our environment, with what makes the server small (2 processes, not 15) and silent."""
    defaults = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = defaults | dict(os.environ)
    # The server would take our store's address for a remote one.
    environment.pop("MLFLOW_TRACKING_URI", None)
    return environment


def ui(
    store: Store,
    port: int,
    *,
    ready: Callable[[Sequence[ViewLinks]], None],
    command: Sequence[str] | None = None,
) -> int:
    """Run the server until it is stopped (Ctrl-C), and say where to look once it answers.

    Where runs are kept by a server already, only the addresses are given.

    Args:
        store: checked before.
        port: local port to listen on.
        ready: gets the addresses, once.
        command: what to start instead of MLflow's server.

    Returns:
        The server's exit code; 0 after Ctrl-C.

    Raises:
        UserError: the port is taken, or the server did not start.
    """
    if store.served:
        ready(view_links(store, store.uri))
        return 0
    _check_port(port)
    base = f"http://{HOST}:{port}"
    with sigterm_raises():
        process = subprocess.Popen(list(command or server_command(store, port)), env=server_environment())
        try:
            _wait(process, base)
            ready(view_links(store, base))
            return process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port: {port} cannot be used ({error.strerror}); give another one, or stop what uses it"
            ) from None


def _wait(process: "subprocess.Popen[bytes]", base: str) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            raise UserError(
                f"ui: MLflow's server stopped at once (exit code {code}); its message stands above"
            )
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"ui: MLflow's server did not answer within {READY_SECONDS:.0f} s; try again")
