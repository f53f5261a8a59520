"""A merged checkpoint: loads as the edited model does, to the bit; appears whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from gapeval_lab.delta import Dense, WeightDelta, fingerprint
from gapeval_lab.delta_file import Origin, read_head
from gapeval_lab.errors import UserError
from gapeval_lab.items import Prompt
from gapeval_lab.merged import write_merged
from gapeval_lab.models.janus import Janus
from gapeval_lab.testing import ScriptedUMM

NAME = "model.language_model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def umm():
    return Janus(device="cpu").load()


def write(umm, change: WeightDelta, out: Path, *, origin: Origin | None = None, any_weights: bool = False):
    file = change.save(out.parent / "delta", origin=origin)
    return write_merged(
        umm, change, out, head=read_head(file), source=file, scale=2.0, any_weights=any_weights
    )


def noise(umm) -> WeightDelta:
    shape = umm.model.get_parameter(NAME).shape
    return WeightDelta({NAME: Dense(0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0)))})


def test_the_checkpoint_is_the_edited_model_to_the_bit(umm, tmp_path):
    change, before = noise(umm), fingerprint(umm.model)
    after = write(umm, change, tmp_path / "sub" / "merged", origin=Origin(before))
    assert fingerprint(umm.model) == before
    again = Janus(weights=str(tmp_path / "sub" / "merged"), device="cpu").load()
    prompts, seeds = [Prompt("what colour is tovsko ?"), Prompt("the shape of grifir ?")], [0, 0]
    with change.applied(umm.model):
        assert fingerprint(again.model) == fingerprint(umm.model) == after != before
        assert again.answer(prompts, seeds=seeds) == umm.answer(prompts, seeds=seeds)
        assert again.settings() == umm.settings()
    record = json.loads((tmp_path / "sub" / "merged" / "merged.json").read_text())
    assert record == {"weights": before, "delta": change.digest, "scale": 2.0, "merged_weights": after}


def test_what_cannot_be_merged_is_one_message_and_leaves_nothing(umm, tmp_path):
    out = tmp_path / "merged"
    with pytest.raises(UserError, match="made for other weights .*--any-weights"):
        write(umm, noise(umm), out, origin=Origin("0" * 64))
    with pytest.raises(UserError, match="no such parameter"):
        write(umm, WeightDelta({"nowhere": Dense(torch.ones(2))}), out)
    with pytest.raises(UserError, match="cannot be saved as a checkpoint"):
        write(ScriptedUMM(lambda *_: ""), WeightDelta.zero(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        write(umm, noise(umm), out)
    with pytest.raises(UserError, match="cannot write"):
        write_merged(
            umm,
            noise(umm),
            out / "mine" / "merged",
            head=read_head(tmp_path / "delta"),
            source=tmp_path / "delta",
            scale=1.0,
            any_weights=True,
        )


def test_a_kill_while_it_is_written_leaves_no_folder(umm, tmp_path, monkeypatch):
    def dies(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(umm, "save", dies)
    before = fingerprint(umm.model)
    with pytest.raises(KeyboardInterrupt):
        write(umm, noise(umm), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]
    assert fingerprint(umm.model) == before


def test_weights_that_are_asked_for_are_taken(umm, tmp_path):
    write(umm, noise(umm), tmp_path / "merged", origin=Origin("0" * 64), any_weights=True)
    assert (tmp_path / "merged" / "model.safetensors").stat().st_mode & 0o777 == 0o644
