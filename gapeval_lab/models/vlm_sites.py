"""Finds the sites of a language model inside a larger one: its layers, projections, last norm and head.

Knows the names that Llama, Qwen, Mistral and their kin share, and no model's class.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn
from transformers.pytorch_utils import Conv1D

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Sites
from gapeval_lab.models.vlm import SiteTable

IN_A_BLOCK: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "mlp_up": "mlp.up_proj",
    "mlp_gate": "mlp.gate_proj",
    "mlp_down": "mlp.down_proj",
}
NEEDED: Final = ("attn_out", "mlp_down")
_FIX: Final = (
    "name them in model.sites: {templates: {block: ..., mlp_down: ...}, layers: ..., transposed: ...}; "
    "'gapeval-lab model modules' lists what there is"
)


def find_sites(model: Any, given: SiteTable | None) -> Sites:
    """The model's sites: those given, or those of its own decoder.

    Raises:
        UserError: a site that is given is not in the model, or none was given and none is found.
    """
    return _derived(model) if given is None else _checked(model, given)


def _checked(model: nn.Module, given: SiteTable) -> Sites:
    sites = Sites(given.templates, layers=given.layers, transposed=given.transposed)
    for site, template in given.templates.items():
        layers = range(given.layers) if "{}" in template else range(1)
        for layer in layers:
            if not has_module(model, path := sites.path(site, layer)):
                raise UserError(
                    f"model.sites.templates.{site}: the model has no module '{path}'; 'gapeval-lab model "
                    "modules' lists what there is"
                )
    return sites


def _derived(model: Any) -> Sites:
    decoder = model.get_decoder()
    paths = {id(module): path for path, module in model.named_modules()}
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(f"model.sites: {type(decoder).__name__} has no list of 'layers'; {_FIX}")
    block = f"{paths[id(layers)]}.{{}}"
    templates = {"block": block}
    for site, inside in IN_A_BLOCK.items():
        if all(has_module(layer, inside) for layer in layers):
            templates[site] = f"{block}.{inside}"
    missing = [site for site in NEEDED if site not in templates]
    if missing:
        raise UserError(
            f"model.sites: {' and '.join(missing)} not found in {type(layers[0]).__name__}, whose names "
            f"differ; {_FIX}"
        )
    for site, module in (("final_norm", getattr(decoder, "norm", None)), ("head", _head(model))):
        if module is not None and id(module) in paths:
            templates[site] = paths[id(module)]
    down = layers[0].get_submodule(IN_A_BLOCK["mlp_down"])
    return Sites(templates, layers=len(layers), transposed=isinstance(down, Conv1D))


def _head(model: Any) -> nn.Module | None:
    head: nn.Module | None = model.get_output_embeddings()
    return head


def has_module(root: nn.Module, path: str) -> bool:
    """Whether there is a module at the path."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
