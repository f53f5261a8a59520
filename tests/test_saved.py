"""A stored delta in place of a fitted one: which models it takes, and which runs are the same run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_run import bench, go, scripted_umm

from gapeval_lab.delta import Dense, LowRank, WeightDelta, fingerprint
from gapeval_lab.delta_file import Origin
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import ReadsFiles
from gapeval_lab.interventions.saved import Saved
from gapeval_lab.testing import ScriptedIntervention


def stored(folder: Path, *, size: float = 1.0, weights: str = "") -> Path:
    """The delta of `ScriptedIntervention`."""
    up, down = torch.zeros(4, 1), torch.zeros(1, 4)
    up[0, 0], down[0, 1] = size, 1.0
    delta = WeightDelta({"0.weight": LowRank(up, down)})
    return delta.save(folder / "delta", origin=Origin(weights, "text"))


def test_a_run_with_it_gives_the_numbers_of_the_run_that_made_it(tmp_path: Path) -> None:
    fitted = go(tmp_path / "one", bench(scripted_umm()))
    (file,) = (tmp_path / "one").rglob("delta.safetensors")
    saved = Saved(delta=str(file), direction="text")
    saved.check(scripted_umm())
    again = go(tmp_path / "two", bench(scripted_umm(), saved))
    for name in ("after", "identity", "placebo", "shift", "quality", "delta_norms", "delta_address"):
        assert getattr(again, name) == getattr(fitted, name), name
    assert again.reverted and again.direction == "text"
    assert again.curves["train/loss"] == [(0, 1.0), (1, 1.0)]  # the scripted loss sees the diagonal alone


def test_it_is_scaled(tmp_path: Path) -> None:
    file = stored(tmp_path)
    outcome = go(tmp_path, bench(scripted_umm(), Saved(delta=str(file), scale=-0.25)))
    assert outcome.delta_norms == {"0.weight": 0.25}


def test_another_content_of_the_file_is_another_run(tmp_path: Path) -> None:
    file = stored(tmp_path)
    parts = bench(scripted_umm(), Saved(delta=str(file)))
    assert isinstance(parts.stages[0].intervention, ReadsFiles)
    key = parts.key
    assert bench(scripted_umm(), Saved(delta=str(file))).key == key
    stored(tmp_path, size=2.0)
    assert parts.key != key
    assert not isinstance(ScriptedIntervention(), ReadsFiles)
    assert replace(parts, stages=bench(scripted_umm()).stages).key != key


def test_a_model_with_other_weights_is_refused_unless_allowed(tmp_path: Path) -> None:
    umm = scripted_umm()
    file = stored(tmp_path, weights=fingerprint(umm.root))
    Saved(delta=str(file)).check(umm)
    with torch.no_grad():
        umm.weight[3, 3] = 2
    with pytest.raises(UserError, match=r"made for other weights .*any_weights=true"):
        Saved(delta=str(file)).check(umm)
    Saved(delta=str(file), any_weights=True).check(umm)
    stored(tmp_path)  # says nothing of weights
    Saved(delta=str(file)).check(umm)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"0.weight": Dense(torch.ones(4, 5))}, r"has \(4, 4\), the delta \(4, 5\)"),
        ({"1.weight": Dense(torch.ones(4, 4))}, "1.weight: the model has no such parameter"),
    ],
)
def test_a_model_that_it_does_not_fit_is_refused(terms: dict[str, Dense], said: str, tmp_path: Path) -> None:
    file = WeightDelta(terms).save(tmp_path / "delta")
    with pytest.raises(UserError, match=said):
        Saved(delta=str(file), any_weights=True).check(scripted_umm())


def test_files_that_are_missing_or_spoilt_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        Saved(delta=str(tmp_path / "nowhere")).check(scripted_umm())
    file = stored(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="does not match its digest"):
        Saved(delta=str(file)).check(scripted_umm())


def test_a_model_that_does_not_answer_has_no_curve(tmp_path: Path) -> None:
    umm, seen = scripted_umm(), []
    umm.directions = frozenset()
    delta = Saved(delta=str(stored(tmp_path))).fit(
        umm, (), seed=0, texts=(), log=lambda *point: seen.append(point)
    )
    assert delta.norm() == 1.0 and not seen
