"""Saved views and the server: what is written can be read as the UI reads it."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from gapeval_lab import tracking_ui, tracking_views
from gapeval_lab.errors import UserError
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_views import GAP_SHIFT, LEADERBOARD, PREFIX, decode, encode, links

CATEGORIES = ["a", "b", "c", "d", "e"]
PROBES = ["probes/x-1", "probes/y-2"]


class FakeClient:
    """Keeps experiment tags; refuses where it is told to."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.tags: dict[str, str] = {}
        self.refuses = refuses
        self.writes = 0

    def get_experiment(self, experiment_id: str) -> SimpleNamespace:
        assert experiment_id == "1"
        return SimpleNamespace(tags=dict(self.tags))

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        if self.refuses:
            raise MlflowException("no")
        self.writes += 1
        self.tags[key] = value


def written(client: FakeClient, key: str) -> tuple[dict, dict]:
    """(envelope, decoded state), read as the UI does."""
    envelope = json.loads(client.tags[PREFIX + key])
    return envelope, decode(envelope["state"])


def test_what_is_written_decodes_to_both_views():
    client = FakeClient()
    assert tracking_views.write(client, "1", categories=CATEGORIES, probes=PROBES)
    envelope, board = written(client, LEADERBOARD)
    assert envelope["name"] == "0 · Leaderboard"
    assert isinstance(envelope["createdAt"], int)
    assert board["orderByKey"] == "metrics.`delta/gap_score`"
    assert board["orderByAsc"] is True
    assert board["selectedColumns"][:3] == [
        "metrics.`before/gap_score`",
        "metrics.`after/gap_score`",
        "metrics.`delta/gap_score`",
    ]
    assert "tags.`verdict`" in board["selectedColumns"]

    envelope, charts = written(client, GAP_SHIFT)
    assert envelope["name"] == "1 · Gap shift (charts)"
    shown = [section["name"] for section in charts["compareRunSections"] if section["display"]]
    assert shown == [
        "Did the gap close?",
        "Where did it move?",
        "How did it get there?",
        "Did the edit take, in both directions?",
        "What does it draw now?",
    ]
    sections = {section["uuid"]: section["name"] for section in charts["compareRunSections"]}
    cards = charts["compareRunCharts"]
    assert len({card["uuid"] for card in cards}) == len(cards)
    kinds: dict[str, list[str]] = {}
    for card in cards:
        kinds.setdefault(sections[card["metricSectionId"]], []).append(card["type"])
    assert kinds["Did the gap close?"] == ["BAR", "BAR", "SCATTER"]
    # Five categories make two cards: four bars at most in one.
    assert kinds["Where did it move?"] == ["PARALLEL", "BAR", "BAR", "BAR", "DIFFERENCE"]
    assert kinds["What does it draw now?"] == ["IMAGE", "IMAGE"]
    assert max(len(card["selectedMetricKeys"]) for card in cards if card["type"] == "BAR") == 4
    parallel = next(card for card in cards if card["type"] == "PARALLEL")
    assert len(parallel["selectedParams"] + parallel["selectedMetrics"]) <= 5
    assert all(len(value) < 20_000 for value in client.tags.values())


def test_a_view_is_written_once_and_a_persons_change_is_kept():
    client = FakeClient()
    tracking_views.write(client, "1", categories=CATEGORIES, probes=PROBES)
    tracking_views.write(client, "1", categories=CATEGORIES, probes=PROBES)
    assert client.writes == 2
    tracking_views.write(client, "1", categories=["other"], probes=PROBES)
    assert client.writes == 3
    mine = {"name": "mine", "createdAt": 1, "updatedAt": 2, "state": "x"}
    client.tags[PREFIX + GAP_SHIFT] = json.dumps(mine)
    client.tags[PREFIX + LEADERBOARD] = "of an unknown form"
    tracking_views.write(client, "1", categories=CATEGORIES, probes=[])
    assert json.loads(client.tags[PREFIX + GAP_SHIFT]) == mine
    assert written(client, LEADERBOARD)[0]["name"] == "0 · Leaderboard"


