"""(kind, name) -> plug-in class: the table below, then the entry points of installed packages.

Imports a plug-in only when its class is asked for. Knows no settings and no recipes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.validation import did_you_mean, dotted, explain, validate

Kind = Literal["models", "benchmarks", "judges", "interventions"]

BUILT_IN: Mapping[Kind, Mapping[str, str]] = MappingProxyType(
    {
        "models": {
            "diffusion": "gapeval_lab.models.diffusion:Diffusion",
            "emu3": "gapeval_lab.models.emu3:Emu3",
            "janus": "gapeval_lab.models.janus:Janus",
            "openai": "gapeval_lab.models.openai_chat:OpenAIChat",
            "pair": "gapeval_lab.models.pair:Pair",
            "replay": "gapeval_lab.models.replay:Replay",
            "vlm": "gapeval_lab.models.vlm:Vlm",
        },
        "benchmarks": {
            "gapeval": "gapeval_lab.benchmarks.gapeval:GapEval",
            "realunify": "gapeval_lab.benchmarks.realunify:RealUnify",
            "tinyworld": "gapeval_lab.benchmarks.tinyworld:TinyWorld",
        },
        "judges": {
            "exact": "gapeval_lab.judges.exact:Exact",
            "human": "gapeval_lab.judges.human:Human",
            "llm": "gapeval_lab.judges.llm:LlmJudge",
            "local": "gapeval_lab.judges.local:LocalJudge",
            "option_letter": "gapeval_lab.judges.option:OptionLetter",
            "panel": "gapeval_lab.judges.panel:Panel",
        },
        "interventions": {
            "alphaedit": "gapeval_lab.interventions.alphaedit:AlphaEdit",
            "easyedit": "gapeval_lab.interventions.easyedit:EasyEdit",
            "emmet": "gapeval_lab.interventions.emmet:Emmet",
            "finetune": "gapeval_lab.interventions.finetune:FineTune",
            "lora": "gapeval_lab.interventions.lora:Lora",
            "memit": "gapeval_lab.interventions.memit:Memit",
            "pmet": "gapeval_lab.interventions.pmet:Pmet",
            "r_rome": "gapeval_lab.interventions.r_rome:RRome",
            "rome": "gapeval_lab.interventions.rome:Rome",
            "saved": "gapeval_lab.interventions.saved:Saved",
        },
    }
)
"""Name -> "module:Class". Outside packages add to it by entry points of the group gapeval_lab.<kind>."""


def names(kind: Kind) -> list[str]:
    """Every known name of a kind, sorted. Imports no plug-in."""
    return sorted({*BUILT_IN[kind], *(point.name for point in _outside(kind))})


def find(kind: Kind, name: str) -> type[BaseModel]:
    """The plug-in class.

    Raises:
        UserError: unknown name, two packages that offer it, a plug-in that cannot be imported, or
            one that is no frozen pydantic model with `extra="forbid"`.
    """
    target = BUILT_IN[kind].get(name) or _outside_target(kind, name)
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        # A defect of our own must keep its traceback; a missing package, or a defect of an outside
        # plug-in, is the user's to mend.
        if name in BUILT_IN[kind] and not isinstance(error, ImportError):
            raise
        raise UserError(
            f"{kind}: the plug-in '{name}' ({target}) cannot be imported "
            f"({type(error).__name__}: {error}); install what it needs, or mend it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise UserError(f"{kind}: the plug-in '{name}' ({target}) is no pydantic model class; make it one")
    if not found.model_config.get("frozen") or found.model_config.get("extra") != "forbid":
        raise UserError(
            f"{kind}: the plug-in '{name}' ({target}) accepts unknown keys or can be changed; "
            f'set model_config = ConfigDict(frozen=True, extra="forbid")'
        )
    if taken := {"use", "config"} & found.model_fields.keys():
        raise UserError(
            f"{kind}: the plug-in '{name}' ({target}) has a setting called '{taken.pop()}', which recipes "
            f"need for themselves; rename it"
        )
    return found


def build(kind: Kind, name: str, *, settings: Mapping[str, Any]) -> Any:
    """The plug-in with its settings: an object that fits the protocol of its kind.

    Raises:
        UserError: as `find`, or settings that do not fit; every mistake is named.
    """
    plugin = find(kind, name)
    try:
        return validate(plugin, settings)
    except ValidationError as error:
        problems = explain(error, plugin, settings)
        lines = [f"{dotted((kind, name, *problem.path))}: {problem.message}" for problem in problems]
        raise UserError("\n".join(lines)) from None


def _outside(kind: Kind) -> list[EntryPoint]:
    """What installed packages offer for a kind."""
    return list(entry_points(group=f"gapeval_lab.{kind}"))


def _outside_target(kind: Kind, name: str) -> str:
    """The "module:Class" of an outside plug-in."""
    targets = sorted({point.value for point in _outside(kind) if point.name == name})
    if not targets:
        every = names(kind)
        listed = ", ".join(every) or "none"
        raise UserError(f"{kind}: '{name}' is unknown{did_you_mean(name, every)} (there are: {listed})")
    if len(targets) > 1:
        raise UserError(
            f"{kind}: '{name}' is offered by several packages ({', '.join(targets)}); uninstall one"
        )
    return targets[0]
