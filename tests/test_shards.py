"""Several processes at one run, and shards: merged to what one process gives, whatever befalls a worker."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from shards_fake import Fake, items, load, wait_for

from gapeval_lab.delta import LowRank, WeightDelta, fingerprint
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.evaluate import Evaluation, ResponseStore, evaluate, respond, store_key
from gapeval_lab.items import Direction, Item, PictureFile, Response
from gapeval_lab.recipe import Node
from gapeval_lab.shards import Crew, Shard, crew
from gapeval_lab.shards_hands import VISIBLE, _given, _loaded, start_processes, visible_gpus
from gapeval_lab.shards_worker import Job, Resident
from gapeval_lab.testing import ScriptedJudge

ITEMS = items(40)
ALL_RIGHT = ScriptedJudge(lambda item, response: response.error is None)
DELTA = WeightDelta({"0.weight": LowRank(torch.full((4, 1), 0.3), torch.tensor([[0.1, 0.2, 0.3, 0.4]]))})


class Thread:
    """A worker without a process of its own."""

    name = "worker 1"

    def __init__(self, resident: Resident) -> None:
        self._resident = resident

    def ready(self) -> None:
        _loaded(self.name, self._resident.ready())

    def ask(self, job: Job) -> Sequence[Response]:
        return _given(self.name, self._resident.answer(job))

    def stop(self) -> None:
        pass


@contextlib.contextmanager
def team(
    folder: Path, behaviour: str = "", *, others: int = 1, thread: bool = False
) -> Iterator[tuple[Crew, list[str]]]:
    """Workers with the fake, which note in `folder` what they are asked; and what the crew says."""
    said: list[str] = []
    loads = functools.partial(load, folder, behaviour)
    begin = functools.partial(start_processes, loads, others, ())
    if thread:
        begin = functools.partial(list, [Thread(Resident(loads))])
    made = Crew(begin, count=others, say=said.append)
    try:
        yield made, said
    finally:
        made.close()


def place(umm: Fake, folder: Path) -> ResponseStore:
    return ResponseStore(folder / store_key(umm, weights=fingerprint(umm.root), seed=5))


def ask(umm: Fake, store: ResponseStore | None = None, asked: Sequence[Item] = ITEMS) -> Evaluation:
    return evaluate(umm, asked, judge=ALL_RIGHT, seed=5, store=store, chunk=8)


def same(one: Evaluation, two: Evaluation) -> bool:
    """Whether texts, pixels and verdicts are equal to the last bit."""
    if one.responses.keys() != two.responses.keys() or one.verdicts != two.verdicts:
        return False
    for key, first in one.responses.items():
        second = two.responses[key]
        pixels = [None if r.image is None else r.image.tobytes() for r in (first, second)]
        if (first.text, first.error) != (second.text, second.error) or pixels[0] != pixels[1]:
            return False
    return True


def asked_of(folder: Path) -> dict[int, list[str]]:
    """Process -> the prompts that it was asked."""
    return {int(file.stem): file.read_text().split("\n")[:-1] for file in folder.glob("*.asked")}


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_merge_to_what_one_process_gives(count: int, tmp_path: Path) -> None:
    for number in range(1, count + 1):
        umm, store = Fake(tmp_path), place(Fake(tmp_path), tmp_path)
        for direction in Direction:
            mine = Shard(number, count).of(ITEMS, direction)
            assert abs(len(mine) - len(ITEMS) / count) < 1
            respond(umm, mine, {direction}, seed=5, store=store)
    whole = ask(Fake(tmp_path))
    umm = Fake(tmp_path)
    assert same(ask(umm, place(umm, tmp_path)), whole)
    assert sum(umm.calls.values()) == 0
    assert all(
        isinstance(r.picture, PictureFile)
        for r in ask(umm, place(umm, tmp_path)).responses.values()
        if r.direction is Direction.GENERATION
    )


def test_shards_are_disjoint_whole_and_do_not_depend_on_order() -> None:
    for direction in Direction:
        parts = [Shard(number, 3).of(ITEMS, direction) for number in (1, 2, 3)]
        assert sorted(item.id for part in parts for item in part) == sorted(item.id for item in ITEMS)
        turned = [Shard(number, 3).of(ITEMS[::-1], direction) for number in (1, 2, 3)]
        assert [{i.id for i in part} for part in parts] == [{i.id for i in part} for part in turned]
    told, drawn = (Shard(1, 3).of(ITEMS, direction) for direction in Direction)
    assert told != drawn


def test_processes_give_what_one_gives_in_every_state(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    plain = ask(Fake(tmp_path))
    with DELTA.applied(umm.root):
        edited = ask(umm)
    assert not same(plain, edited)
    for file in tmp_path.glob("*.asked"):
        file.unlink()
    with team(tmp_path, others=2) as (helpers, said):
        helpers.hold(store := place(umm, tmp_path / "before"), None)
        # Nobody waits for a worker that is still loading, so start them, and ask when they are there.
        helpers._start()
        wait_for(tmp_path, "*.ready", 2)
        assert same(ask(umm, store), plain)
        for round_ in ("after", "again"):
            with DELTA.applied(umm.root):
                helpers.hold(store := place(umm, tmp_path / round_), DELTA)
                assert same(ask(umm, store), edited)
        helpers.hold(store := place(umm, tmp_path / "reverted"), None)
        assert same(ask(umm, store), plain)
        workers = asked_of(tmp_path)
        assert len(workers) == 3 and os.getpid() in workers
        # All that was asked was asked once per state.
        assert sorted(p for prompts in workers.values() for p in prompts) == sorted(
            p for item in ITEMS for p in (item.understand.text, item.generate.text) for _ in range(4)
        )
    assert said == []
    assert all(gone(pid) for pid in workers if pid != os.getpid())


def test_what_is_there_starts_no_worker_and_is_not_asked_again(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    first = ask(umm, place(umm, tmp_path))
    with team(tmp_path) as (helpers, _):
        fresh = Fake(tmp_path)
        helpers.hold(store := place(fresh, tmp_path), None)
        assert same(ask(fresh, store), first)
        assert sum(fresh.calls.values()) == 0 and helpers._hands is None


def test_a_killed_workers_share_is_done_by_the_others(tmp_path: Path) -> None:
    umm = Fake(tmp_path, "late")
    with team(tmp_path, "dies") as (helpers, said):
        helpers.hold(store := place(umm, tmp_path), None)
        helpers._start()
        wait_for(tmp_path, "*.ready", 1)
        found = ask(umm, store)
    assert same(found, ask(Fake(tmp_path)))
    (line,) = said
    assert "worker 1" in line and "code -9" in line and "done by the others" in line


def test_an_item_that_fails_in_a_worker_is_that_items_error(tmp_path: Path) -> None:
    umm = Fake(tmp_path, "late")
    with team(tmp_path, "fails", thread=True) as (helpers, said):
        helpers.hold(store := place(umm, tmp_path), None)
        helpers._start()
        with pytest.raises(RuntimeError, match="prompts failed.*no room"):
            ask(umm, store)
    assert said == []


def test_a_worker_with_other_weights_answers_nothing(tmp_path: Path) -> None:
    umm = Fake(tmp_path, "late")
    with team(tmp_path, "differs", thread=True) as (helpers, _):
        helpers.hold(store := place(umm, tmp_path), None)
        helpers._start()
        with pytest.raises(SafetyError, match="worker 1.*weights or settings"):
            ask(umm, store)
    assert sum(umm.calls.values()) == sum(map(len, asked_of(tmp_path).values()))


def test_a_model_that_a_worker_cannot_load_is_one_message(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    with team(tmp_path, "refuses", thread=True) as (helpers, _):
        helpers.hold(store := place(umm, tmp_path), None)
        helpers._start()
        helpers._threads[0].join(30)
        with pytest.raises(UserError, match="worker 1.*could not load the model.*out of memory.*use fewer"):
            ask(umm, store)


def test_a_folder_that_is_not_shared_is_one_message(tmp_path: Path) -> None:
    umm = Fake(tmp_path, "late")

    class Elsewhere(Thread):
        def ask(self, job: Job) -> Sequence[Response]:
            return []

    made = Crew(lambda: [Elsewhere(Resident(functools.partial(load, tmp_path)))], count=1, say=print)
    made.hold(store := place(umm, tmp_path), None)
    with pytest.raises(UserError, match="not in .*give all machines one shared folder"):
        ask(umm, store)
    made.close()


def test_an_interruption_leaves_no_process_and_keeps_what_is_done(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    with pytest.raises(KeyboardInterrupt), team(tmp_path, "hangs") as (helpers, _):
        helpers.hold(store := place(umm, tmp_path), None)
        helpers._start()
        wait_for(tmp_path, "*.ready", 1)
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            ask(umm, store)
        finally:
            signal.signal(signal.SIGALRM, before)
    workers = {int(file.stem) for file in tmp_path.glob("*.ready")}
    assert workers and all(gone(pid) for pid in workers)
    kept = sum(umm.calls.values())
    resumed = Fake(tmp_path)
    assert same(ask(resumed, place(resumed, tmp_path)), ask(Fake(tmp_path)))
    assert 0 < sum(resumed.calls.values()) == 80 - kept


HANGS = """
import functools, os, sys
from pathlib import Path
import test_shards
from shards_fake import Fake, load
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    umm = Fake(folder)
    with test_shards.team(folder, "hangs") as (helpers, _):
        helpers.hold(store := test_shards.place(umm, folder), None)
        test_shards.ask(umm, store)
        helpers._hands[0].ready()
