"""One state of a model, measured: the benchmark's items, and the probes of the facts.

Knows a bench and the model as it is now; nothing of phases, of trials or of what was done before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gapeval_lab.bench import Bench
from gapeval_lab.evaluate import Evaluation, Progress, ResponseStore, evaluate
from gapeval_lab.items import Example, Fact
from gapeval_lab.protocols import ByProtocol, ask_by
from gapeval_lab.quality import SIDES, ProbeState, Side, probes
from gapeval_lab.reasoning import Reasoned, reason


@dataclass(frozen=True)
class Measured:
    """One state: the benchmark's evaluation, where there are facts their probes, and further protocols."""

    evaluation: Evaluation
    probes: ProbeState | None
    protocols: Mapping[str, ByProtocol] = field(default_factory=dict)


def measure(
    bench: Bench, *, store: ResponseStore | None = None, whole: bool = True, progress: Progress | None = None
) -> Measured:
    """Ask the benchmark, the facts' probes and what further protocols there are, of the model as it is now.

    Args:
        bench: model, items, facts, judge; the recipe's seed and batch.
        store: where finished responses lie and go.
        whole: also the facts and the further protocols; controls do without.
        progress: told after each batch.
    """
    recipe = bench.loaded.recipe
    asked = probes(bench.facts) if whole else []
    found = evaluate(
        bench.umm,
        [*bench.items, *asked],
        judge=bench.judge,
        seed=recipe.seed,
        store=store,
        chunk=recipe.evaluation.batch,
        progress=progress,
    )
    evaluation = Evaluation(tuple(bench.items), found.responses, found.verdicts)
    if not whole:
        return Measured(evaluation, None)
    ways = ask_by(
        recipe.evaluation.protocols,
        bench.umm,
        evaluation,
        judge=bench.judge,
        seed=recipe.seed,
        store=store,
        chunk=recipe.evaluation.batch,
        progress=progress,
    )
    if not asked:
        return Measured(evaluation, None, ways)
    written = reasoned(bench, store=store, progress=progress)
    return Measured(evaluation, ProbeState(found, logprobs(bench), written), ways)


def reasoned(
    bench: Bench, *, store: ResponseStore | None = None, progress: Progress | None = None
) -> Reasoned | None:
    """The facts drawn from what the model writes first; None where the recipe does not ask for that."""
    recipe = bench.loaded.recipe
    if recipe.evaluation.reasoning is None:
        return None
    return reason(
        bench.umm,
        bench.facts,
        recipe.evaluation.reasoning,
        judge=bench.judge,
        seed=recipe.seed,
        store=store,
        chunk=recipe.evaluation.batch,
        progress=progress,
    )


def logprobs(bench: Bench) -> Mapping[Side, Mapping[str, float]]:
    """Teacher-forced log-probability of each fact's target, in nats."""
    import torch

    found = {}
    for side, direction in SIDES.items():
        if direction not in bench.umm.directions:
            continue
        examples = {
            fact.id: Example(fact.edit.prompt(direction), answer)
            for fact in bench.facts
            if (answer := _target(bench, fact, side)) is not None
        }
        if examples:
            with torch.no_grad():
                losses = bench.umm.loss(list(examples.values()), direction)
            found[side] = dict(zip(examples, (-losses).tolist(), strict=True))
    return found


def _target(bench: Bench, fact: Fact, side: Side) -> Any:
    if side == "text":
        return fact.edit.reference_text
    return bench.benchmark.illustrate(fact.edit.target)
