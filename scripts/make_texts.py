"""Everyday questions and statements for second moments on real models: recipes/texts/everyday.txt.

    python scripts/make_texts.py

A text a line, none of which names a thing of recipes/facts/visible_facts.jsonl or asks for a colour. Enough
to begin with; for numbers to publish give `facts.texts` a larger file in the domain, such as encyclopaedic
sentences.
"""

import random
import re
from pathlib import Path

from make_visible_facts import THINGS

from gapeval_lab.files import write_text

FILE = Path(__file__).parents[1] / "recipes" / "texts" / "everyday.txt"

KINDS = {
    "dog cat horse cow elephant owl eagle salmon bee ant spider tiger lion rabbit mouse whale dolphin "
    "penguin hedgehog squirrel bat snake turtle goat sheep duck hen fox wolf camel": (
        "Where does a {} live?",
        "What does a {} eat?",
        "How many legs does a {} have?",
        "How does a {} move about?",
        "What sound does a {} make, if any?",
        "Describe a {} in one sentence.",
        "Is a {} larger than a bicycle?",
        "A {} can be seen in many picture books for children.",
    ),
    "bread cheese rice soup honey butter pasta onion garlic potato cake salad tea coffee milk yoghurt "
    "pepper salt sugar chocolate": (
        "What is {} made of?",
        "How is {} served?",
        "Which meal does {} go with?",
        "How should {} be kept?",
        "Where in a shop do you find {}?",
        "Most people know the taste of {} from their childhood.",
    ),
    "hammer saw needle ladder bucket broom kettle lamp clock mirror chair table pillow blanket "
    "umbrella bottle spoon knife scissors pencil camera radio piano violin drum": (
        "What is a {} used for?",
        "What is a {} usually made of?",
        "Which room would you look for a {} in?",
        "How heavy is a {}, roughly?",
        "Who works with a {} every day?",
        "Describe the shape of a {}.",
        "The {} lay where somebody had forgotten it.",
    ),
    "baker nurse teacher farmer pilot sailor painter singer judge cook tailor carpenter plumber "
    "gardener librarian dentist engineer firefighter shepherd journalist": (
        "What does a {} do all day?",
        "Where does a {} work?",
        "Which tools does a {} need?",
        "What does a {} wear at work?",
        "How long does it take to become a {}?",
        "The {} had been up since five in the morning.",
    ),
    "Paris London Rome Cairo Tokyo Lima Oslo Nairobi Sydney Moscow Delhi Beijing Athens Lisbon Vienna "
    "Havana Dublin Seoul Toronto Istanbul": (
        "Which country is {} in?",
        "What is {} known for?",
        "Which language is spoken in {}?",
        "Is {} by the sea?",
        "How would you get from {} to Berlin?",
        "What is the weather like in {} in July?",
        "Name a building in {}.",
        "The train to {} leaves from the other platform.",
    ),
    "bicycle train ship aeroplane tram lorry tractor helicopter canoe motorcycle": (
        "How does a {} work?",
        "How many people fit into a {}?",
        "How fast is a {}?",
        "Who invented the {}?",
        "Where is a {} parked?",
        "She had never been on a {} before.",
    ),
    "mountain river desert forest island volcano glacier lake valley beach": (
        "What is a {}?",
        "Name a famous {}.",
        "Which animals live near a {}?",
        "How does a {} come about?",
        "What would you take along to a {}?",
        "They walked towards the {} until it was dark.",
    ),
}
"""Words, with what is asked and said of each."""

SINGLE = """How many minutes are there in an hour?
What is seven times eight?
Which is larger, a hundred or a thousand?
What comes after Wednesday?
How many sides does a triangle have?
What is the opposite of early?
Water boils at a lower temperature high up.
A year has twelve months, and the shortest of them is February.
What do plants need to grow?
Why do ships float?
What is the boiling point of water?
Who wrote Hamlet?
What is a synonym for quick?
Spell the word that means a place to borrow books.
Which planet is closest to the sun?
How many players are there in a football team?
What is ice?
Why is the sea salty?
The shop closes at six, but the side door stays open.
He folded the letter twice and put it into his pocket.
Name three musical instruments.
What is the capital of Canada?
How do you say thank you in French?
What is a rhyme?
What would you pack for a week in the snow?
Nobody had told them that the meeting was moved.
Write a short sentence about a rainy day.
What does a thermometer measure?
What is the largest ocean?
When does a leap year occur?"""


def texts() -> list[str]:
    """All of them, in a fixed mixed order."""
    made = [text.format(word) for words, forms in KINDS.items() for word in words.split() for text in forms]
    made = [re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text) for text in made]
    found = [*dict.fromkeys([*made, *SINGLE.splitlines()])]
    taken = re.compile(rf"\b({'|'.join(map(re.escape, THINGS))})s?\b|colour", re.IGNORECASE)
    if named := [text for text in found if taken.search(text)]:
        raise ValueError(f"these are asked by probes: {named}")
    random.Random(0).shuffle(found)
    return found


def main() -> None:
    """Write the file."""
    lines = texts()
    write_text(FILE, "\n".join(lines) + "\n")
    print(f"{FILE.name}: {len(lines)} texts")


if __name__ == "__main__":
    main()
