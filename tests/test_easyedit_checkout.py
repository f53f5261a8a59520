"""EasyEdit from a checkout: folders in the layout of its repository, made of the installed package.

The repository itself is not at hand. Its further methods are imitated by the package's nearest ones under
their names, so what is tried is how they are called and what is taken from them, not their mathematics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines import FT, MEMIT, NEEDS_EASYEDIT, ROME, STEPS, checkout, fit, read, relative, renamed
from tiny_lm import fact, tiny_umm

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Training
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.interventions.easyedit_source import PATCHES

pytestmark = NEEDS_EASYEDIT


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "easyedit-cache"))
    monkeypatch.delenv("GAPEVAL_EASYEDIT", raising=False)


@pytest.mark.parametrize("method", [ROME, MEMIT, FT], ids=lambda method: method.method)
@pytest.mark.parametrize("named", ["root", "environment"])
def test_a_checkout_gives_what_the_package_gives(
    named: str, method: EasyEdit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, umm = checkout(tmp_path), tiny_umm(steps=STEPS)
    installed = fit(method, umm, [fact(0)])
    if named == "root":
        method = method.model_copy(update={"root": str(root)})
    else:
        monkeypatch.setenv("GAPEVAL_EASYEDIT", str(root))
    delta = fit(method, umm, [fact(0)], training=Training(folder=tmp_path / "run"))
    assert delta.digest == installed.digest
    assert read(tmp_path / "run").startswith(f"the checkout {root}")


CURRENT = {patch.old: patch.new for patch in PATCHES}
"""The repository of today needs no patches, so its imitations have them made already."""


def with_fields(file: Path, *fields: str) -> None:
    """A dataclass with further required fields."""
    anchor, text = "    stats_dir: str\n", file.read_text(encoding="utf-8")
    assert anchor in text
    lines = "".join(f"    {field}\n" for field in fields)
    file.write_text(text.replace(anchor, anchor + lines), encoding="utf-8")


def giving_matrices(file: Path, execute: str, product: str, demand: str) -> None:
    """`execute` gives matrices that it turns by their shape, instead of factors."""
    file.write_text(
        file.read_text(encoding="utf-8")
        + f"\n\nfactors_of = {execute}\n\n\n"
        + f"def {execute}(model, tok, requests, hparams, cache_template=None):\n"
        + f"    assert {demand}\n"
        + "    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}\n"
        + "    found = factors_of(model, tok, requests, hparams)\n"
        + f"    made = {{name: {product}.float() for name, (k, r) in found.items()}}\n"
        + "    return {name: upd_matrix_match_shape(one, shapes[name]) for name, one in made.items()}\n",
        encoding="utf-8",
    )


def r_rome(root: Path) -> None:
    names = {**CURRENT, "ROMEHyperParams": "R_ROMEHyperParams", "execute_rome": "execute_r_rome"}
    renamed(root, folder="rome", to="r_rome", names={**names, "rome_": "r_rome_"})


def emmet(root: Path) -> None:
    renamed(root, folder="memit", to="emmet", names={**CURRENT, "MEMIT": "EMMET", "memit": "emmet"})


def pmet(root: Path) -> None:
    place = renamed(root, folder="memit", to="pmet", names={**CURRENT, "MEMIT": "PMET", "memit": "pmet"})
    with_fields(place / "pmet_hparams.py", "nll_loss_factor: float", "rewrite_module_tmps: List[str]")
    giving_matrices(
        place / "pmet_main.py",
        "execute_pmet",
        "(r @ k.T)",
        "hparams.rewrite_module_tmps == [hparams.rewrite_module_tmp] and hparams.attn_module_tmp",
    )


def alphaedit(root: Path) -> None:
    names = {**CURRENT, "MEMIT": "AlphaEdit", "memit": "AlphaEdit"}
    place = renamed(root, folder="memit", to="alphaedit", names=names)
    with_fields(place / "AlphaEdit_hparams.py", "P_loc: str", "L2: float", "nullspace_threshold: float")
    main = place / "AlphaEdit_main.py"
    giving_matrices(
        main,
        "execute_AlphaEdit",
        "(k @ r.T)",
        "P.shape == cache_c.shape == (1, 48, 48) and P_loaded and cache_c_new and not cache_c.any()",
    )
    main.write_text(
        main.read_text(encoding="utf-8")
        + "\n\ndef get_project(model, tok, layer, hparams):\n"
        + "    name = hparams.rewrite_module_tmp.format(layer)\n"
        + "    cov = get_cov(model, tok, name, '', 0, 'float32', hparams=hparams)\n"
        + "    return (cov < hparams.nullspace_threshold).float()\n",
        encoding="utf-8",
    )


LIKE_ROME: dict[str, Any] = {
    "v_num_grad_steps": 6,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 4,
}
LIKE_MEMIT = {**LIKE_ROME, "mom2_update_weight": 1e-2, "ridge": 0.0}  # AlphaEdit gets C as it is


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("name", "made", "base", "settings"),
    [
        ("R-ROME", r_rome, "ROME", LIKE_ROME),
        ("EMMET", emmet, "MEMIT", LIKE_MEMIT),
        ("PMET", pmet, "MEMIT", LIKE_MEMIT),
        ("AlphaEdit", alphaedit, "MEMIT", LIKE_MEMIT),
    ],
    ids=["R-ROME", "EMMET", "PMET", "AlphaEdit"],
)
def test_methods_that_only_a_checkout_has(
    name: Any, made: Any, base: Any, settings: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    root, umm = checkout(tmp_path), tiny_umm(kind, steps=STEPS)
    made(root)
    method = EasyEdit(method=name, layer=0, contexts=2, root=str(root), **settings)
    method.check(umm)
    delta = fit(method, umm, [fact(0)])
    wanted = fit(EasyEdit(method=base, layer=0, contexts=2, **settings), umm, [fact(0)])
    assert relative(delta, wanted) < 1e-6
    with pytest.raises(UserError, match=f"has no {name}"):
        fit(method.model_copy(update={"root": None}), umm, [fact(0)])


def test_a_null_space_of_nothing_is_told(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    alphaedit(root)
    method = EasyEdit(
        method="AlphaEdit", layer=0, root=str(root), hparams={"nullspace_threshold": -1e9}, contexts=0
    )
    with pytest.raises(UserError, match="nullspace_threshold: .* raise it"):
        fit(method, tiny_umm(steps=1), [fact(0)])


def test_a_method_that_keeps_its_things_elsewhere(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    main = root / "easyeditor" / "models" / "memit" / "memit_main.py"
    main.write_text(main.read_text().replace("COV_CACHE", "STATISTICS"))
    with pytest.raises(UserError, match="models.memit.memit_main .* has no 'COV_CACHE'"):
        fit(MEMIT.model_copy(update={"root": str(root)}), tiny_umm(steps=1), [fact(0)])


def test_other_weights_than_those_named_are_not_taken(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    main = root / "easyeditor" / "models" / "ft" / "ft_main.py"
    text = main.read_text()
    anchor = "    return deltas\n"
    assert text.count(anchor) == 1
    main.write_text(text.replace(anchor, "    return {'lm_head.weight': deltas.popitem()[1]}\n"))
    with pytest.raises(UserError, match=r"changed lm_head\.weight, not what"):
        fit(FT.model_copy(update={"root": str(root)}), tiny_umm(steps=1), [fact(0)])
