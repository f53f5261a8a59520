"""The exact judge: texts by normalised match, pictures by reading them. No model, no noise.

An item's `target` says what a right picture must show:
    {"grid": [nine names or null]}  these things in these cells, and nothing else;
    {"things": {name: number}}      these things at any places, and nothing else;
    {"colour": c}                   at least one thing, and every thing of this colour;
    {"shape": s}                    at least one thing, and every thing of this shape;
    {"count": n}                    exactly n things.
A picture whose target is of another kind, such as a text, is not scored.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from gapeval_lab.items import Direction, Item, Response, Verdict
from gapeval_lab.judges.vision import read_picture
from gapeval_lab.scene import TARGETS, Scene

_ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, words only, no articles."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return " ".join(word for word in words if word not in _ARTICLES)


def shows(scene: Scene, target: Mapping[str, Any]) -> bool:
    """Whether the scene is what the target asks for.

    Raises:
        ValueError: a target of a kind that this judge does not know.
    """
    match dict(target):
        case {"grid": grid}:
            return scene.names == list(grid)
        case {"things": things}:
            return dict(scene.counts()) == dict(things)
        case {"colour": colour}:
            return bool(scene.things) and all(item.colour == colour for item in scene.things)
        case {"shape": shape}:
            return bool(scene.things) and all(item.shape == shape for item in scene.things)
        case {"count": count}:
            return len(scene.things) == int(count)
        case _:
            raise ValueError(f"unknown kind of target: {dict(target)}")


class Exact(BaseModel):
    """Judge of tinyworld. Has no settings: there is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair, in order."""
        return [self._one(item, response) for item, response in pairs]

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on."""
        return {"judge": "exact", "version": 1}

    def _one(self, item: Item, response: Response) -> Verdict:
        if response.error is not None:
            return Verdict(item.id, response.direction, None, f"no response: {response.error}")
        if response.direction is Direction.UNDERSTANDING:
            return self._text(item, response)
        return self._picture(item, response)

    def _text(self, item: Item, response: Response) -> Verdict:
        if response.text is None:
            return Verdict(item.id, response.direction, None, "no text")
        given = normalise(response.text)
        right = any(given == normalise(accepted) for accepted in item.accepted)
        return Verdict(item.id, response.direction, right, f"read as: {given or '(empty)'}")

    def _picture(self, item: Item, response: Response) -> Verdict:
        image = response.image
        if image is None:
            return Verdict(item.id, response.direction, None, "no picture")
        if not TARGETS & item.target.keys():
            kind = ", ".join(item.target) or "empty"
            return Verdict(item.id, response.direction, None, f"this judge reads no such target: {kind}")
        reading = read_picture(image)
        if reading.scene is None:
            return Verdict(item.id, response.direction, False, f"unreadable: {reading.problem}")
        right = shows(reading.scene, item.target)
        return Verdict(item.id, response.direction, right, f"shows: {reading.scene.listing()}")
