"""What replay and the divergence term do for locality: LoRA with and without them, side by side.

python scripts/injection_ablation.py --recipe lora_world_knowledge_text --seeds 3

Each row is the recipe's own intervention with the named fields changed, fitted to the DEV facts (the
recipe's are for its own run), with the model and the benchmark loaded once. Shares are means over seeds.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapeval_lab.evaluate import evaluate
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import Training
from gapeval_lab.lessons import lessons_of, replay_of
from gapeval_lab.outcome import QUALITIES
from gapeval_lab.quality import ProbeState, edit_quality, probes
from gapeval_lab.recipe import load


@dataclass(frozen=True)
class Variant:
    """A row: its name and the settings that differ."""

    name: str
    changes: dict[str, Any]


VARIANTS = (
    Variant("as in the recipe", {}),
    Variant("without either", {"replay": 0.0, "kl_factor": 0.0}),
    Variant("replay 1", {"replay": 1.0, "kl_factor": 0.0}),
    Variant("divergence 1", {"replay": 0.0, "kl_factor": 1.0}),
    Variant("both", {"replay": 1.0, "kl_factor": 1.0}),
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
    facts = read_facts(recipe.facts.file, split="dev", count=args.facts)
    training = Training(lessons_of(facts, world, items=world.items()), replay_of(world, facts))
    asked = probes(facts)
    before = ProbeState(evaluate(umm, asked, judge=judge, seed=0), {})
    method = recipe.build("intervention")
    print(f"{args.recipe}, {len(facts)} dev facts, {args.seeds} seeds; told / drawn")
    print(f"{'':20}" + "".join(f"{name:>18}" for name in QUALITIES))
    for variant in VARIANTS:
        rows = []
        for seed in range(args.seeds):
            settings = type(method)(**{**method.model_dump(), **variant.changes})
            delta = settings.fit(
                umm,
                facts,
                seed=seed,
                texts=world.training_texts(),
                log=lambda *point: None,
                training=training,
            )
            with delta.applied(umm.backbone().root):
                after = ProbeState(evaluate(umm, asked, judge=judge, seed=0), {})
            quality = edit_quality(facts, before, after, edited="both", seed=seed)
            rows.append(
                [
                    [getattr(quality, name)[side].after.value for side in ("text", "image")]
                    for name in QUALITIES
                ]
            )
        shares = np.mean(rows, axis=0)
        print(
            f"{variant.name:20}" + "".join(f"{told:>10.2f} / {drawn:.2f}" for told, drawn in shares),
            flush=True,
        )


if __name__ == "__main__":
    main()
