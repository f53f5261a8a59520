"""What the embedded UMM is shown: tinyworld's questions as sequences of tokens, from a seed and a step alone.

Knows the world and the tokenizer; knows nothing of models and of training. The benchmark's questions
never occur in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld_tasks import (
    AUXILIARY,
    OPERATIONS,
    Operation,
    Question,
    ask,
    draw_target,
)
from gapeval_lab.items import Direction
from gapeval_lab.models.emu3_layout import Layout
from gapeval_lab.models.tiny import BOI, EOI, IMAGE
from gapeval_lab.scene import EVERY_THING, PATCH, SIZE, Scene, every_patch, pixels, scatter

AUXILIARY_SHARE = 0.2  # of the sequences with a picture: telling or copying all of it
BACKGROUND_WEIGHT = 0.3  # of a background token in the drawing loss; most tokens are background
CHANGED_WEIGHT = 2.0  # of a token that an edit changes; most are copied
# How often a kind of picture question comes up, against 1: what is slow to learn comes up more.
TOLD_SHARES = {"count": 3, "draw": 3, "match": 3, "move": 2, "same_shape": 2}
TOLD_SHARES |= {"sequence_two": 2, "sequence_three": 2, "sort_up": 2, "sort_down": 2}
DRAWN_SHARES = {"move": 3, "remove": 2, "recolour": 2, "match": 3, "match_double": 2}
# Taught in the late stage alone: (operation, direction).
LATE = {("match_double", "text"), ("plus_plus", "image")}
LATE_TOLD_SHARES = {"count": 4, "draw": 4, "match": 4, "match_double": 4}
GENERATED = -1  # stands in an id sequence where a drawn token goes
IGNORE = -100


def vocabulary() -> list[str]:
    """Every word of tinyworld, name pieces split, in a fixed order."""
    rng = np.random.default_rng(0)
    asked = [ask(operation, rng) for operation in (*OPERATIONS, AUXILIARY) for _ in range(400)]
    asked += [
        people.question(entity, relation, wording)
        for entity in people.entities().values()
        for relation in people.RELATIONS
        for wording in range(8)
    ]
    words = {
        word
        for question in asked
        for text in (question.understand, question.generate, *question.answers)
        for word in text.split()
    }
    plain = sorted(words - set(people.entities()))
    return [*plain, *people.FIRST, *(f"##{last}" for last in people.LAST)]


def cut(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture cut into patches of `side` x `side` pixels, in reading order."""
    grid = len(picture) // side
    return picture.reshape(grid, side, grid, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


class Codes:
    """Which code each patch of the world has; patches are of PATCH pixels or a part of it."""

    def __init__(self, side: int = PATCH) -> None:
        self.side, self.grid = side, SIZE // side
        found = dict.fromkeys(part.tobytes() for patch in every_patch() for part in cut(patch, side))
        self.table = {patch: code for code, patch in enumerate(found)}

    def of(self, scene: Scene) -> list[int]:
        """The scene's codes in reading order; 36 of them for patches of 8 pixels."""
        return [self.table[patch.tobytes()] for patch in cut(pixels(scene), self.side)]


def to_pixels(scenes: list[Scene]) -> Tensor:
    """(batch, 3, 48, 48) in [-1, 1], as the processor makes them."""
    stacked = np.stack([pixels(scene) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene from empty to full, full ones most often: they show most patches."""
    number = int(rng.choice([0, 1, 3, 5, 7, 9, 9, 9]))
    return scatter([EVERY_THING[i] for i in rng.integers(0, len(EVERY_THING), number)], rng)


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right, with what is to be predicted.

    ids: (batch, length), GENERATED where a drawn token stands that is none of the text's tokens; words,
    drawn: (batch, length) targets of the text head and of the picture head at each position, IGNORE
    elsewhere; weights: (batch, length) what each target counts in the loss. Codes and images are there
    where a model takes drawn and seen pictures otherwise than as tokens.
    """

    ids: Tensor
    words: Tensor
    drawn: Tensor
    weights: Tensor
    codes: Tensor | None
    images: Tensor | None

    @property
    def draws(self) -> bool:
        """Whether its targets are codes."""
        return bool((self.drawn != IGNORE).any())


@dataclass(frozen=True)
class Mixture:
    """How many sequences of each kind a step holds."""

    text: int
    seen: int
    drawn: int
    edited: int


class Rows(Protocol):
    """How a family of models is asked: questions as batches."""

    codes: Codes

    def text(self, questions: list[Question], picture: bool) -> Batch:
        """Question -> answer in words."""
        ...

    def drawing(self, questions: list[Question], picture: bool, dropped: np.ndarray) -> Batch:
        """Question -> drawing, or picture and question -> edited picture.

        Some rows lose their condition, picture included: the unconditional branch of guidance.
        """
        ...


class Data:
    """Training sequences of tinyworld, from (seed, step) alone. The benchmark's questions never occur."""

    def __init__(self, rows: Rows, seed: int, drop: float, *, late: bool = False) -> None:
        self.rows = rows
        self.late = late
        self.seed = seed
        self.drop = drop
        known = list(people.trained_questions())
        self.told = [q for q in known if q.taught in ("both", "text")]
        self.shown = [q for q in known if q.taught in ("both", "image")]

    def operations(self, direction: str, picture: bool) -> list[Operation]:
        """Operations taught in a direction, with or without an input picture on that side."""
        plain = {"plus", "plus_plus", "minus"} | ({"draw"} if direction == "image" else set())
        return [
            operation
            for operation in OPERATIONS
            if operation.taught in ("both", direction)
            and (operation.name not in plain) == picture
            and (self.late or (operation.name, direction) not in LATE)
        ]

    def sample(self, direction: str, picture: bool, rng: np.random.Generator) -> Question:
        """A question for training, never one of the benchmark's."""
        options = self.operations(direction, picture)
        told = LATE_TOLD_SHARES if self.late else TOLD_SHARES
        named = told if direction == "text" else DRAWN_SHARES
        shares = np.array([named.get(operation.name, 1) if picture else 1 for operation in options])
        operation = options[int(rng.choice(len(options), p=shares / shares.sum()))]
        if picture and rng.random() < AUXILIARY_SHARE:
            operation = AUXILIARY
        while True:
            question = ask(operation, rng)
            if not question.held_out:
                return question

    def step(self, step: int, mixture: Mixture) -> Iterator[tuple[str, Batch]]:
        """The batches of one step."""
        rng = np.random.default_rng([self.seed, 4 if self.late else 2, step])
        choose = lambda pool: pool[int(rng.integers(len(pool)))]  # noqa: E731
        known = mixture.text * 3 // 4
        told = [choose(self.told) for _ in range(known)]
        told += [self.sample("text", False, rng) for _ in range(mixture.text - known)]
        yield "text", self.rows.text(told, False)
        yield "seen", self.rows.text([self.sample("text", True, rng) for _ in range(mixture.seen)], True)
        known = mixture.drawn // 2
        shown = [choose(self.shown) for _ in range(known)]
        shown += [self.sample("image", False, rng) for _ in range(mixture.drawn - known)]
        yield "drawn", self.drawing(shown, False, rng)
        edits = [self.sample("image", True, rng) for _ in range(mixture.edited)]
        yield "edited", self.drawing(edits, True, rng)

    def drawing(self, questions: list[Question], picture: bool, rng: np.random.Generator) -> Batch:
        """Drawings, a share of them without their condition."""
        return self.rows.drawing(questions, picture, rng.random(len(questions)) < self.drop)


class JanusRows:
    """Sequences of a Janus: pictures are seen as pixels, and drawn in codes beside the text's tokens."""

    def __init__(self, processor: Any, codes: Codes) -> None:
        self.tokenizer, self.template, self.codes = processor.tokenizer, processor, codes
        one = self.tokenizer.convert_tokens_to_ids
        self.image_ids = [one(BOI), *[one(IMAGE)] * processor.num_image_tokens, one(EOI)]
        self.boi, self.image_id = one(BOI), one(IMAGE)
        self.pad, self.bos, self.eos = (
            self.tokenizer.pad_token_id,
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
        )

    def prompt(self, text: str, picture: bool, *, draws: bool) -> list[int]:
        """The ids of one prompt, exactly as the adapter asks."""
        content = ([{"type": "image"}] if picture else []) + [{"type": "text", "text": text}]
        rendered = self.template.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        ids: list[int] = []
        for token in self.tokenizer(rendered)["input_ids"]:
            ids.extend(self.image_ids if token == self.image_id else [token])
        return [*ids, self.boi] if draws else ids

    def text(self, questions: list[Question], picture: bool) -> Batch:
        """Question -> answer in words."""
        rows = [
            (
                self.prompt(q.understand, picture, draws=False),
                [*self.tokenizer(q.answers[0], add_special_tokens=False)["input_ids"], self.eos],
            )
            for q in questions
        ]
        images = to_pixels([_need(q.shown) for q in questions]) if picture else None
        return replace(_told(rows, pad=self.pad), images=images)

    def drawing(self, questions: list[Question], picture: bool, dropped: np.ndarray) -> Batch:
        """Question -> drawing, or picture and question -> edited picture."""
        prompts = [self.prompt(q.generate, picture, draws=True) for q in questions]
        codes = torch.tensor([self.codes.of(draw_target(q.target)) for q in questions])
        count = codes.shape[1]
        heavy = _heavy(self.codes, codes, questions, picture)
        length = max(len(p) for p in prompts) + count - 1
        ids = torch.full((len(prompts), length), self.pad)
        drawn = torch.full((len(prompts), length), IGNORE)
        weights = torch.zeros(len(prompts), length)
        shown = [_need(q.edited) for q, lost in zip(questions, dropped, strict=True) if picture and not lost]
        images = to_pixels(shown) if shown else None
        for i, p in enumerate(prompts):
            if dropped[i]:
                p = [token if token in (self.bos, self.boi) else self.pad for token in p]
            ids[i, : len(p)] = torch.tensor(p)
            ids[i, len(p) : len(p) + count - 1] = GENERATED
            drawn[i, len(p) - 1 : len(p) + count - 1] = codes[i]
            weights[i, len(p) - 1 : len(p) + count - 1] = heavy[i]
        return Batch(ids, torch.full_like(ids, IGNORE), drawn, weights, codes[:, :-1], images)


class Emu3Rows:
    """Sequences of an Emu3: one space of tokens, for pictures too, as its adapter lays them out."""

    def __init__(self, layout: Layout, tokenizer: Any, codes: Codes) -> None:
        self.layout, self.tokenizer, self.codes = layout, tokenizer, codes

    def _grids(self, scenes: list[Scene]) -> Tensor:
        """(scenes, h, w) codes."""
        codes = torch.tensor([self.codes.of(scene) for scene in scenes])
        return codes.view(-1, self.codes.grid, self.codes.grid)

    def text(self, questions: list[Question], picture: bool) -> Batch:
        """Question -> answer in words."""
        shown = [[self._grids([_need(q.shown)])[0]] if picture else [] for q in questions]
        asked = self.layout.place([q.understand for q in questions], shown, Direction.UNDERSTANDING)
        rows = [
            (
                one.ids,
                [
                    *self.tokenizer(q.answers[0], add_special_tokens=False)["input_ids"],
                    self.tokenizer.eos_token_id,
                ],
            )
            for one, q in zip(asked, questions, strict=True)
        ]
        return _told(rows, pad=self.layout.pad_id)

    def drawing(self, questions: list[Question], picture: bool, dropped: np.ndarray) -> Batch:
        """Question -> drawing, or picture and question -> edited picture."""
        shown = [
            [self._grids([_need(q.edited)])[0]] if picture and not lost else []
            for q, lost in zip(questions, dropped, strict=True)
        ]
        texts = ["" if lost else q.generate for q, lost in zip(questions, dropped, strict=True)]
        prompts = [one.ids for one in self.layout.place(texts, shown, Direction.GENERATION)]
        grids = self._grids([draw_target(q.target) for q in questions])
        heavy = _heavy(self.codes, grids.flatten(1), questions, picture).view_as(grids)
        # Neither the last code nor the end of line after it is read; ends of lines are no targets.
        tokens = self.layout.rows(grids)[:, :-2]
        targets = functional.pad(grids, (0, 1), value=IGNORE).flatten(1)[:, :-1]
        counted = functional.pad(heavy, (0, 1)).flatten(1)[:, :-1]
        count = targets.shape[1]
        length = max(len(p) for p in prompts) + count - 1
        ids = torch.full((len(prompts), length), self.layout.pad_id)
        drawn = torch.full((len(prompts), length), IGNORE)
        weights = torch.zeros(len(prompts), length)
        for i, p in enumerate(prompts):
            ids[i, : len(p) + count - 1] = torch.cat([torch.tensor(p), tokens[i]])
            drawn[i, len(p) - 1 : len(p) + count - 1] = targets[i]
            weights[i, len(p) - 1 : len(p) + count - 1] = counted[i]
        return Batch(ids, torch.full_like(ids, IGNORE), drawn, weights, None, None)


def _told(rows: list[tuple[list[int], list[int]]], *, pad: int) -> Batch:
    """Prompts with answers in words, the eos last."""
    length = max(len(p) + len(a) for p, a in rows) - 1
    ids = torch.full((len(rows), length), pad)
    words = torch.full((len(rows), length), IGNORE)
    weights = torch.zeros(len(rows), length)
    for i, (p, a) in enumerate(rows):
        ids[i, : len(p) + len(a) - 1] = torch.tensor([*p, *a][:-1])
        words[i, len(p) - 1 : len(p) + len(a) - 1] = torch.tensor(a)
        # Else the long answers, which list everything, drown the short ones, which count.
        weights[i, len(p) - 1 : len(p) + len(a) - 1] = len(a) ** -0.5
    return Batch(ids, words, torch.full_like(ids, IGNORE), weights, None, None)


def _heavy(world: Codes, codes: Tensor, questions: list[Question], picture: bool) -> Tensor:
    """What each code of the drawings counts in the loss, (batch, codes)."""
    heavy = torch.where(codes == 0, BACKGROUND_WEIGHT, 1.0)  # code 0 is the background
    if picture:
        before = torch.tensor([world.of(_need(q.edited)) for q in questions])
        heavy[codes != before] = CHANGED_WEIGHT
    return heavy


def _need(scene: Scene | None) -> Scene:
    if scene is None:
        raise ValueError("a question of this kind needs a picture")
    return scene
