"""Which template judges an item, and what it is given: GapEval's published categories, and all others.

The one place that knows how items hold what templates ask for. The names of variables and of the authors'
files are theirs, so that a template of either origin can be filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import plain
from gapeval_lab.items import Direction, Item, Picture, Response
from gapeval_lab.validation import did_you_mean

WORLD = ("animal", "cartoon", "celebrity", "landmark")
"""Kinds of world knowledge, which may stand as categories of their own."""

CHOICE = ("mmlu", "mmmu")
"""Kinds of reasoning that are judged alike, and published under both names at once."""

Shown = Literal["problem", "reference", "answer"]


@dataclass(frozen=True)
class Form:
    """One direction of a route.

    Attributes:
        ours, authors: names of the template's file, without and with its folder and suffix.
        values: variable -> what it is filled with: "question" (the text prompt), "task" (the drawing
            prompt), "reference", "answer", or a picture, which is named in words.
        pictures: what is attached, in this order.
        optional: pictures that an item may lack.
        keys: where the verdict stands in the judge's object; one of them is enough.
        raw: "raw" is a verdict, too: the picture was not changed at all, which is wrong.
        copy: a drawing with exactly the pixels of the problem is wrong, whatever a judge would say.
    """

    ours: str
    authors: str
    values: Mapping[str, str]
    pictures: tuple[Shown, ...] = ()
    optional: tuple[Shown, ...] = ()
    keys: tuple[str, ...] = ("score",)
    raw: bool = False
    copy: bool = False


@dataclass(frozen=True)
class Route:
    """How one kind of item is judged, told and drawn."""

    name: str
    text: Form
    image: Form

    def form(self, direction: Direction) -> Form:
        """The form of one direction."""
        return self.text if direction is Direction.UNDERSTANDING else self.image


def _world_knowledge(kind: str) -> Route:
    told = {"reference_image": "reference", "reference_text": "reference text"}
    return Route(
        f"world knowledge/{kind}",
        Form(
            "world_knowledge_text",
            f"ab/world_knowledge_{kind}_text_eval.yaml",
            {**told, "generated_text": "answer"},
            ("reference",),
            ("reference",),
        ),
        Form(
            "world_knowledge_image",
            f"ab/world_knowledge_{kind}_image_eval.yaml",
            {**told, "generated_image": "answer"},
            ("reference", "answer"),
            ("reference",),
        ),
    )


def _counting(kind: str) -> Route:
    return Route(
        f"counting/{kind}",
        Form(
            "counting_text",
            f"counting_text_{kind}_eval.yaml",
            {"task_reference": "reference text", "generated_text": "answer"},
        ),
        Form(
            "counting_image",
            f"counting_image_{kind}_eval.yaml",
            {
                "task_reference": "reference text",
                "generated_image": "answer",
                "reference_answer_image": "reference",
            },
            ("answer", "reference"),
        ),
    )


_CHOICE_TOLD = {
    "question_image": "problem",
    "correct_option": "reference text",
    "generated_answer": "answer",
}
_CHOICE_DRAWN = {"question_image": "problem", "correct_option": "reference text", "answer_image": "answer"}

ROUTES: Mapping[str, Route] = {
    route.name: route
    for route in (
        Route(
            "Multi Hop",
            Form(
                "multi_hop_text",
                "multi_hop_text_eval.yaml",
                {
                    "reference_image": "reference",
                    "reference_text": "reference text",
                    "generated_text": "answer",
                },
                ("reference",),
                ("reference",),
                keys=("judge_result", "judeg_result"),
            ),
            Form(
                "multi_hop_image",
                "multi_hop_image_eval.yaml",
                {
                    "reference_image": "reference",
                    "reference_caption": "reference text",
                    "generated_image": "answer",
                },
                ("reference", "answer"),
                ("reference",),
                keys=("judge_result", "judeg_result"),
            ),
        ),
        Route(
            "physics",
            Form(
                "physics_text",
                "physics_text_eval.yaml",
                {"problem": "question", "reference_answer": "reference text", "generated_text": "answer"},
            ),
            Form(
                "physics_image",
                "physics_image_eval.yaml",
                {"problem_text": "question", "reference_text": "reference text"},
                ("problem", "reference", "answer"),
            ),
        ),
        Route(
            "rule_based",
            Form(
                "rule_based_text",
                "rule_based_text_eval.yaml",
                {"rule": "question", "reference_text": "reference text", "generated_text": "answer"},
            ),
            Form(
                "rule_based_image",
                "rule_based_image_eval.yaml",
                {
                    "original_image": "problem",
                    "rule": "task",
                    "reference_image": "reference",
                    "generated_image": "answer",
                },
                ("problem", "reference", "answer"),
                copy=True,
            ),
        ),
        _counting("animal"),
        _counting("object"),
        Route(
            "reasoning/draw",
            Form(
                "draw_text",
                "draw_reasoning_text_eval.yaml",
                {
                    "question_image": "problem",
                    "task_text": "question",
                    "reference_answer_image": "reference",
                    "generated_text": "answer",
                },
                ("problem", "reference"),
            ),
            Form(
                "draw_image",
                "draw_reasoning_image_eval.yaml",
                {
                    "question_image": "problem",
                    "task_text": "question",
                    "reference_answer_image": "reference",
                    "answer_image": "answer",
                },
                ("problem", "reference", "answer"),
            ),
        ),
        Route(
            "reasoning/puzzle",
            Form("choice_text", "reasoning_choice_text_eval.yaml", _CHOICE_TOLD, ("problem",)),
            Form(
                "puzzle_image",
                "reasoning_choice_image_eval.yaml",
                {**_CHOICE_DRAWN, "reference_answer_image": "reference"},
                ("problem", "reference", "answer"),
                raw=True,
                copy=True,
            ),
        ),
        Route(
            "reasoning/mmlu/mmmu",
            Form("choice_text", "mmmu_mmlu_reasoning_choice_text_eval.yaml", _CHOICE_TOLD, ("problem",)),
            Form(
                "choice_image",
                "mmmu_mmlureasoning_choice_image_eval.yaml",
                _CHOICE_DRAWN,
                ("problem", "answer"),
                raw=True,
                copy=True,
            ),
        ),
        *(_world_knowledge(kind) for kind in WORLD),
    )
}
"""GapEval's published categories; a subcategory follows a stroke where it matters."""

