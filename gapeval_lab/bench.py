"""A recipe's parts, loaded and checked: what a run works with. Runs nothing."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gapeval_lab import __version__
from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import select
from gapeval_lab.facts import facts_hash, read_facts
from gapeval_lab.interfaces import UMM, Benchmark, Intervention, Judge
from gapeval_lab.items import Fact, Item, items_digest
from gapeval_lab.recipe import LoadedRecipe, Recipe


@dataclass
class Bench:
    """A recipe's parts, loaded: what a run works with."""

    loaded: LoadedRecipe
    umm: UMM
    judge: Judge
    benchmark: Benchmark
    items: list[Item]
    facts: tuple[Fact, ...]
    intervention: Intervention | None
    weights: str
    seconds: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called, in experiments and tables."""
        return self.umm.name

    @property
    def data_hash(self) -> str:
        """SHA-256 over the items asked."""
        return items_digest(self.items)

    @property
    def key(self) -> str:
        """Hash of everything that makes two runs the same run."""
        parts = [self.loaded.hash, self.weights, self.data_hash, hash_of_facts(self.facts), __version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def load_bench(loaded: LoadedRecipe) -> Bench:
    """Build every part of the recipe; all user mistakes come out here, before any work.

    Raises:
        UserError: a part of the recipe does not fit.
    """
    recipe = loaded.recipe
    began = time.monotonic()
    benchmark, judge = recipe.build("benchmark"), recipe.build("judge")
    items = chosen_items(recipe, benchmark)
    facts: tuple[Fact, ...] = ()
    intervention = None
    if recipe.intervention is not None:
        if recipe.facts is None:
            raise UserError(
                "facts: the recipe has an intervention but no facts; add facts: {file: facts/....jsonl}"
            )
        facts = read_facts(recipe.facts.file, split=recipe.facts.split, count=recipe.facts.count)
        intervention = recipe.build("intervention")
    umm = recipe.build("model").load()
    if intervention is not None:
        intervention.check(umm)
    seconds = {"load": time.monotonic() - began}
    return Bench(
        loaded, umm, judge, benchmark, items, facts, intervention, fingerprint(umm.backbone().root), seconds
    )


def chosen_items(recipe: Recipe, benchmark: Benchmark) -> list[Item]:
    """The items that the recipe's evaluation section asks for."""
    protocol = recipe.evaluation
    return select(
        benchmark.items(), categories=protocol.categories, number=protocol.items, limit=protocol.limit
    )


def hash_of_facts(facts: Sequence[Fact]) -> str | None:
    """SHA-256 over the facts; None where there are none."""
    return facts_hash(facts) if facts else None
