"""What a joint objective does: facts written for text and pictures, against the same facts for text alone.

python scripts/joint_against_text.py --recipes memit_both_directions rome_both_directions

Every recipe's own intervention is fitted twice to the recipe's facts, as it is and with picture_factor 0,
the model and the benchmark loaded once. Differences are paired by fact; intervals are bootstraps over
facts (10,000 draws).
"""

import argparse
from typing import Any

import numpy as np

from gapeval_lab.evaluate import evaluate
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import Training
from gapeval_lab.lessons import lessons_of, replay_of
from gapeval_lab.outcome import QUALITIES, EditQuality
from gapeval_lab.quality import ProbeState, edit_quality, probes
from gapeval_lab.recipe import load

SIDES = ("text", "image")


def main() -> None:
    """Fit both, print both and their difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["memit_both_directions", "rome_both_directions"])
    parser.add_argument("--split", help="facts of another split than the recipe's")
    args = parser.parse_args()
    for name in args.recipes:
        overrides = [f"facts.split={args.split}"] if args.split else []
        compare(name, load(name, overrides).recipe)


def compare(name: str, recipe: Any) -> None:
    """One recipe's table."""
    umm, world, judge = recipe.build("model").load(), recipe.build("benchmark"), recipe.build("judge")
    facts = read_facts(recipe.facts.file, split=recipe.facts.split, count=recipe.facts.count)
    asked, method = probes(facts), recipe.build("intervention")
    before = ProbeState(evaluate(umm, asked, judge=judge, seed=recipe.seed), {})
    training = Training(lessons=lessons_of(facts, world), replay=replay_of(world, facts))
    found: dict[str, EditQuality] = {}
    for label, settings in (
        ("text alone", method.model_copy(update={"picture_factor": 0.0})),
        ("joint", method),
    ):
        delta = settings.fit(
            umm,
            facts,
            seed=recipe.seed,
            texts=world.training_texts(),
            log=lambda *point: None,
            training=training,
        )
        with delta.applied(umm.backbone().root):
            after = ProbeState(evaluate(umm, asked, judge=judge, seed=recipe.seed), {})
        edited = "text" if label == "text alone" else "both"
        found[label] = edit_quality(facts, before, after, edited=edited, seed=recipe.seed)
    ratio = found["text alone"].transfer_ratio
    told = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "n/a"
    print(f"{name}: {len(facts)} facts of {recipe.facts.split}; transfer ratio of text alone {told}")
    print(f"{'':22}{'text alone':>12}{'joint':>8}   difference, paired [95 %]")
    for measure in QUALITIES:
        for side in SIDES:
            one, two = (shares(found[label], measure, side) for label in ("text alone", "joint"))
            known = ~np.isnan(one) & ~np.isnan(two)
            more = (two - one)[known]
            drawn = np.random.default_rng(0).integers(len(more), size=(10_000, len(more)))
            low, high = np.quantile(more[drawn].mean(axis=1), [0.025, 0.975])
            means = f"{one[known].mean():>12.2f}{two[known].mean():>8.2f}"
            print(
                f"{measure + '/' + side:22}{means}   {more.mean():+.2f} [{low:+.2f}, {high:+.2f}]", flush=True
            )


def shares(quality: EditQuality, measure: str, side: str) -> Any:
    """Share of passed probes per fact; nan where none was scored."""
    return np.array([getattr(fact, measure)[side] for fact in quality.facts], dtype=float)


if __name__ == "__main__":
    main()
