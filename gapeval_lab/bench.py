"""A recipe's parts, loaded and checked: what a run works with. Runs nothing."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gapeval_lab import __version__, registry
from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import select
from gapeval_lab.fact_files import read_fact_file, read_texts
from gapeval_lab.facts import facts_hash
from gapeval_lab.inputs import Source, placed, sources_of
from gapeval_lab.interfaces import (
    UMM,
    Benchmark,
    Checked,
    Intervention,
    Judge,
    Lesson,
    ReadsFiles,
    ReadsTexts,
    Side,
    Weightless,
    side_of,
)
from gapeval_lab.items import Direction, Fact, Item, image_digest, items_digest
from gapeval_lab.lessons import lessons_of
from gapeval_lab.protocols import needed
from gapeval_lab.provenance import code_hash, machine, stamp
from gapeval_lab.recipe import FactsNode, LoadedRecipe, Node, Recipe
from gapeval_lab.splits import of_split


@dataclass(frozen=True)
class Stage:
    """One intervention of a recipe, with what it is to write and what it may train on.

    `texts` are of the domain: the recipe's own, whose hash is `texts_hash`, or else the benchmark's.
    `left_out` names the flawed entries of the fact file that the recipe skips.
    """

    facts: tuple[Fact, ...]
    intervention: Intervention
    lessons: list[Lesson] = field(default_factory=list)
    left_out: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    texts_hash: str | None = None


@dataclass
class Bench:
    """A recipe's parts, loaded: what a run works with.

    `inputs` are the files that the facts came from; `reproduces` is the id of the run that is repeated: such
    a run takes nothing from what others left on disk.
    """

    loaded: LoadedRecipe
    umm: UMM
    judge: Judge
    benchmark: Benchmark
    items: list[Item]
    stages: list[Stage]
    weights: str
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: tuple[Source, ...] = ()
    reproduces: str | None = None

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of all stages."""
        return tuple(fact for stage in self.stages for fact in stage.facts)

    @property
    def direction(self) -> Side:
        """The side that the interventions are given; "both" for a baseline and for mixed stages."""
        sides = {side_of(stage.intervention.direction) for stage in self.stages}
        return sides.pop() if len(sides) == 1 else "both"

    @property
    def kind(self) -> Literal["baseline", "edit", "inject"]:
        """What the run is called; one that edits anywhere is an edit."""
        kinds = {stage.intervention.kind for stage in self.stages}
        return "baseline" if not kinds else "edit" if "edit" in kinds else "inject"

    @property
    def name(self) -> str:
        """What the model is called, in experiments and tables."""
        return self.umm.name

    @property
    def data_hash(self) -> str:
        """SHA-256 over the items asked."""
        return items_digest(self.items)

    @property
    def read(self) -> list[str]:
        """Hashes of the files that interventions read, or are given texts from."""
        found = [stage.texts_hash for stage in self.stages if stage.texts_hash is not None]
        return found + [
            stage.intervention.content_hash()
            for stage in self.stages
            if isinstance(stage.intervention, ReadsFiles)
        ]

    @property
    def key(self) -> str:
        """Hash of everything that makes two runs the same run."""
        drawn = [
            lesson.example.answer
            for stage in self.stages
            for lesson in stage.lessons
            if not isinstance(lesson.example.answer, str)
        ]
        parts = [
            self.loaded.hash,
            self.weights,
            self.data_hash,
            hash_of_facts(self.facts),
            [image_digest(picture) for picture in drawn],
            self.read,
            # Files that a judge reads, such as people's labels, are in its settings by their content.
            self.judge.settings(),
            __version__,
            *(() if self.reproduces is None else (self.reproduces, code_hash(), machine())),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def load_bench(
    loaded: LoadedRecipe, *, places: Mapping[str, Path] | None = None, judge: Judge | None = None
) -> Bench:
    """Build every part of the recipe; all user mistakes come out here, before any work.

    Args:
        loaded: the recipe.
        places: where files that it names lie, if not there, see `inputs`.
        judge: instead of the recipe's own, of which it is another copy.

    Raises:
        UserError: a part of the recipe does not fit.
    """
    recipe = loaded.recipe
    began = time.monotonic()
    stamp()
    benchmark, judge = recipe.build("benchmark"), judge or recipe.build("judge")
    items = chosen_items(recipe, benchmark)
    if isinstance(judge, Checked):
        judge.check(items)
    stages = stages_of(recipe, benchmark, places=places)
    umm = recipe.build("model").load()
    _check_asking(recipe, umm)
    for stage in stages:
        _check(stage, umm)
    seconds = {"load": time.monotonic() - began}
    weights, inputs = weights_of(umm), inputs_of(recipe, stages, places=places)
    return Bench(loaded, umm, judge, benchmark, items, stages, weights, seconds, inputs)


def weights_of(umm: UMM) -> str:
    """The model's weights as they are now, as a hash; what stands for them where they are out of reach."""
    return umm.identity() if isinstance(umm, Weightless) else fingerprint(umm.backbone().root)


def _check_asking(recipe: Recipe, umm: UMM) -> None:
    """Refuse ways of asking that need a direction which the model lacks."""
    if recipe.evaluation.reasoning is not None and len(umm.directions) < 2:
        raise UserError(
            f"evaluation.reasoning: {umm.name} does not both tell and draw; set it to null, or take another "
            "model"
        )
    for name, node in recipe.evaluation.protocols.items():
        if lacking := needed(node) - umm.directions:
            does = "draw" if Direction.GENERATION in lacking else "tell"
            raise UserError(
                f"evaluation.protocols.{name}: {umm.name} does not {does}, as {node.use} needs here; take it "
                "out, or take another model"
            )


def _check(stage: Stage, umm: UMM) -> None:
    if isinstance(umm, Weightless):
        raise UserError(
            f"intervention: the weights of {umm.name} are out of reach, so that nothing can be written into "
            "them; measure it with a recipe without intervention, or take another model"
        )
    stage.intervention.check(umm)


def with_recipe(bench: Bench, loaded: LoadedRecipe) -> Bench:
    """Another recipe on the same model, benchmark and judge, which are not loaded again.

    Raises:
        ValueError: the recipes name another model, benchmark or judge.
        UserError: facts, items, interventions or ways of asking do not fit.
    """
    old, new = bench.loaded.recipe, loaded.recipe
    if (old.model, old.benchmark, old.judge) != (new.model, new.benchmark, new.judge):
        raise ValueError("the recipes differ in their model, benchmark or judge")
    same = old.evaluation == new.evaluation
    items = bench.items if same else chosen_items(new, bench.benchmark)
    stages = stages_of(new, bench.benchmark)
    _check_asking(new, bench.umm)
    for stage in stages:
        _check(stage, bench.umm)
    inputs = inputs_of(new, stages)
    return replace(bench, loaded=loaded, items=items, stages=stages, seconds={}, inputs=inputs)


def inputs_of(
    recipe: Recipe, stages: Sequence[Stage], *, places: Mapping[str, Path] | None = None
) -> tuple[Source, ...]:
    """What the facts came from, and what interventions read by themselves; nothing for a baseline.

    Args:
        recipe, places: see `stages_of`.
        stages: of the recipe.
    """
    if recipe.intervention is None or recipe.facts is None:
        return ()
    nodes = [recipe.facts, *(step.facts for step in recipe.then)]
    read = [
        Source(
            f"then.{number - 1}.intervention" if number else "intervention", stage.intervention.content_hash()
        )
        for number, stage in enumerate(stages)
        if isinstance(stage.intervention, ReadsFiles)
    ]
    return (*sources_of(nodes, places or {}), *read)


def stages_of(
    recipe: Recipe, benchmark: Benchmark, *, places: Mapping[str, Path] | None = None
) -> list[Stage]:
    """The interventions in order, with their facts and lessons; none for a baseline.

    Args:
        recipe: what to build.
        benchmark: its own.
        places: where files that it names lie, if not there.

    Raises:
        UserError: no facts, an id that stands in two sets, or lessons that are measured.
    """
    if recipe.intervention is None:
        return []
    if recipe.facts is None:
        raise UserError(
            "facts: the recipe has an intervention but no facts; add facts: {file: facts/....jsonl}"
        )
    nodes = [(recipe.facts, recipe.intervention), *((step.facts, step.intervention) for step in recipe.then)]
    stages = [_stage(placed(facts, places or {}), node, benchmark) for facts, node in nodes]
    first_in: dict[str, int] = {}
    for number, stage in enumerate(stages):
        for fact in stage.facts:
            first = first_in.setdefault(fact.id, number)
            if first != number:
                raise UserError(
                    f"then.{number - 1}.facts: fact '{fact.id}' stands in an earlier set; take another "
                    "split, or give it another id"
                )
    return stages


def _stage(chosen: FactsNode, node: Node, benchmark: Benchmark) -> Stage:
    facts, left_out = read_fact_file(
        chosen.file,
        format=chosen.format,
        split=chosen.split,
        count=chosen.count,
        draw=chosen.draw,
        flawed=chosen.flawed,
    )
    intervention: Intervention = registry.build("interventions", node.use, settings=node.settings)
    texts = read_texts(chosen.texts) if chosen.texts else tuple(benchmark.training_texts())
    texts_hash = hashlib.sha256("\n".join(texts).encode()).hexdigest() if chosen.texts else None
    if not texts and isinstance(intervention, ReadsTexts) and intervention.needs_texts:
        raise UserError(
            f"facts.texts: missing; {node.use} as it is set needs texts of the domain and {benchmark.name} "
            "has none; name a file with one text per line, such as texts/everyday.txt"
        )
    stage = Stage(facts, intervention, left_out=left_out, texts=texts, texts_hash=texts_hash)
    if intervention.kind != "inject" and intervention.direction == "text":
        return stage
    folder = None if chosen.pictures is None else Path(chosen.pictures)
    lessons = lessons_of(facts, benchmark, items=benchmark.items(), pictures=folder)
    return replace(stage, lessons=lessons)


def chosen_items(recipe: Recipe, benchmark: Benchmark) -> list[Item]:
    """The items that the recipe's evaluation section asks for."""
    protocol = recipe.evaluation
    items = of_split(benchmark.items(), protocol.split)
    return select(items, categories=protocol.categories, number=protocol.items, limit=protocol.limit)


def hash_of_facts(facts: Sequence[Fact]) -> str | None:
    """SHA-256 over the facts; None where there are none."""
    return facts_hash(facts) if facts else None
