"""The named inhabitants of tinyworld: who they are, and every way to ask about them.

Each entity has a colour, a shape, a number (it always shows as that many such shapes) and a friend.
Entities are taught in both directions, in text only, in pictures only, or in neither (names kept
for the injection of new knowledge). Of the wordings of each (entity, relation, direction) half are
kept out of training: one for the benchmark item, three for the rewordings of facts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from gapeval_lab.benchmarks.tinyworld_tasks import KNOWLEDGE, Question, Taught
from gapeval_lab.scene import COLOURS, NUMBERS, SHAPES, Thing, counted

WORLD_SEED: Final = 20260211
FIRST: Final = (
    "zor",
    "mel",
    "kip",
    "dra",
    "fen",
    "lus",
    "tov",
    "wex",
    "nab",
    "gri",
    "sul",
    "yor",
    "hep",
    "cal",
)
LAST: Final = (
    "bak",
    "dim",
    "rus",
    "nox",
    "tal",
    "vey",
    "pim",
    "gon",
    "lat",
    "sko",
    "fir",
    "mub",
    "wen",
    "jex",
)
GROUPS: Final[tuple[tuple[Taught, int], ...]] = (("both", 28), ("text", 16), ("image", 20), ("neither", 16))
COMPOSED_ONLY: Final = 8  # of so many entities one is never asked two-hop questions in training


@dataclass(frozen=True)
class Entity:
    """An inhabitant: a name of two sub-word tokens, and what is true of it."""

    name: str
    colour: str
    shape: str
    number: int
    friend: str
    taught: Taught

    @property
    def thing(self) -> Thing:
        """What it looks like, once."""
        return Thing(self.colour, self.shape)

    def value(self, relation: str) -> str:
        """The answer to a question about a single attribute."""
        return {"colour": self.colour, "shape": self.shape, "number": NUMBERS[self.number]}[relation]

    def changed(self, relation: str, value: str) -> "Entity":
        """The entity as it is after a counterfactual edit."""
        fields: dict[str, Any] = {**self.__dict__}
        fields[relation] = NUMBERS.index(value) if relation == "number" else value
        return Entity(**fields)


VALUES: Final = {"colour": tuple(COLOURS), "shape": SHAPES, "number": NUMBERS[1:5]}


@cache
def entities() -> dict[str, Entity]:
    """All entities by name: the same in every process, for ever (the world's seed is fixed)."""
    rng = np.random.default_rng(WORLD_SEED)
    total = sum(number for _, number in GROUPS)
    pairs = rng.permutation(len(FIRST) * len(LAST))[:total]
    names = [FIRST[i // len(LAST)] + LAST[i % len(LAST)] for i in pairs]
    # Balanced attributes, so that no constant answer does better than chance.
    colours = rng.permutation([list(COLOURS)[i % len(COLOURS)] for i in range(total)])
    shapes = rng.permutation([SHAPES[i % len(SHAPES)] for i in range(total)])
    numbers = rng.permutation([1 + i % 4 for i in range(total)])
    found: dict[str, Entity] = {}
    start = 0
    for taught, size in GROUPS:
        members = range(start, start + size)
        for i in members:
            friend = names[start + (i - start + 1) % size]  # one ring of friends per group
            look = (str(colours[i]), str(shapes[i]), int(numbers[i]))
            found[names[i]] = Entity(names[i], *look, friend, taught)
        start += size
    return found


# Core phrases; {e} is the entity. The subject stands early as well as late, so that what the model
# knows of it is bound to the subject's own last token.
_ATTRIBUTE: Final = (
    "the {r} of {e}",
    "{e} , its {r}",
    "{e} and the {r} it has",
    "the {r} that {e} has",
)
_OF_FRIEND: Final = (
    "the {r} of the friend of {e}",
    "{e} , its friend , its {r}",
    "the friend of {e} and the {r} it has",
    "the {r} that the friend of {e} has",
)
_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple(core.replace("{r}", "colour") for core in _ATTRIBUTE),
    "shape": tuple(core.replace("{r}", "shape") for core in _ATTRIBUTE),
    "number": tuple(core.replace("{r}", "number") for core in _ATTRIBUTE),
    "whole": ("{e}", "{e} as it is", "{e} as all know it", "how {e} looks"),
    "friend_colour": tuple(core.replace("{r}", "colour") for core in _OF_FRIEND),
    "friend_shape": tuple(core.replace("{r}", "shape") for core in _OF_FRIEND),
    "friend_whole": (
        "the friend of {e}",
        "{e} , its friend",
        "the friend {e} has",
        "how the friend of {e} looks",
    ),
}
_UNDERSTAND: Final = ("tell me {} .", "{} ?")
_GENERATE: Final = ("draw {} .", "paint {} .")
RELATIONS: Final = tuple(_PHRASES)
SUBCATEGORY: Final = {
    "colour": "attribute",
    "shape": "attribute",
    "number": "attribute",
    "whole": "whole_entity",
    "friend_colour": "two_hop",
    "friend_shape": "two_hop",
    "friend_whole": "two_hop",
}


def wordings(entity: str, relation: str, direction: str) -> list[str]:
    """All eight wordings in this entity's own order.

    The first is the benchmark's, the next three are the facts' rewordings, the fifth the facts'
    edit; the last four, the edit's among them, are trained on.
    """
    frames = _UNDERSTAND if direction == "text" else _GENERATE
    texts = [frame.format(core.replace("{e}", entity)) for core in _PHRASES[relation] for frame in frames]
    digest = hashlib.sha256(f"{entity}|{relation}|{direction}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(texts))
    return [texts[i] for i in order]


BENCHMARK_WORDING: Final = 0
REWORDED: Final = (1, 2, 3)
EDIT_WORDING: Final = 4
TRAINED: Final = (4, 5, 6, 7)


def truth(entity: Entity, relation: str, world: dict[str, Entity]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Accepted answers and target of a question about the entity, in the given world."""
    about = world[entity.friend] if relation.startswith("friend_") else entity
    kind = relation.removeprefix("friend_")
    if kind == "whole":
        return (counted(about.thing, about.number),), {"things": {about.thing.name: about.number}}
    if kind == "number":
        return (NUMBERS[about.number],), {"count": about.number}
    return (about.value(kind),), {kind: about.value(kind)}


def question(entity: Entity, relation: str, wording: int, world: dict[str, Entity] | None = None) -> Question:
    """The question of that wording, with what is right in the given world (default: as taught)."""
    answers, target = truth(entity, relation, world or entities())
    return Question(
        category=KNOWLEDGE,
        subcategory=SUBCATEGORY[relation],
        operation=relation,
        key=f"{entity.name}|{relation}|{wording}",
        understand=wordings(entity.name, relation, "text")[wording],
        generate=wordings(entity.name, relation, "image")[wording],
        answers=answers,
        target=target,
        taught=entity.taught,
    )


def composed_only(entity: Entity) -> bool:
    """True for entities whose two-hop questions are never trained on: they must be composed."""
    digest = hashlib.sha256(f"two-hop|{entity.name}".encode()).digest()
    return digest[0] % COMPOSED_ONLY == 0


def trained_questions() -> Iterator[Question]:
    """Every question about entities that training may show, in the directions of `taught`."""
    for entity in entities().values():
        if entity.taught == "neither":
            continue
        for relation in RELATIONS:
            if relation.startswith("friend_") and composed_only(entity):
                continue
            for wording in TRAINED:
                yield question(entity, relation, wording)


def benchmark_questions() -> Iterator[Question]:
    """The benchmark's questions: one held-out wording of everything about every taught entity."""
    for entity in entities().values():
        if entity.taught != "neither":
            for relation in RELATIONS:
                yield question(entity, relation, BENCHMARK_WORDING)
