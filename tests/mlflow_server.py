"""A real MLflow server in a thread of the test process, and a door before it that can be shut."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[int]:
    """MLflow's own application on a database in a folder, artifacts served; the port.

    A thread, since a process of its own takes ten seconds to import what this one has imported.
    """
    from gapeval_lab.tracking_store import _prepare_database

    folder.mkdir(parents=True, exist_ok=True)
    _prepare_database(folder / "server.db", folder / "default")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'server.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "served"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }.items():
            patch.setenv(name, value)
        import uvicorn
        from mlflow.server import fastapi_app, handlers

        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        patch.setattr(handlers, "_artifact_repo", None)
        # A server's process is at its own database; this one is the client's, too.
        patch.setattr(handlers.utils, "set_tracking_uri", lambda uri: None)
        patch.setattr(handlers.registry_utils, "set_registry_uri", lambda uri: None)
        # Its protocol named, or asyncio leaves small parts of an answer waiting for one another.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(fastapi_app.app, log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            try:
                yield listening.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join(20)


class Door:
    """Passes connections on to a server while it is open; shut it refuses them, stuck it never answers.

    Attributes:
        shuts_at: shuts for good as soon as what a client sends makes this true; None never does.
        seen: bytes of requests that came through.
    """

    def __init__(self, port: int) -> None:
        self.behind = port
        self.state = "open"
        self.shuts_at: Callable[[bytes], bool] | None = None
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client:
            if self.state == "stuck":
                while self.state == "stuck" and client.recv(65536):
                    pass
                return
            if self.state == "shut":
                return
            with socket.create_connection(("127.0.0.1", self.behind)) as server:
                for one in (client, server):  # else small parts wait for one another, 40 ms each time
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._both(client, server)

    def _both(self, client: socket.socket, server: socket.socket) -> None:
        while self.state == "open":
            ready, _, _ = select.select([client, server], [], [], 0.05)
            for one in ready:
                try:
                    data = one.recv(65536)
                    if one is client and self.shuts_at and self.shuts_at(data):
                        self.state = "shut"
                        return
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
                except OSError:
                    return
