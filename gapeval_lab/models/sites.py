"""Where the sites of a model are: what its family's table in configs/models/sites says, or its own config.

Light to import. Holds tables against modules, and knows no model's class.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Sites
from gapeval_lab.shipped import packaged, read_text
from gapeval_lab.validation import validate
from gapeval_lab.yaml_file import parse

if TYPE_CHECKING:
    from torch import nn

NEEDED: Final = ("block", "attn_out", "mlp_down")
LOOK: Final = "'gapeval-lab model modules' lists what there is"
FIX: Final = (
    f"name them in model.sites: {{templates: {{block: ..., mlp_down: ...}}, transposed: ...}}; {LOOK}"
)


def _is_path(template: str) -> str:
    if not re.fullmatch(r"(\{(decoder|head)\}|[^{}])[^{}]*(\{\}[^{}]*)?", template):
        raise ValueError(
            "should be a module's path with one {} for the layer, or none, that may begin with {decoder} or "
            f"{{head}}; got '{template}'"
        )
    return template


Template = Annotated[str, AfterValidator(_is_path)]


class SiteTable(BaseModel):
    """Where things are in a model; see `Sites`.

    Attributes:
        templates: site -> module path from the root, with one `{}` for the layer, or none. A leading
            `{decoder}` or `{head}` stands for the path of the language model, or of its text logits' module.
        layers: number of layers; None: as many as the model has.
        transposed: True where weights are stored (in, out).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: dict[str, Template] = Field(min_length=1)
    layers: int | None = Field(default=None, ge=1)
    transposed: bool = False


def family_table(family: str) -> SiteTable:
    """What the package states of a family. A local file of that name changes nothing: a recipe's hash would
    not show it, and it does show a node's own `sites`.
    """
    path = packaged("configs") / "models" / "sites" / f"{family}.yaml"
    return validate(SiteTable, parse(read_text(path), str(path)).data)


def family_sites(model: Any, family: str) -> Sites:
    """The model's sites as its family has them; those that this model lacks are left out.

    Raises:
        UserError: one that interventions need is not there.
    """
    table = family_table(family)
    templates = _placed(model, table)
    layers = _count(model, templates["block"]) if "block" in templates else 0
    there = {site: template for site, template in templates.items() if not _absent(model, template, layers)}
    if missing := [site for site in NEEDED if site not in there or not layers]:
        raise UserError(
            f"model.sites: {' and '.join(missing)} not found in {type(model).__name__}, whose names differ "
            f"from the table '{family}'; {FIX}"
        )
    return Sites(there, layers=layers, transposed=table.transposed)


def given_sites(model: Any, table: SiteTable) -> Sites:
    """The model's sites as its config states them.

    Raises:
        UserError: a site is not in the model.
    """
    templates = _placed(model, table)
    per_layer = [template for template in templates.values() if "{}" in template]
    counted = _count(model, templates.get("block", per_layer[0])) if per_layer else 1
    layers = table.layers or max(counted, 1)
    for site in table.templates:
        lacking = _absent(model, templates[site], layers) if site in templates else table.templates[site]
        if lacking:
            raise UserError(f"model.sites.templates.{site}: the model has no module '{lacking}'; {LOOK}")
    return Sites(templates, layers=layers, transposed=table.transposed)


def _placed(model: Any, table: SiteTable) -> dict[str, str]:
    """The table's templates as paths; without those whose {decoder} or {head} the model has not."""
    paths = {id(module): path for path, module in model.named_modules()}
    ask = {"{decoder}": "get_decoder", "{head}": "get_output_embeddings"}
    placed = {}
    for site, template in table.templates.items():
        for mark, name in ask.items():
            if template.startswith(mark):
                found = paths.get(id(getattr(model, name, lambda: None)()))
                template = "" if found is None else (found + template.removeprefix(mark)).lstrip(".")
        if template:
            placed[site] = template
    return placed


def _count(model: nn.Module, template: str) -> int:
    """How many layers have the module, counted from 0."""
    layers = 0
    while has_module(model, template.format(layers)):
        layers += 1
        if "{}" not in template:
            break
    return layers


def _absent(model: nn.Module, template: str, layers: int) -> str:
    """The first path of a template that leads nowhere; empty if all lead somewhere."""
    numbers = range(layers) if "{}" in template else range(1)
    return next((path for n in numbers if not has_module(model, path := template.format(n))), "")


def has_module(root: nn.Module, path: str) -> bool:
    """Whether there is a module at the path."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
