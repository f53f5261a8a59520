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


def many_facts() -> list[Fact]:
    """100 changes: colour and shape of 50 entities of every group; the others are left as neighbours.

    In turn from group to group and relation to relation, so that the first ten are a fair sample.
    """
    chosen = []
    for group, kept in (("both", 6), ("text", 4), ("image", 4)):
        members = [entity.name for entity in people.entities().values() if entity.taught == group]
        chosen.append(members[kept:])
    mixed = [group[i] for i in range(max(map(len, chosen))) for group in chosen if i < len(group)]
    first = [(name, RELATIONS[i % 2]) for i, name in enumerate(mixed)]
    second = [(name, RELATIONS[1 - i % 2]) for i, name in enumerate(mixed)]
    return make_facts([*first, *second], "test")


def main() -> None:
    """Write every file."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path("recipes/facts"))
    args = parser.parse_args()
    files = {
        "world_knowledge": world_knowledge(),
        "many_facts": many_facts(),
        "new_entities": new_entities(),
    }
    for name, facts in files.items():
        write_facts(args.out / f"{name}.jsonl", facts)
        print(f"{args.out / name}.jsonl: {len(facts)} facts")


if __name__ == "__main__":
    main()
