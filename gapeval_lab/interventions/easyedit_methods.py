"""The methods of EasyEdit that give a change of weights, and how their hyperparameters are filled in.

A hyperparameter's value is, in this order: ours where it says what the model is or where statistics lie;
the plug-in's own setting; the recipe's `hparams`; the method's default here; that of EasyEdit's dataclass.
Module templates of a file were written for plain language models: one that names no module of this model
gives way to the model's own table of sites.

Knows EasyEdit's names, and no fact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.interventions.easyedit_source import INSTALL, Engine, Source
from gapeval_lab.interventions.easyedit_view import NAMES
from gapeval_lab.interventions.trace import linear_weight
from gapeval_lab.validation import did_you_mean

Name = Literal["ROME", "R-ROME", "MEMIT", "EMMET", "PMET", "AlphaEdit", "FT"]


@dataclass(frozen=True)
class Method:
    """How one method is called, and what it gives.

    Attributes:
        main, execute: its module below `easyeditor`, and the function there that computes changes and
            leaves the model as it was.
        hparams, settings: module and name of its dataclass.
        gives: "factors" are (input side, output side), vectors or a column per fact; a "matrix" lies as
            the weight does.
        made: how the matrix lies that the method then turns by the shape alone; None: it turns none.
        one_by_one: a fact per call, each on the model that holds the earlier ones.
        whole: prompts are given whole, without a place for the subject.
        statistics: module and name of the dictionary that holds C, or C^-1 where `inverted`.
        null_space: whether it projects on what C leaves out, kept in globals of `main`.
        spread: whether facts share their contexts, given as a list of lists.
        sites: what its templates need of the model's table, beside the edited site.
        defaults: hyperparameters where nobody gives them.
    """

    main: str
    execute: str
    hparams: str
    settings: str
    gives: Literal["factors", "matrix"]
    made: Literal["in_out", "out_in"] | None = None
    one_by_one: bool = False
    whole: bool = False
    statistics: tuple[str, str] | None = None
    inverted: bool = False
    null_space: bool = False
    spread: bool = False
    sites: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


_LOCATED: Final = {
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_dtype": "float32",
}
_SPREAD: Final = {**_LOCATED, "layer_selection": "all", "mom2_update_weight": 15000}
_THROUGH_THE_HEAD: Final = ("block", "final_norm", "head")

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "ROME": Method(
            main="models.rome.rome_main",
            execute="execute_rome",
            hparams="models.rome.rome_hparams",
            settings="ROMEHyperParams",
            gives="factors",
            made="in_out",
            one_by_one=True,
            statistics=("models.rome.compute_u", "inv_mom2_cache"),
            inverted=True,
            sites=("block",),
            defaults=_LOCATED,
        ),
        "R-ROME": Method(
            main="models.r_rome.r_rome_main",
            execute="execute_r_rome",
            hparams="models.r_rome.r_rome_hparams",
            settings="R_ROMEHyperParams",
            gives="factors",
            made="in_out",
            one_by_one=True,
            statistics=("models.r_rome.compute_u", "inv_mom2_cache"),
            inverted=True,
            sites=("block",),
            defaults=_LOCATED,
        ),
        "MEMIT": Method(
            main="models.memit.memit_main",
            execute="execute_memit",
            hparams="models.memit.memit_hparams",
            settings="MEMITHyperParams",
            gives="factors",
            made="out_in",
            statistics=("models.memit.memit_main", "COV_CACHE"),
            spread=True,
            sites=_THROUGH_THE_HEAD,
            defaults=_SPREAD,
        ),
        "EMMET": Method(
            main="models.emmet.emmet_main",
            execute="execute_emmet",
            hparams="models.emmet.emmet_hparams",
            settings="EMMETHyperParams",
            gives="factors",
            made="out_in",
            statistics=("models.emmet.emmet_main", "COV_CACHE"),
            spread=True,
            sites=_THROUGH_THE_HEAD,
            defaults={**_SPREAD, "mom2_update_weight": 1},
        ),
        "PMET": Method(
            main="models.pmet.pmet_main",
            execute="execute_pmet",
            hparams="models.pmet.pmet_hparams",
            settings="PMETHyperParams",
            gives="matrix",
            made="out_in",
            statistics=("models.pmet.pmet_main", "COV_CACHE"),
            spread=True,
            sites=(*_THROUGH_THE_HEAD, "attn_out"),
            defaults={
                **_SPREAD,
                **{"v_num_grad_steps": 20, "v_weight_decay": 0.5, "clamp_norm_factor": 1},
                "nll_loss_factor": 1,
            },
        ),
        "AlphaEdit": Method(
            main="models.alphaedit.AlphaEdit_main",
            execute="execute_AlphaEdit",
            hparams="models.alphaedit.AlphaEdit_hparams",
            settings="AlphaEditHyperParams",
            gives="matrix",
            made="in_out",
            statistics=("models.alphaedit.AlphaEdit_main", "COV_CACHE"),
            null_space=True,
            spread=True,
            sites=_THROUGH_THE_HEAD,
            defaults={
                **_SPREAD,
                **{"v_lr": 0.1, "v_weight_decay": 0.5, "clamp_norm_factor": 0.75},
                **{"nullspace_threshold": 2e-2, "L2": 10},
            },
        ),
        "FT": Method(
            main="models.ft.ft_main",
            execute="execute_ft",
            hparams="models.ft.ft_hparams",
            settings="FTHyperParams",
            gives="matrix",
            whole=True,
            defaults={
                **{"num_steps": 25, "lr": 5e-4, "weight_decay": 0, "kl_factor": 0},
                **{"norm_constraint": False, "batch_size": 1},
            },
        ),
    }
)
"""Defaults are those of EasyEdit's files for Llama; ROME's `mom2_adjustment` is the paper's."""

