"""Writes the fact files beside the recipes, from tinyworld. Run it again: the same bytes.

python scripts/make_facts.py --out recipes/facts
"""

import argparse
from pathlib import Path

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld_facts import make_facts
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


def main() -> None:
    """Write every file."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path("recipes/facts"))
    args = parser.parse_args()
    facts = world_knowledge()
    write_facts(args.out / "world_knowledge.jsonl", facts)
    print(f"{args.out / 'world_knowledge.jsonl'}: {len(facts)} facts")


if __name__ == "__main__":
    main()
