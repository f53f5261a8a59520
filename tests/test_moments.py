"""Second moments: the right numbers, and never those of other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lm import TEXTS, TinyUMM, second_moment, tiny_umm

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.interventions.moments import SecondMoment, default_cache

PATH = "model.layers.1.mlp.down_proj"


class Counted:
    """A backbone that counts its forward passes."""

    def __init__(self, umm: TinyUMM) -> None:
        self.passes = 0
        plain = umm.backbone()

        def logits(encoded: Any) -> torch.Tensor:
            self.passes += 1
            return plain.logits(encoded)

        self.backbone: Backbone = dataclasses.replace(plain, logits=logits)


@pytest.fixture
def umm() -> TinyUMM:
    umm = tiny_umm()
    umm.model.eval()
    return umm


def reference(umm: TinyUMM, path: str, texts: list[str]) -> tuple[np.ndarray, int]:
    """One text at a time, no padding, with a plain hook and numpy."""
    keys: list[np.ndarray] = []
    module = umm.model.get_submodule(path)
    hook = module.register_forward_hook(lambda m, args, out: keys.append(args[0][0].numpy()))
    backbone = umm.backbone()
    with torch.no_grad():
        for text in texts:
            backbone.logits(backbone.encode([text], None))
    hook.remove()
    stacked = np.concatenate(keys).astype(np.float64)
    return stacked.T @ stacked / len(stacked), len(stacked)


@pytest.mark.parametrize(("kind", "path"), [("llama", PATH), ("gpt2", "transformer.h.1.mlp.c_proj")])
def test_equals_numpy_one_text_at_a_time(kind: str, path: str, tmp_path: Path) -> None:
    umm = tiny_umm(kind)
    umm.model.eval()
    texts = [TEXTS[0], f"{TEXTS[1]} {TEXTS[2]}", TEXTS[3]]  # padding in the batch
    moment = second_moment(umm.backbone(), path, texts, limit=10, seed=0, cache=tmp_path)
    expected, tokens = reference(umm, path, texts)
    assert moment.tokens == tokens and moment.matrix.dtype == torch.float64
    np.testing.assert_allclose(moment.matrix.numpy(), expected, rtol=1e-5, atol=1e-7 * expected.max())


def test_batches_change_nothing_but_rounding(umm: TinyUMM, tmp_path: Path) -> None:
    one = second_moment(umm.backbone(), PATH, TEXTS, limit=20, seed=0, cache=tmp_path / "1", batch=1)
    all_ = second_moment(umm.backbone(), PATH, TEXTS, limit=20, seed=0, cache=tmp_path / "2", batch=64)
    torch.testing.assert_close(one.matrix, all_.matrix, rtol=1e-5, atol=1e-9)


def test_stops_above_the_site_and_keeps_no_hook(umm: TinyUMM, tmp_path: Path) -> None:
    ran: list[str] = []
    for name in ("model.layers.0", "model.layers.2", "lm_head"):
        umm.model.get_submodule(name).register_forward_hook(lambda *seen, name=name: ran.append(name))
    hooks = len(umm.model.get_submodule(PATH)._forward_pre_hooks)
    second_moment(umm.backbone(), PATH, TEXTS, limit=3, seed=0, cache=tmp_path)
    assert ran == ["model.layers.0"]
    assert len(umm.model.get_submodule(PATH)._forward_pre_hooks) == hooks


def test_the_draw_is_seeded_and_bounded(umm: TinyUMM, tmp_path: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        return second_moment(umm.backbone(), PATH, TEXTS, limit=5, seed=seed, cache=tmp_path / "x").matrix

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    seen: list[str] = []
    backbone = umm.backbone()

    def encode(texts: Any, targets: Any) -> Any:
        seen.extend(texts)
        return backbone.encode(texts, targets)

    spying = dataclasses.replace(backbone, encode=encode)
    second_moment(spying, PATH, [*TEXTS, *TEXTS], limit=5, seed=0, cache=tmp_path / "y")
    assert len(seen) == len(set(seen)) == 5 and set(seen) <= set(TEXTS)


def test_same_content_is_a_hit(umm: TinyUMM, tmp_path: Path) -> None:
    first = Counted(umm)
    made = second_moment(first.backbone, PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    second = Counted(tiny_umm())  # another object, the same weights
    kept = second_moment(second.backbone, PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    assert (first.passes, second.passes) == (1, 0)
    assert torch.equal(made.matrix, kept.matrix) and made.tokens == kept.tokens


def _nudge(name: str) -> Callable[[TinyUMM], None]:
    def change(umm: TinyUMM) -> None:
        with torch.no_grad():
            flat = umm.model.get_parameter(name).view(-1)
            flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _nudge("model.layers.0.self_attn.q_proj.weight"),
        _nudge("model.layers.1.mlp.down_proj.weight"),
        _nudge("model.norm.weight"),
        lambda umm: umm.model.to(torch.float64),
    ],
    ids=["one bit below", "one bit at the site", "one bit above", "dtype"],
)
def test_any_change_of_weights_is_a_miss(change: Callable[[TinyUMM], Any], tmp_path: Path) -> None:
    umm = tiny_umm()
    second_moment(umm.backbone(), PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    change(umm)
    changed = Counted(umm)
    second_moment(changed.backbone, PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    assert changed.passes == 1


@pytest.mark.parametrize(
    "other",
    [
        {"path": "model.layers.0.mlp.down_proj"},
        {"limit": 4},
        {"seed": 1},
        {"texts": TEXTS[:5]},
    ],
    ids=["site", "number", "draw", "texts"],
)
def test_any_other_question_is_a_miss(umm: TinyUMM, other: dict[str, Any], tmp_path: Path) -> None:
    plain = {"path": PATH, "limit": 5, "seed": 0, "texts": TEXTS}
    counted = Counted(umm)
    for asked in (plain, {**plain, **other}):
        second_moment(
            counted.backbone,
            asked["path"],
            asked["texts"],
            limit=asked["limit"],
            seed=asked["seed"],
            cache=tmp_path,
        )
    assert counted.passes == 2


def test_a_killed_write_leaves_no_file_under_the_name(
    umm: TinyUMM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gapeval_lab.files.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            second_moment(umm.backbone(), PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    assert list(tmp_path.rglob("*.safetensors*")) == []
    counted = Counted(umm)
    second_moment(counted.backbone, PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    assert counted.passes == 1


def test_a_damaged_file_is_made_again(umm: TinyUMM, tmp_path: Path) -> None:
    made = second_moment(umm.backbone(), PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = second_moment(umm.backbone(), PATH, TEXTS, limit=5, seed=0, cache=tmp_path)
    assert torch.equal(made.matrix, again.matrix)
    assert len(file.read_bytes()) > 100


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path / "kept"))
    assert default_cache() == tmp_path / "kept"
    monkeypatch.delenv("GAPEVAL_LAB_CACHE")
    assert default_cache() == Path.home() / ".cache" / "gapeval_lab"


def test_no_texts_is_the_users_to_mend(umm: TinyUMM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="texts"):
        second_moment(umm.backbone(), PATH, [], limit=5, seed=0, cache=tmp_path)


def test_solve_is_the_ridged_inverse() -> None:
    keys = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(keys.T @ keys / 30, 30)
    ridged = moment.matrix.numpy() + 0.3 * np.diag(moment.matrix.numpy()).mean() * np.eye(8)
    for shape in ((8,), (8, 2)):
        key = torch.arange(float(np.prod(shape)), dtype=torch.float32).reshape(shape)
        np.testing.assert_allclose(
            moment.solve(key, ridge=0.3).numpy(), np.linalg.solve(ridged, key.double().numpy()), rtol=1e-10
        )


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_singular_moment_asks_for_a_ridge(tokens: int) -> None:
    keys = torch.randn(tokens, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(keys.T @ keys / tokens, tokens)
    with pytest.raises(UserError, match="ridge"):
        moment.solve(keys[0], ridge=0.0)
    assert torch.isfinite(moment.solve(keys[0], ridge=1e-2)).all()


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="singular"):
        SecondMoment(torch.full((3, 3), torch.nan, dtype=torch.float64), 1).solve(torch.ones(3), ridge=0.1)
