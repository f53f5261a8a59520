"""The parts in which a trial is measured, and what is known of its metrics after each.

Facts come first: they are few, and carry reliability and locality. Then the benchmark, in shards that
hold every category in its share: after the first one every metric has an estimate, and a pruner has one
pair of values per shard and not per category. Asking in shards of 64 items costs the embedded model about
6 % more CPU time than asking all at once, in shards of 32 about a quarter more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gapeval_lab.bench import Bench
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import Evaluation
from gapeval_lab.gap.one_sided import state_report, state_shift
from gapeval_lab.items import Fact, Item
from gapeval_lab.measuring import Measured
from gapeval_lab.protocol_record import verdicts
from gapeval_lab.quality import ProbeState, Side, edit_quality, probes
from gapeval_lab.recording import targets
from gapeval_lab.study_settings import ALONE
from gapeval_lab.tracking_scalars import gap_scalars, quality_scalars, rounded

SHARD = 64
"""Items, or probes, of a part, at most (but never less than a fact's)."""


@dataclass(frozen=True)
class Part:
    """What is asked together: the probes of some facts, or a shard of the benchmark."""

    facts: tuple[Fact, ...] = ()
    items: tuple[Item, ...] = ()

    @property
    def asked(self) -> tuple[Item, ...]:
        """All of it."""
        return (*probes(self.facts), *self.items)


def plan(facts: Sequence[Fact], items: Sequence[Item]) -> list[Part]:
    """The parts of a trial, in the order in which they are asked; the same arguments give the same parts.

    Args:
        facts: in the recipe's order.
        items: of the benchmark.
    """
    told = max(1, min(len(facts), -(-len(probes(facts)) // SHARD)))
    shards = max(1, -(-len(items) // SHARD))
    ends = [len(facts) * number // told for number in range(told + 1)]
    groups = [Part(facts=tuple(facts[start:end])) for start, end in zip(ends, ends[1:], strict=False)]
    # Dealt like cards, category after category: shares stay, and neighbours, which are alike, are parted.
    order = {name: place for place, name in enumerate(dict.fromkeys(item.category for item in items))}
    dealt = sorted(items, key=lambda item: order[item.category])
    return [*groups, *(Part(items=tuple(dealt[number::shards])) for number in range(shards))]


class SoFar:
    """What is known of a trial's metrics while it is measured."""

    def __init__(
        self,
        bench: Bench,
        before: Measured,
        logprobs: Mapping[Side, Mapping[str, float]],
        *,
        bounds: bool,
    ) -> None:
        """Nothing is known yet.

        Args:
            bench: of the trial.
            before: the state before everything.
            logprobs: of the facts' targets, now.
            bounds: whether intervals are wanted; they cost replicates.
        """
        self.bench = bench
        self.before = before
        self.logprobs = logprobs
        self.bounds = bounds
        self.facts: tuple[Fact, ...] = ()
        self.items: tuple[Item, ...] = ()
        self.quality: dict[str, float] = {}

    def add(self, part: Part, now: Evaluation) -> dict[str, float]:
        """Estimates on everything so far, under the names of the final metrics, and on the part alone.

        Args:
            part: what was measured last.
            now: everything that was measured.
        """
        self.facts += part.facts
        self.items += part.items
        if part.facts:
            self.quality = self._told(self.facts, now)
        alone = self._told(part.facts, now) | self._asked(part.items, now)
        return self.quality | self._asked(self.items, now) | {f"{ALONE}{k}": v for k, v in alone.items()}

    def _told(self, facts: Sequence[Fact], now: Evaluation) -> dict[str, float]:
        if not facts or self.before.probes is None:
            return {}
        seed, edited = self.bench.loaded.recipe.seed, self.bench.direction
        after = ProbeState(now, self.logprobs)
        return rounded(
            quality_scalars(edit_quality(facts, self.before.probes, after, edited=edited, seed=seed))
        )

    def _asked(self, items: tuple[Item, ...], now: Evaluation) -> dict[str, float]:
        if not items:
            return {}
        recipe = self.bench.loaded.recipe
        states = [verdicts(replace(state, items=items)) for state in (self.before.evaluation, now)]
        replicates = recipe.evaluation.replicates if self.bounds else 1
        try:
            was, became = (
                state_report(state, seed=recipe.seed, replicates=replicates, official=False)
                for state in states
            )
            moved = state_shift(*states, seed=recipe.seed, replicates=replicates)
        except UserError:  # nothing of this was scored
            return {}
        found = rounded(gap_scalars(was, became, moved, targets=targets(self.bench)))
        return {
            name: value
            for name, value in found.items()
            if self.bounds or not name.startswith(("low/", "high/"))
        }