"""


def test_a_lost_parent_ends_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": path})
    try:
        wait_for(tmp_path, "*.ready", 1)
    finally:
        process.kill()
        process.wait()
    (worker,) = (int(file.stem) for file in tmp_path.glob("*.ready"))
    end = time.monotonic() + 10
    while not gone(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(worker)


def test_two_writers_at_once_never_share_a_file(tmp_path: Path) -> None:
    one, two = (place(Fake(tmp_path), tmp_path) for _ in range(2))
    for start in range(0, 40, 10):
        for store in (one, two):
            respond(Fake(tmp_path), ITEMS[start : start + 6], set(Direction), seed=5, store=store)
    files = sorted(one.folder.glob("responses*.jsonl"))
    assert len(files) == 2 and files[-1].name == "responses.jsonl"
    assert all(len(file.read_text().splitlines()) == 48 for file in files)
    third = place(Fake(tmp_path), tmp_path)
    assert sum(third.get(item, direction) is not None for item in ITEMS for direction in Direction) == 48
    assert one.get(ITEMS[0], Direction.GENERATION) is not None
    assert not list((one.folder / "pictures").glob(".*"))


def test_a_reader_takes_whole_lines_and_finds_the_rest_later(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    respond(umm, ITEMS, set(Direction), seed=5, store=place(umm, tmp_path))
    file = place(umm, tmp_path).folder / "responses.jsonl"
    whole = file.read_bytes()
    cut = whole[: whole.index(b"\n", len(whole) // 2) + 9]
    file.write_bytes(cut)
    reader = place(umm, tmp_path)
    there = [reader.get(item, direction) for item in ITEMS for direction in Direction]
    assert sum(one is not None for one in there) == cut.count(b"\n")
    assert file.read_bytes() == cut  # another's file is never mended
    file.write_bytes(whole[:-1] + b"\n\x00\x00\n")
    reader.refresh()
    assert all(reader.get(item, direction) for item in ITEMS for direction in Direction)


def test_another_store_is_read_and_not_written(tmp_path: Path) -> None:
    umm = Fake(tmp_path)
    shared = place(umm, tmp_path / "shared")
    respond(umm, ITEMS[:30], set(Direction), seed=5, store=shared)
    before = sorted(shared.folder.rglob("*"))
    fresh = Fake(tmp_path)
    own = ResponseStore(tmp_path / "own" / shared.folder.name, also=shared.folder)
    assert same(ask(fresh, own), ask(Fake(tmp_path)))
    assert sum(fresh.calls.values()) == 20
    assert sorted(shared.folder.rglob("*")) == before
    shutil.rmtree(shared.folder)
    again = Fake(tmp_path)
    ask(again, ResponseStore(own.folder, also=shared.folder))
    assert sum(again.calls.values()) == 60


def test_a_store_of_before_is_read(tmp_path: Path) -> None:
    item = ITEMS[0]
    (tmp_path / "pictures").mkdir()
    row = {"key": f"{item.digest}:understanding", "id": item.id, "text": "kept", "picture": None}
    (tmp_path / "responses.jsonl").write_text(json.dumps(row) + "\n")
    kept = ResponseStore(tmp_path).get(item, Direction.UNDERSTANDING)
    assert kept is not None and kept.text == "kept"


def no_crew(**model: str) -> None:
    with crew(Node.model_validate({"use": "fake", **model}), 2, engine="ray", say=print):
        raise AssertionError("it was let in")


def test_ray_that_is_missing_or_does_not_fit_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray: .* install gapeval_lab\[ray\], or use --engine proc"):
        no_crew()
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    with pytest.raises(UserError, match="'cuda:1' cannot be kept with --engine ray"):
        no_crew(device="cuda:1")


def test_workers_go_round_the_gpus_that_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)
    assert visible_gpus("auto") == ["0", "1"]
    monkeypatch.setenv(VISIBLE, "GPU-a, 5")
    assert visible_gpus("auto") == ["GPU-a", "5"]
    assert visible_gpus("cuda:1") == visible_gpus("cpu") == []
    seen: list[str | None] = []
    monkeypatch.setattr(
        "gapeval_lab.shards_hands.ProcessHand", lambda number, load, device: seen.append(device)
    )
    start_processes(lambda: Fake(Path()), 3, visible_gpus("auto"))
    start_processes(lambda: Fake(Path()), 1, ())
    assert seen == ["5", "GPU-a", "5", None]  # this process has the first one


SLURM = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/8", {}, Shard(3, 8)),
        ("1/1", {}, Shard(1, 1)),
        ("slurm", {**SLURM, "SLURM_ARRAY_TASK_ID": "4"}, Shard(4, 4)),
        ("slurm", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}, Shard(1, 2)),
        ("slurm", {**SLURM, "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_STEP": "2"}, Shard(4, 4)),
    ],
)
def test_shards_are_read(text: str, environment: dict[str, str], expected: Shard) -> None:
    assert Shard.parse(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("9/8", {}, "'9/8' is no shard; write K/N"),
        ("0/8", {}, "'0/8' is no shard"),
        ("3", {}, "'3' is no shard"),
        ("-1/8", {}, "'-1/8' is no shard"),
        ("1/0", {}, "'1/0' is no shard"),
        ("slurm", {}, "needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT"),
        ("slurm", {**SLURM, "SLURM_ARRAY_TASK_ID": "x"}, "needs SLURM_ARRAY_TASK_ID"),
        ("slurm", {**SLURM, "SLURM_ARRAY_TASK_ID": "9"}, "task 9 of an array of 4"),  # --array=1,2,3,9
        ("slurm", {**SLURM, "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_STEP": "2"}, "no part of it"),
    ],
)
def test_wrong_shards_are_one_message(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shard.parse(text, environment)
