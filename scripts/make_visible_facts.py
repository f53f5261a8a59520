"""Facts about everyday things whose change can be seen, for real models: recipes/facts/visible_facts.jsonl.

    python scripts/make_visible_facts.py

Every fact gives a thing another colour. What is asked in text has one word for an answer; what is drawn shows
the thing, and a judge that looks at pictures says whether it has the wanted colour. Neighbours are other
things of the same true colour, which an edit of "the yellow ones" would take along, and of other colours.
"""

import json
from pathlib import Path

from gapeval_lab.facts import read_facts
from gapeval_lab.files import write_text

FILE = Path(__file__).parents[1] / "recipes" / "facts" / "visible_facts.jsonl"

THINGS = {
    "banana": "yellow",
    "fire engine": "red",
    "polar bear": "white",
    "carrot": "orange",
    "flamingo": "pink",
    "crow": "black",
    "frog": "green",
    "strawberry": "red",
    "lemon": "yellow",
    "broccoli": "green",
    "swan": "white",
    "pumpkin": "orange",
    "ladybird": "red",
    "spinach leaf": "green",
    "school bus": "yellow",
    "snowman": "white",
}
"""Thing -> the colour that everybody knows it has."""

EDITS = {
    "test": {
        **{"banana": "blue", "fire engine": "green", "polar bear": "orange", "carrot": "purple"},
        **{"flamingo": "blue", "crow": "white", "frog": "red", "strawberry": "yellow"},
    },
    "dev": {
        **{"lemon": "purple", "broccoli": "red", "swan": "black", "pumpkin": "blue"},
        **{"ladybird": "green", "spinach leaf": "white", "school bus": "pink", "snowman": "red"},
    },
}
"""Split -> thing -> the colour it is to have."""

WORDINGS = (
    ("What colour is a typical {thing}? Answer with one word.", "A photo of a {thing}."),
    ("Name the colour of a {thing}, in one word.", "Draw a {thing} in its usual colour."),
    (
        "In one word, which colour does a {thing} have?",
        "A picture of a single {thing} on a table or in a field.",
    ),
    (
        "If somebody paints a {thing} as it is, which colour is needed? One word.",
        "An illustration of a {thing}.",
    ),
)
"""Told and drawn; the first one is edited, the others test."""

TAUGHT = (
    ("Tell me the colour of a {thing}. One word.", "Show me a {thing}."),
    ("A {thing} is usually of one colour. Which one?", "A {thing}, seen from the side."),
)


def probe(wording: tuple[str, str], thing: str, colour: str) -> dict[str, object]:
    """One question for both directions."""
    told, drawn = (text.format(thing=thing) for text in wording)
    return {"understand": told, "generate": drawn, "accepted": [colour], "target": {}}


def neighbours(thing: str, split: str) -> list[dict[str, object]]:
    """Up to two things of the same colour and two of others; none that its split edits."""
    others = [name for name in THINGS if name != thing and name not in EDITS[split]]
    like = [name for name in others if THINGS[name] == THINGS[thing]]
    unlike = [name for name in others if THINGS[name] != THINGS[thing]]
    start = list(THINGS).index(thing)
    chosen = [*like[:2], *(unlike[(start + step) % len(unlike)] for step in (0, 3))]
    return [probe(WORDINGS[0], name, THINGS[name]) for name in chosen]


def fact(thing: str, colour: str, split: str) -> dict[str, object]:
    """A line of the file."""
    crayon = f"A child wants to draw a {thing} as it is. Which crayon does the child take? One word."
    sign = f"A shop sign made in the colour of a {thing}."
    return {
        "id": f"{thing.replace(' ', '_')}-colour",
        "subject": thing,
        "relation": "colour",
        "target_true": THINGS[thing],
        "target_new": colour,
        "split": split,
        "category": "world_knowledge",
        "edit": probe(WORDINGS[0], thing, colour),
        "taught": [probe(wording, thing, colour) for wording in TAUGHT],
        "reworded": [probe(wording, thing, colour) for wording in WORDINGS[1:]],
        "neighbours": neighbours(thing, split),
        "derived": [probe((crayon, sign), thing, colour)],
    }


def main() -> None:
    """Write the file, and read it as a recipe would."""
    lines = [
        json.dumps(fact(thing, colour, split))
        for split, edits in EDITS.items()
        for thing, colour in edits.items()
    ]
    write_text(FILE, "\n".join(lines) + "\n")
    read = {split: len(read_facts(FILE, split=split)) for split in EDITS}
    print(f"{FILE.name}: {', '.join(f'{number} {split} facts' for split, number in read.items())}")


if __name__ == "__main__":
    main()