def test_another_major_version_or_a_refusal_writes_nothing_and_raises_nothing(monkeypatch):
    import mlflow

    assert not tracking_views.write(FakeClient(refuses=True), "1", categories=CATEGORIES, probes=[])
    client = FakeClient()
    monkeypatch.setattr(mlflow, "__version__", "4.0.0")
    assert not tracking_views.write(client, "1", categories=CATEGORIES, probes=[])
    assert client.tags == {}


def test_encoding_is_undone_by_decoding_and_a_strange_header_is_refused():
    state = {"umlaut": "ä", "deep": [{"a": None}]}
    assert decode(encode(state)) == state
    with pytest.raises(ValueError, match="deflate"):
        decode("gzip;AAAA")


def test_links_open_the_right_mode_and_view():
    found = links("http://127.0.0.1:5000/", "gapeval/x", "7")
    start = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning"
    assert found.leaderboard == f"{start}&viewStateShareKey={LEADERBOARD}"
    assert found.gap_shift == f"{start}&viewStateShareKey={GAP_SHIFT}&compareRunsMode=CHART"
    assert found.pictures == f"{start}&compareRunsMode=ARTIFACT"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """A store whose experiments are given: the server's tests need no database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(Store, "experiments", lambda self: [("gapeval/x", "1")])
    return Store.open(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


HEALTHY = """
    import http.server, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
        def log_message(self, *words): pass
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.handle_request()
    sys.exit(3)
"""


def test_the_server_is_started_small_and_on_our_database(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    command = tracking_ui.server_command(store, 5001)
    assert command[1:4] == ["-m", "mlflow", "server"]
    pairs = dict(zip(command[4::2], command[5::2], strict=True))
    assert pairs["--workers"] == "1"
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--backend-store-uri"] == store.uri
    assert pairs["--default-artifact-root"] == store.artifacts.as_uri()
    environment = tracking_ui.server_environment()
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_TRACKING_URI" not in environment


def test_addresses_are_given_when_the_server_answers_and_its_code_is_returned(store):
    port, seen = free_port(), []
    command = [sys.executable, "-c", textwrap.dedent(HEALTHY), str(port)]
    assert tracking_ui.ui(store, port, ready=seen.append, command=command) == 3
    assert [link.experiment for link in seen[0]] == ["gapeval/x"]
    assert seen[0][0].leaderboard.startswith(f"http://127.0.0.1:{port}/#/experiments/1/")


@pytest.fixture
def listening():
    """Ctrl-C is heard: a shell's background jobs are born deaf to it, and would wait for ever here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_us(store, number, listening):
    """A signal while the server runs: no server is left behind."""
    port = free_port()
    endless = HEALTHY.replace("server.handle_request()", "server.serve_forever()")
    command = [sys.executable, "-c", textwrap.dedent(endless), str(port)]

    def stop(_: object) -> None:
        os.kill(os.getpid(), number)

    if number == signal.SIGINT:
        assert tracking_ui.ui(store, port, ready=stop, command=command) == 0
    else:
        with pytest.raises(SystemExit):
            tracking_ui.ui(store, port, ready=stop, command=command)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_and_a_server_that_dies_are_the_users_to_mend(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port: {port} cannot be used"):
            tracking_ui.ui(store, port, ready=lambda _: None)
    with pytest.raises(UserError, match="exit code 5"):
        command = [sys.executable, "-c", "raise SystemExit(5)"]
        tracking_ui.ui(store, free_port(), ready=lambda _: None, command=command)


def test_a_store_behind_a_server_needs_no_server_of_ours(store, monkeypatch):
    served = Store(store.root, "http://far.away:5000")
    monkeypatch.setattr(subprocess, "Popen", None)
    seen: list = []
    assert tracking_ui.ui(served, 5000, ready=seen.append) == 0
    assert seen[0][0].gap_shift.startswith("http://far.away:5000/#/")