_BY_NAME = {plain(name): route for name, route in ROUTES.items()}

GENERIC = Route(
    "generic",
    Form(
        "generic_text",
        "",
        {"question": "question", "reference_text": "accepted", "generated_text": "answer"},
        ("problem", "reference"),
        ("problem", "reference"),
    ),
    Form(
        "generic_image",
        "",
        {"task": "task", "reference_text": "accepted", "target": "target"},
        ("problem", "reference", "answer"),
        ("problem", "reference"),
    ),
)
"""For items of any other benchmark: the prompts, every accepted answer, and the target in words."""


class Unjudgeable(Exception):
    """An item lacks what its template needs, or there is no response to judge."""


@dataclass(frozen=True)
class Material:
    """What one response is judged on.

    Attributes:
        route, form: how.
        variables: of the template.
        pictures: attached, in order.
        is_copy: the drawing is the problem itself, where that is wrong.
    """

    route: Route
    form: Form
    variables: Mapping[str, str]
    pictures: tuple[Picture, ...]
    is_copy: bool = False


def published(item: Item) -> Mapping[str, Any]:
    """GapEval's own words about an item, as its benchmark keeps them; empty for other benchmarks."""
    inside = item.target.get("gapeval")
    if isinstance(inside, Mapping) and inside.get("category"):
        return inside
    category = item.tags.get("gapeval_category")
    if not category:
        return {}
    return {"category": category, "subcategory": item.tags.get("gapeval_subcategory", "")}


