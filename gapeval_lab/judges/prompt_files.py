"""A judge's prompts as files: ours, or those in a user's clone of GapEval's repository.

A file is YAML with `system_prompt`, `template` (Jinja2) and `jinja_args`, the template's variables. It is
rendered in a sandbox, and a variable that is not given is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from gapeval_lab.errors import UserError
from gapeval_lab.judges.gapeval_routes import GENERIC, ROUTES, Form
from gapeval_lab.judges.realunify_rule import YES_NO
from gapeval_lab.yaml_file import parse

OURS = Path(__file__).parent / "templates"
BELOW = "utils/prompt_templates"
"""Where the authors' repository keeps its templates."""


@dataclass(frozen=True)
class Template:
    """A prompt file, read. `digest` is of its content."""

    source: str
    system: str
    text: str
    arguments: tuple[str, ...]
    digest: str

    def render(self, variables: Mapping[str, str]) -> str:
        """The user's message.

        Raises:
            UserError: it wants a variable that this kind of item does not have, or is no Jinja2.
        """
        lacking = sorted(set(self.arguments) - variables.keys())
        if lacking:
            raise UserError(
                f"prompt_dir: {self.source} wants {', '.join(lacking)}; known here: {', '.join(variables)}"
            )
        from jinja2 import TemplateError

        try:
            text: str = _compiled(self.text).render(dict(variables))
            return text
        except TemplateError as error:
            raise UserError(
                f"prompt_dir: {self.source} cannot be filled in ({type(error).__name__}: {error}); mend it"
            ) from None


@lru_cache(maxsize=64)
def _compiled(text: str) -> Any:
    """A Jinja2 template in its sandbox; compiling takes longer than everything else about a question."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(text)


def folder_of(prompt_dir: Path) -> Path:
    """The folder of the authors' templates: `prompt_dir` or its place in their repository.

    Raises:
        ValueError: they are in neither.
    """
    one = ROUTES["physics"].text.authors
    for folder in (prompt_dir, prompt_dir / BELOW):
        if (folder / one).is_file():
            return folder
    raise ValueError(
        f"holds no {one}, nor does its {BELOW}; name a clone of GapEval's repository, or leave it out to "
        "use the templates that ship here"
    )


def template_of(form: Form, prompt_dir: Path | None) -> Template:
    """The template of a form. Items of other benchmarks are judged by ours in any case.

    Raises:
        UserError: the file is missing or not of the known form.
    """
    return _read(_path(form, prompt_dir))


def _path(form: Form, prompt_dir: Path | None) -> Path:
    if prompt_dir is None or not form.authors:
        return OURS / f"{form.ours}.yaml"
    try:
        return folder_of(prompt_dir) / form.authors
    except ValueError as error:  # it was there when the settings were checked
        raise UserError(f"prompt_dir: {prompt_dir} {error}") from None


def _read(path: Path) -> Template:
    try:
        return _parsed(str(path), path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt_dir: cannot read {path} ({type(error).__name__}); is the clone whole?"
        ) from None


@lru_cache(maxsize=64)
def _parsed(path: str, text: str) -> Template:
    document = parse(text, path)
    data = document.data
    if document.problems:
        raise UserError(f"prompt_dir: {path}: {document.problems[0].message}; mend it")
    if not isinstance(data, dict) or not isinstance(data.get("template"), str):
        raise UserError(f"prompt_dir: {path} has no text under 'template'; is it a prompt file?")
    system, arguments = data.get("system_prompt", ""), data.get("jinja_args") or []
    if not isinstance(system, str) or not _are_names(arguments):
        raise UserError(f"prompt_dir: {path}: system_prompt should be a text, jinja_args a list of names")
    digest = hashlib.sha256(json.dumps([system, data["template"], arguments]).encode()).hexdigest()
    return Template(path, system, data["template"], tuple(arguments), digest)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _holding_templates(prompt_dir: Path) -> Path:
    folder_of(prompt_dir)
    return prompt_dir


PromptDir = Annotated[Path, AfterValidator(_holding_templates)]
"""The setting of a judge: a clone of GapEval's repository, or the folder of the templates in it."""


def digest_of_all(prompt_dir: Path | None) -> str:
    """A hash of every template that may be used; one that is missing counts as such."""
    forms = [form for route in (*ROUTES.values(), GENERIC) for form in (route.text, route.image)]
    digests = {}
    for form in (*forms, YES_NO):
        path = _path(form, prompt_dir)
        digests[form.authors or form.ours] = _read(path).digest if path.is_file() else None
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
