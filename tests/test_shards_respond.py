"""`gapeval-lab respond`: shards of a baseline and of an applied delta, found by the run that comes later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from shards_fake import Fake
from test_cli import call
from test_run import ScriptedBenchmark, bench, go

from gapeval_lab import registry
from gapeval_lab.delta import LowRank, WeightDelta, fingerprint
from gapeval_lab.delta_file import Origin
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import respond, store_key
from gapeval_lab.items import Direction
from gapeval_lab.recipe import Recipe
from gapeval_lab.response_store import ResponseStore, shared_responses
from gapeval_lab.shards import Shard
from gapeval_lab.shards_respond import Filled, fill_shard
from gapeval_lab.stored_deltas import resolve
from gapeval_lab.testing import ScriptedIntervention

DELTA = WeightDelta({"0.weight": LowRank(torch.full((4, 1), 0.3), torch.tensor([[0.1, 0.2, 0.3, 0.4]]))})
RECIPE = Recipe.model_validate(
    {
        **{"name": "fake", "about": "", "seed": 0, "evaluation": {"batch": 3}},
        **{name: {"use": "fake"} for name in ("model", "benchmark", "judge")},
    }
)


class FakeModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def load(self) -> Fake:
        return Fake(FOLDERS[-1])


class FakeBenchmark(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def items(self) -> list[object]:
        return list(ScriptedBenchmark().items())


FOLDERS: list[Path] = []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    FOLDERS.append(tmp_path)
    table = {
        "models": {"fake": f"{__name__}:FakeModel"},
        "benchmarks": {"fake": f"{__name__}:FakeBenchmark"},
    }
    monkeypatch.setattr(registry, "BUILT_IN", table)
    return tmp_path


def fill(home: Path, shard: Shard, delta: str | None = None) -> Filled:
    change = None if delta is None else resolve(delta, home)
    return fill_shard(RECIPE, shard, home=home, delta=change, on_progress=lambda *_: None)


def test_shards_fill_the_store_and_cost_nothing_twice(home: Path) -> None:
    one, two = fill(home, Shard(1, 2)), fill(home, Shard(2, 2))
    assert (one.prompts, one.known, one.failed) == (two.prompts, two.known, two.failed) == (8, 0, 0)
    asked = sum(len(file.read_text().splitlines()) for file in home.glob("*.asked"))
    assert asked == 16
    again = fill(home, Shard())
    assert (again.prompts, again.known) == (16, 16)
    assert sum(len(file.read_text().splitlines()) for file in home.glob("*.asked")) == asked
    assert again.folder == one.folder == two.folder


def test_an_applied_deltas_responses_lie_under_its_own_key(home: Path) -> None:
    file = DELTA.save(home / "d.safetensors", origin=Origin(fingerprint(Fake(home).root)))
    plain, edited, half = (fill(home, Shard(), ref) for ref in (None, str(file), f"{file}*0.5"))
    assert len({plain.folder, edited.folder, half.folder}) == 3
    umm = Fake(home)
    with DELTA.applied(umm.root):
        assert edited.folder.name == store_key(umm, weights=fingerprint(umm.root), seed=0)
        (said,) = umm.answer([ScriptedBenchmark().items()[0].understand], seeds=[1])
    kept = ResponseStore(edited.folder).get(ScriptedBenchmark().items()[0], Direction.UNDERSTANDING)
    assert kept is not None and str(kept.text).split()[-1] == said.split()[-1]


def test_a_delta_of_other_weights_is_refused(home: Path) -> None:
    file = DELTA.save(home / "d.safetensors", origin=Origin("0" * 64))
    with pytest.raises(UserError, match="made for other weights"):
        fill(home, Shard(), str(file))


def test_a_run_finds_what_an_applied_delta_answered(tmp_path: Path) -> None:
    """All of the state after the edit lies in the shared stores; only the rest is asked."""
    first, later = Fake(tmp_path), Fake(tmp_path)
    delta = ScriptedIntervention(size=0.5).fit(first, [], seed=0, texts=[], log=lambda *_: None)
    parts = bench(later, ScriptedIntervention(size=0.5))
    whole = go(tmp_path / "whole", bench(first, ScriptedIntervention(size=0.5)))
    asked = sum(first.calls.values())
    with delta.applied(later.root):
        key = store_key(later, weights=fingerprint(later.root), seed=0)
        store = ResponseStore(shared_responses(tmp_path / "sharded") / key)
        respond(later, parts.items, set(Direction), seed=0, store=store)
    found = go(tmp_path / "sharded", parts)
    assert sum(later.calls.values()) == asked
    assert found.after == whole.after and found.shift == whole.shift and found.quality == whole.quality


def test_a_wrong_shard_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "respond", "--recipe", "baseline", "--shard", "9/8") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --shard: '9/8' is no shard; write K/N with K from 1 to N, such as 3/8, or slurm"
    ]
