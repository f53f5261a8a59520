"""Writes the fact files beside the recipes, from tinyworld. Run it again: the same bytes.

python scripts/make_facts.py --out recipes/facts
"""

import argparse
from pathlib import Path

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld_facts import make_facts, make_new_facts
from gapeval_lab.facts import write_facts
from gapeval_lab.items import Fact

RELATIONS = ("colour", "shape")


def world_knowledge() -> list[Fact]:
    """One counterfactual per entity: those taught in both directions first, then those told of only.

    Entities alternate between the splits, and relations within a split, so that no entity is in both.
    """
    facts: list[Fact] = []
    for split, parity in (("test", 0), ("dev", 1)):
        subjects = [
            entity.name
            for group in ("both", "text")
            for entity in [e for e in people.entities().values() if e.taught == group][parity::2]
        ]
        facts += make_facts([(name, RELATIONS[i % 2]) for i, name in enumerate(subjects)], split)
    return facts


def new_entities() -> list[Fact]:
    """Everything about entities that the embedded model was never shown, half of them for each split."""
    unseen = [entity.name for entity in people.entities().values() if entity.taught == "neither"]
    return [*make_new_facts(unseen[0::2], "test"), *make_new_facts(unseen[1::2], "dev")]


def main() -> None:
    """Write every file."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path("recipes/facts"))
    args = parser.parse_args()
    for name, facts in (("world_knowledge", world_knowledge()), ("new_entities", new_entities())):
        write_facts(args.out / f"{name}.jsonl", facts)
        print(f"{args.out / name}.jsonl: {len(facts)} facts")


if __name__ == "__main__":
    main()
