"""What replay, weight decay and the divergence term do for locality: LoRA with and without, side by side.

python scripts/injection_ablation.py --recipe lora_world_knowledge_text --seeds 3

Each row is the recipe's own intervention with the named fields changed, fitted to DEV facts (the recipe's
are for its own run): each seed draws its own eight of them. Shares are means over seeds, the same draws in
every row; the last column is how much locality differs from the second row's, with a 95 % t-interval.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapeval_lab.evaluate import evaluate
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import Training
from gapeval_lab.items import Fact
from gapeval_lab.lessons import anchors_of, lessons_of, replay_of
from gapeval_lab.outcome import QUALITIES
from gapeval_lab.quality import ProbeState, edit_quality, probes
from gapeval_lab.recipe import load
from gapeval_lab.repeats import over_seeds


@dataclass(frozen=True)
class Variant:
    """A row: its name and the settings that differ."""

    name: str
    changes: dict[str, Any]


NOTHING = {"replay": 0.0, "kl_factor": 0.0, "weight_decay": 0.0}
VARIANTS = (
    Variant("as in the recipe", {}),
    Variant("without any", NOTHING),
    Variant("replay", {**NOTHING, "replay": 1.0}),
    Variant("divergence", {**NOTHING, "kl_factor": 1.0}),
    Variant("weight decay", {**NOTHING, "weight_decay": 3.0}),
    Variant("all three", {"replay": 1.0, "kl_factor": 1.0, "weight_decay": 3.0}),
)


def main() -> None:
    """Fit every variant with every seed and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="lora_world_knowledge_text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    recipe = load(args.recipe, args.set).recipe
    umm, world, judge = recipe.build("model").load(), recipe.build("benchmark"), recipe.build("judge")
    assert recipe.facts is not None
    known = read_facts(recipe.facts.file, split="dev")
    draws = [
        [known[i] for i in sorted(np.random.default_rng(seed).choice(len(known), args.facts, replace=False))]
        for seed in range(args.seeds)
    ]
    method = recipe.build("intervention")
    print(f"{args.recipe}, {args.seeds} draws of {args.facts} dev facts; told / drawn", flush=True)
    print(f"{'':20}" + "".join(f"{name:>18}" for name in QUALITIES) + f"{'locality, more':>34}")
    without: Any = None
    for variant in VARIANTS:
        settings = type(method)(**{**method.model_dump(), **variant.changes})
        shares = np.array([measured(umm, world, judge, settings, d, seed) for seed, d in enumerate(draws)])
        line = "".join(f"{told:>10.2f} / {drawn:.2f}" for told, drawn in shares.mean(axis=0))
        if variant.changes == NOTHING:
            without = shares
        elif without is not None and args.seeds > 1:
            more = (shares - without)[:, QUALITIES.index("locality")]
            spans = [over_seeds(side.tolist()) for side in more.T]
            line += "   " + " / ".join(f"{s.value:+.2f} [{s.low:+.2f}, {s.high:+.2f}]" for s in spans)
        print(f"{variant.name:20}{line}", flush=True)


def measured(
    umm: Any, world: Any, judge: Any, method: Any, facts: Sequence[Fact], seed: int
) -> list[list[float]]:
    """Quality of one intervention: (measures, sides)."""
    asked = probes(facts)
    before = ProbeState(evaluate(umm, asked, judge=judge, seed=0), {})
    training = Training(
        lessons=lessons_of(facts, world, items=world.items()),
        replay=replay_of(world, facts),
        anchors=anchors_of(world, facts),
    )
    delta = method.fit(
        umm, facts, seed=seed, texts=world.training_texts(), log=lambda *point: None, training=training
    )
    with delta.applied(umm.backbone().root):
        after = ProbeState(evaluate(umm, asked, judge=judge, seed=0), {})
    quality = edit_quality(facts, before, after, edited="both", seed=seed)
    cells = [getattr(quality, name) for name in QUALITIES]
    return [[cell[side].after.value for side in ("text", "image")] for cell in cells]


if __name__ == "__main__":
    main()
