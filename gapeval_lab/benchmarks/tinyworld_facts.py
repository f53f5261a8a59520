"""Facts of tinyworld, changed ones and new ones, with every question that tests them."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld_entities import Entity
from gapeval_lab.benchmarks.tinyworld_tasks import Question
from gapeval_lab.items import Fact, Item, Prompt

NEIGHBOURS = 4
RELATED = {"colour", "shape"}
UNKNOWN = "unknown"  # what a model says of someone it never heard of is nobody's truth


def make_facts(subjects: Sequence[tuple[str, str]], split: str) -> list[Fact]:
    """One counterfactual per (entity, relation): a wrong value, chosen once and for ever.

    Probes accept what is right once ALL of these facts are written into the world.
    """
    world = people.entities()
    changes = {(name, relation): _other_value(world[name], relation) for name, relation in subjects}
    edited = dict(world)
    for (name, relation), value in changes.items():
        edited[name] = edited[name].changed(relation, value)
    touched = {name for name, _ in subjects}
    told = {name: {what for who, what in subjects if who == name} for name in touched}
    return [
        _fact(world[name], relation, value, edited, touched, split, both=len(RELATED & told[name]) > 1)
        for (name, relation), value in changes.items()
    ]


def make_new_facts(names: Sequence[str], split: str) -> list[Fact]:
    """Colour, shape and number of entities that no model was shown.

    What must stay as it is belongs to known entities; what follows is the whole entity, which is
    never told at once.
    """
    world = people.entities()
    return [_new_fact(world[name], relation, world, split) for name in names for relation in people.VALUES]


def _new_fact(entity: Entity, relation: str, world: dict[str, Entity], split: str) -> Fact:
    identity = f"{entity.name}-{relation}"
    probes = _Probes(identity, relation, world)
    known = _near(replace(entity, taught="both"), world, ())
    return Fact(
        id=identity,
        subject=entity.name,
        relation=relation,
        target_true=UNKNOWN,
        target_new=entity.value(relation),
        **probes.of_subject(entity),
        neighbours=probes("neighbours", [(other, relation, 0) for other in known]),
        derived=probes("derived", [(entity, "whole", 0)]),
        split=split,
    )


def _other_value(entity: Entity, relation: str) -> str:
    options = [value for value in people.VALUES[relation] if value != entity.value(relation)]
    digest = hashlib.sha256(f"counterfactual|{entity.name}|{relation}".encode()).digest()
    return options[digest[0] % len(options)]


def _fact(
    entity: Entity,
    relation: str,
    value: str,
    edited: dict[str, Entity],
    touched: Collection[str],
    split: str,
    *,
    both: bool,
) -> Fact:
    """`both`: the subject's colour and shape are changed, so that its number is what must stay."""
    now = edited[entity.name]
    identity = f"{entity.name}-{relation}"
    probes = _Probes(identity, relation, edited)
    before = next(other for other in edited.values() if other.friend == entity.name)
    hop = [(before, f"friend_{relation}", 0)] if relation != "number" else []
    kept = ["number"] if both else [other for other in people.VALUES if other not in (relation, "number")]
    return Fact(
        id=identity,
        subject=entity.name,
        relation=relation,
        target_true=entity.value(relation),
        target_new=value,
        **probes.of_subject(now),
        neighbours=probes(
            "neighbours",
            [(other, relation, 0) for other in _near(entity, edited, touched)]
            + [(now, other, 0) for other in kept],
        ),
        derived=probes("derived", [*hop, (now, "whole", 0)]),
        split=split,
    )


class _SubjectProbes(TypedDict):
    edit: Item
    taught: tuple[Item, ...]
    reworded: tuple[Item, ...]


@dataclass(frozen=True)
class _Probes:
    """Makes the questions of one fact; answers are those of the given world."""

    identity: str
    relation: str
    world: dict[str, Entity]

    def __call__(self, role: str, asked: Sequence[tuple[Entity, str, int]]) -> tuple[Item, ...]:
        """One question per (whom it is about, what is asked, wording), numbered in order."""
        return tuple(
            self._item(people.question(about, what, wording, self.world), f"{self.identity}.{role}.{n}")
            for n, (about, what, wording) in enumerate(asked)
        )

    def of_subject(self, entity: Entity) -> _SubjectProbes:
        """The fact itself in every wording, by what the wordings are for."""
        taught = [wording for wording in people.TRAINED if wording != people.EDIT_WORDING]
        (edit,) = self("edit", [(entity, self.relation, people.EDIT_WORDING)])
        return {
            "edit": edit,
            "taught": self("taught", [(entity, self.relation, wording) for wording in taught]),
            "reworded": self("reworded", [(entity, self.relation, wording) for wording in people.REWORDED]),
        }

    def _item(self, question: Question, identity: str) -> Item:
        return Item(
            id=identity,
            category=question.category,
            subcategory=self.relation,
            understand=Prompt(question.understand),
            generate=Prompt(question.generate),
            accepted=question.answers,
            target=question.target,
        )


def _near(entity: Entity, edited: dict[str, Entity], touched: Collection[str]) -> list[Entity]:
    """Untouched entities of the same group, those that share a piece of the name first."""
    others = [e for e in edited.values() if e.taught == entity.taught and e.name not in touched]
    digest = hashlib.sha256(f"near|{entity.name}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(others))
    shuffled = [others[i] for i in order]
    shuffled.sort(key=lambda other: other.name[:3] != entity.name[:3] and other.name[3:] != entity.name[3:])
    return shuffled[:NEIGHBOURS]
