"""What the tests of the engine share: whether EasyEdit is there, checkouts made of it, edits, a UMM."""

from __future__ import annotations

import shutil
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import TEXTS

from gapeval_lab.delta import WeightDelta
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import ENGINE_LOG, UMM
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.items import Fact
from gapeval_lab.recipe import load
from gapeval_lab.registry import build

_SPEC = PathFinder.find_spec("easyeditor")
PACKAGE = Path(next(iter(_SPEC.submodule_search_locations))) if _SPEC else Path("not there")  # type: ignore[arg-type]

NEEDS_EASYEDIT = pytest.mark.skipif(
    _SPEC is None, reason="EasyEdit is not installed: pip install --no-deps easyeditor==0.0.1.dev0"
)


def checkout(place: Path) -> Path:
    """A folder as `git clone` makes it, with the package's files in it; never in the repository."""
    shutil.copytree(PACKAGE, place / "easyeditor", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def renamed(root: Path, *, folder: str, to: str, names: dict[str, str]) -> Path:
    """A method's folder again, under another name, with words of its files and of their names replaced."""
    models = root / "easyeditor" / "models"
    (models / to).mkdir()
    for file in (models / folder).glob("*.py"):
        text, name = file.read_text(encoding="utf-8"), file.name
        for old, new in names.items():
            text, name = text.replace(old, new), name.replace(old, new)
        (models / to / name).write_text(text, encoding="utf-8")
    return models / to


STEPS = 80
"""Training of the tiny models."""

ROME = EasyEdit(method="ROME", layer=0, v_num_grad_steps=6, contexts=2)
MEMIT = EasyEdit(
    method="MEMIT", layers=(0, 1), v_num_grad_steps=6, contexts=2, mom2_update_weight=1e-2, v_lr=0.2
)
FT = EasyEdit(method="FT", layer=1, num_steps=6, lr=1e-3)


def fit(method: Any, umm: UMM, facts: list[Fact], **others: Any) -> WeightDelta:
    arguments: dict[str, Any] = {"seed": 0, "texts": TEXTS, "log": lambda *point: None} | others
    return method.fit(umm, facts, **arguments)


def relative(one: WeightDelta, other: WeightDelta) -> float:
    """|one - other| / |other|, over all parameters together."""
    assert one.terms.keys() == other.terms.keys()
    found = [(one.terms[name].dense(), other.terms[name].dense()) for name in one.terms]
    apart = torch.cat([(first - second).flatten() for first, second in found]).norm()
    return float(apart / torch.cat([second.flatten() for _, second in found]).norm())


def read(folder: Path) -> str:
    return (folder / ENGINE_LOG).read_text(encoding="utf-8")


def embedded() -> Any:
    """The UMM that ships with the package."""
    return build("models", "janus", settings={"weights": "embedded"}).load()


def world() -> tuple[list[Fact], list[str]]:
    """Three facts, and the texts, of the shipped recipe's benchmark."""
    recipe = load("easyedit_rome_world_knowledge").recipe
    assert recipe.facts is not None
    facts = read_facts(recipe.facts.file, split="dev", count=3)
    return list(facts), recipe.build("benchmark").training_texts()