def route_of(item: Item) -> Route:
    """How an item is judged.

    Raises:
        UserError: a published category that is not known.
    """
    said = published(item)
    if not said:
        return GENERIC
    category, kind = str(said["category"]), str(said.get("subcategory") or "")
    first, second = plain(category), plain(kind)
    if first == "counting":  # as published: every other kind is judged as objects
        return ROUTES["counting/animal" if second == "animals counting" else "counting/object"]
    if first in WORLD:
        first, second = "world knowledge", first
    if second in CHOICE:
        second = "/".join(CHOICE)
    route = _BY_NAME.get(first) or _BY_NAME.get(f"{first}/{second}")
    if route is None:
        name = f"{category}/{kind}" if kind else category
        raise UserError(
            f"category: '{name}' of item {item.id} is none of GapEval's{did_you_mean(name, ROUTES)} "
            f"(there are: {', '.join(ROUTES)})"
        )
    return route


def material_of(item: Item, response: Response) -> Material:
    """What a response is judged on.

    Raises:
        Unjudgeable: something is missing; the words say what.
        UserError: see `route_of`.
        OSError: a picture cannot be read.
    """
    if response.error is not None:
        raise Unjudgeable(f"no response: {response.error}")
    told = response.direction is Direction.UNDERSTANDING
    if told and response.text is None:
        raise Unjudgeable("no text")
    if not told and response.picture is None:
        raise Unjudgeable("no picture")
    route = route_of(item)
    form = route.form(response.direction)
    pictures = _pictures(item, response)
    lacking = [name for name in form.pictures if name not in pictures and name not in form.optional]
    if lacking:
        raise Unjudgeable(f"the item has no {' and no '.join(lacking)} picture, which its template needs")
    texts = _texts(item, response)
    variables = {
        variable: texts[source] if source in texts else _named(source, form, pictures)
        for variable, source in form.values.items()
    }
    attached = tuple(pictures[name] for name in form.pictures if name in pictures)
    return Material(route, form, variables, attached, form.copy and _is_copy(item, response))


def _named(source: str, form: Form, pictures: Mapping[Shown, Picture]) -> str:
    """A picture in words: which of those attached it is."""
    attached = [shown for shown in form.pictures if shown in pictures]
    if source not in attached:
        return f"no {source} picture"
    what = {"problem": "question's picture", "reference": "reference picture", "answer": "generated picture"}
    return f"see attached picture {attached.index(source) + 1}, the {what[source]}"


def _pictures(item: Item, response: Response) -> dict[Shown, Picture]:
    prompt, other = item.prompt(response.direction), item.understand
    problem = (*prompt.pictures, *other.pictures, *item.generate.pictures)
    found: dict[Shown, Picture] = {}
    if problem:
        found["problem"] = problem[0]
    if item.references:
        found["reference"] = item.references[0]
    if response.picture is not None:
        found["answer"] = response.picture
    return found


def _texts(item: Item, response: Response) -> dict[str, str]:
    said = published(item)
    reference = said.get("reference", item.accepted[0] if item.accepted else "")
    texts = {
        "question": str(said.get("und_prompt") or item.understand.text),
        "task": str(said.get("gen_prompt") or item.generate.text),
        "reference text": _flat(reference),
        "accepted": "\n".join(item.accepted),
        "target": json.dumps(item.target, sort_keys=True, default=dict) if item.target else "",
    }
    if response.text is not None:
        texts["answer"] = response.text
    return texts


def _flat(reference: Any) -> str:
    """A reference as one text: lists by lines, objects as JSON."""
    if isinstance(reference, str):
        return reference
    if isinstance(reference, list | tuple):
        return "\n".join(_flat(part) for part in reference)
    return json.dumps(reference, sort_keys=True, default=dict)


def _is_copy(item: Item, response: Response) -> bool:
    """Whether the drawing has the very pixels of the problem."""
    drawn = response.image
    given = item.generate.images[:1] or item.understand.images[:1]
    if drawn is None or not given:
        return False
    first, second = drawn.convert("RGB"), given[0].convert("RGB")
    return first.size == second.size and first.tobytes() == second.tobytes()
