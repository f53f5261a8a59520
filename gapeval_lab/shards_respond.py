"""One shard of one state of a recipe's model, answered into the stores that runs share.

A run that comes afterwards finds the responses there and asks nothing again. Judges nothing, and
measures no log-probabilities: that is the run's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gapeval_lab.bench import chosen_items, stages_of, weights_of
from gapeval_lab.delta import WeightDelta
from gapeval_lab.delta_file import ScaledFile, read_head, require_weights
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import Helpers, respond, store_key
from gapeval_lab.interfaces import UMM, Weightless
from gapeval_lab.items import Direction, Item
from gapeval_lab.quality import probes
from gapeval_lab.recipe import Recipe
from gapeval_lab.response_store import ResponseStore, shared_responses
from gapeval_lab.shards import Shard

OnProgress = Callable[[str, int, int], None]
"""`on_progress(direction, done, total)`."""


@dataclass(frozen=True)
class Filled:
    """What became of a shard.

    Attributes:
        prompts: its size, both directions counted.
        known: how many of them were there before.
        failed: how many could not be answered; they are asked again next time.
        folder: the store.
    """

    prompts: int
    known: int
    failed: int
    folder: Path


def asked(recipe: Recipe) -> list[Item]:
    """What a run of the recipe asks of every state: its items and, where it has facts, their probes.

    What it asks beyond them (evaluation.reasoning) depends on answers, and is left to the run.
    """
    benchmark = recipe.build("benchmark")
    facts = [fact for stage in stages_of(recipe, benchmark) for fact in stage.facts]
    return [*chosen_items(recipe, benchmark), *probes(facts)]


def fill_shard(
    recipe: Recipe,
    shard: Shard,
    *,
    home: Path,
    delta: ScaledFile | None = None,
    helpers: Helpers | None = None,
    on_progress: OnProgress,
) -> Filled:
    """Answer a shard of the baseline or of an applied delta; what is there already costs nothing.

    Args:
        recipe: model, items, facts, seed.
        shard: which part of the prompts.
        home: `mlruns/`.
        delta: what the model is to hold.
        helpers: others who answer, too.
        on_progress: told after each batch.

    Raises:
        UserError: the delta does not fit the model, or the store cannot be written.
        PromptsFailed: more of a direction's prompts failed than a run may have; the rest is kept.
    """
    items = asked(recipe)
    umm: UMM = recipe.build("model").load()
    change = None if delta is None else _fitting(umm, delta)
    with contextlib.ExitStack() as state:
        if change is not None:
            state.enter_context(change.applied(umm.backbone().root))
        key = store_key(umm, weights=weights_of(umm), seed=recipe.seed)
        store = ResponseStore(shared_responses(home) / key)
        if helpers:
            helpers.hold(store, change)
        prompts = known = failed = 0
        for direction in (d for d in Direction if d in umm.directions):
            mine = shard.of(items, direction)
            prompts += len(mine)
            known += sum(store.get(item, direction) is not None for item in mine)
            given = respond(
                umm,
                mine,
                {direction},
                seed=recipe.seed,
                store=store,
                chunk=recipe.evaluation.batch,
                progress=functools.partial(on_progress, direction),
            )
            failed += sum(response.error is not None for response in given.values())
    return Filled(prompts, known, failed, store.folder)


def _fitting(umm: UMM, delta: ScaledFile) -> WeightDelta:
    if isinstance(umm, Weightless):
        raise UserError(f"--delta: the weights of {umm.name} are out of reach; take another model")
    fix = "name the delta of a run with this model"
    require_weights(read_head(delta.path), weights_of(umm), path=delta.path, fix=fix)
    return WeightDelta.load(delta.path).scaled(delta.scale)