_TEMPLATES: Final = {
    "layer_module_tmp": "block",
    "attn_module_tmp": "attn_out",
    "ln_f_module": "final_norm",
    "lm_head_module": "head",
}
"""Templates that name another place than the edited one, and the site that is it."""


def method_of(name: str, source: Source) -> Method:
    """The method, if the source has it.

    Raises:
        UserError: it has not; the message names what it has.
    """
    method = METHODS[name]
    if not source.has(method.main):
        there = ", ".join(known for known, one in METHODS.items() if source.has(one.main)) or "none"
        raise UserError(
            f"method: {source.name} has no {name} (of the methods offered here it has: {there}); name a "
            f"checkout of https://github.com/zjunlp/EasyEdit in root, or take a method of `{INSTALL}`"
        )
    return method


def hyperparameters(
    name: str,
    engine: Engine,
    backbone: Backbone,
    *,
    layers: Sequence[int] | None,
    site: str | None,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    moment_texts: int,
) -> Any:
    """EasyEdit's dataclass, filled for this model.

    Args:
        name: of the method.
        engine: EasyEdit's modules.
        backbone: the model.
        layers: layers to edit; None: those of `given`.
        site: name of the linear site; None: the one that `given` names, or mlp_down.
        own: the plug-in's settings, where they were set.
        given: EasyEdit's own, as its files have them.
        moment_texts: told to EasyEdit as the size of a sample it never takes.

    Raises:
        UserError: a name, a layer or a module that is not there, or nothing for a field.
    """
    method = method_of(name, engine.source)
    found = engine.attribute(method.hparams, method.settings)
    fields = {one.name: one for one in dataclasses.fields(found)}
    for where, names in (("", own), ("hparams.", given)):
        for unknown in [key for key in names if key not in fields]:
            raise UserError(
                f"{where}{unknown}: {name} in {engine.source.name} has no such hyperparameter"
                f"{did_you_mean(unknown, fields)}"
            )
    if given.get("alg_name", name) != name:
        raise UserError(
            f"hparams.alg_name: these are hyperparameters of {given['alg_name']}; set method to it, or take "
            f"others for {name}"
        )
    chosen = list(layers if layers is not None else _layers(given))
    for layer in chosen:
        backbone.sites.path("block" if "block" in backbone.sites.templates else site or "mlp_down", layer)
    values = {**method.defaults, **given, **own, **_templates(name, backbone, chosen, site, given)}
    last = backbone.sites.layers - 1
    loss_layer = values.get("v_loss_layer", last)
    values |= {
        "layers": chosen,
        "v_loss_layer": loss_layer if isinstance(loss_layer, int) and 0 <= loss_layer <= last else last,
        "alg_name": name,
        "model_name": NAMES[backbone.sites.transposed],
        "device": str(next(backbone.root.parameters()).device),
        **{"stats_dir": "", "P_loc": "", "mom2_dataset": "gapeval_lab", "mom2_n_samples": moment_texts},
        "context_template_length_params": [],
    }
    values = {key: value for key, value in values.items() if key in fields}
    required = [
        key
        for key, one in fields.items()
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing := [key for key in required if key not in values]:
        raise UserError(f"hparams: {name} in {engine.source.name} also needs {', '.join(missing)}")
    if values.get("mom2_dtype", "float32") not in ("float32", "float64"):
        raise UserError(f"hparams.mom2_dtype: '{values['mom2_dtype']}' is neither float32 nor float64")
    if values.get("fact_token", "subject_last") != "subject_last":
        raise UserError(
            f"hparams.fact_token: '{values['fact_token']}' gives EasyEdit another token than it says, or "
            "none; it must be subject_last here (the native methods have others)"
        )
    return found(**values)


def edited(hparams: Any) -> list[str]:
    """Paths of the modules that the hyperparameters name, in the order of their layers."""
    templates = getattr(hparams, "rewrite_module_tmps", None) or [hparams.rewrite_module_tmp]
    return [
        template.removesuffix(".weight").format(layer) for layer in hparams.layers for template in templates
    ]


def _layers(given: Mapping[str, Any]) -> list[int]:
    layers = given.get("layers")
    if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
        raise UserError(f"layers: hparams has {layers!r}, no list of layers; set layer or layers")
    return layers


def _templates(
    name: str, backbone: Backbone, layers: Sequence[int], site: str | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every module template of the dataclasses, for this model."""
    method, table = METHODS[name], backbone.sites.templates
    modules = {path for path, _ in backbone.root.named_modules() if path}

    def there(template: Any) -> bool:
        if not isinstance(template, str) or template.count("{}") > 1:
            return False
        return all(template.replace("{}", str(layer)) in modules for layer in layers)

    def translated(template: str) -> str | None:
        """The template, or the same place below this model's blocks."""
        theirs = template.removesuffix(".weight")
        below = theirs.removeprefix(str(given.get("layer_module_tmp")))
        return next((one for one in (theirs, f"{table.get('block')}{below}") if there(one)), None)

    def rewritten(key: str, template: Any) -> str:
        found = translated(str(template))
        if found is None:
            raise UserError(
                f"hparams.{key}: '{template}' names no module of this model; set site to one of "
                f"{', '.join(table)}"
            )
        return found

    if site is None and "rewrite_module_tmp" in given:
        rewrite = rewritten("rewrite_module_tmp", given["rewrite_module_tmp"])
    else:
        backbone.sites.path(site or "mlp_down", layers[0])
        rewrite = table[site or "mlp_down"]
    several = [rewrite]
    if site is None and given.get("rewrite_module_tmps"):
        several = [rewritten("rewrite_module_tmps", one) for one in given["rewrite_module_tmps"]]
    found: dict[str, Any] = {}
    for key, place in _TEMPLATES.items():
        template = given[key] if there(given.get(key)) else table.get(place, "")
        if place in method.sites and not there(template):
            raise UserError(
                f"hparams.{key}: {name} needs this module, and the model's table of sites has no '{place}'; "
                "give its path"
            )
        found[key] = template
    # The value is sought at the output of this module, so it must be the edited one's or end with it.
    mlp = given.get("mlp_module_tmp")
    found["mlp_module_tmp"] = mlp if there(mlp) and rewrite.startswith(str(mlp)) else rewrite
    for template in several:
        for layer in layers:
            linear_weight(backbone.root, template.format(layer))
    suffix = ".weight" if method.whole else ""  # this one looks for names that hold the template
    return {**found, "rewrite_module_tmp": rewrite + suffix, "rewrite_module_tmps": several}
