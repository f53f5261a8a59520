"""Training a few parameters of a UMM on lessons: batches, loss, schedule, checkpoints.

Knows which parameters to change and nothing of what they are: LoRA and fine-tuning hand them over.
Every update depends on (seed, number of the update) and the parameters alone, so a training that was
killed goes on from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Encoded, Lesson, Log, Training
from gapeval_lab.interventions.checkpoints import Checkpoint, training_key
from gapeval_lab.items import Direction, Example

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION
MIXED = re.compile(r"mixed\((0\.\d+)\)")


def _side(direction: str) -> str:
    if direction not in ("text", "image", "both") and not MIXED.fullmatch(direction):
        raise ValueError(f"should be text, image, both, or a mixture such as mixed(0.25); got '{direction}'")
    return direction


TaughtSide = Annotated[str, AfterValidator(_side)]
"""The side of the lessons; `mixed(0.25)` has a quarter of them in text."""


class TrainingSettings(BaseModel):
    """What every method that trains can be told. Fields only.

    Attributes:
        direction: which lessons are given: `text`, `image`, `both` (half of each), or `mixed(share)`
            with the share of text lessons.
        steps: updates.
        batch: lessons per update.
        accumulate: parts that a batch is computed in; saves memory, changes nothing but rounding.
        lr: the highest learning rate.
        optimiser, weight_decay, schedule, warmup: as torch and the field name them; warmup in updates.
        clip: largest norm of the gradient; None does not clip.
        replay: replayed lessons per lesson, added to each batch, with the same share of text.
        kl_factor: weight of the divergence of the answers' first token from the original model's, on
            questions of the domain that name nobody whom a probe asks about.
        kl_texts: how many such questions are used; each update takes `batch` of them.
        bf16: compute losses under bfloat16 autocast. Weights and updates stay as they are.
        gradient_checkpointing: recompute activations instead of keeping them.
        checkpoint_every: updates between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Literal["inject"]] = "inject"

    direction: TaughtSide = "both"
    steps: int = Field(default=60, ge=1)
    batch: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)
    clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    replay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    kl_factor: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    kl_texts: int = Field(default=256, ge=1)
    bf16: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(default=25, ge=1)

    @property
    def needs_texts(self) -> bool:
        """The divergence is taken on texts of the domain."""
        return self.kl_factor > 0


Loss = Callable[[Sequence[Example], Direction], Tensor]
"""(batch,) losses in nats, differentiable, of examples of one direction."""


@dataclass(frozen=True)
class Pools:
    """Lessons to draw from, by direction, in an order of the seed's own."""

    lessons: Mapping[Direction, Sequence[Lesson]]
    replay: Mapping[Direction, Sequence[Lesson]]

    def batch(
        self, settings: TrainingSettings, update: int, *, seed: int
    ) -> list[tuple[Direction, list[Example]]]:
        """The examples of one update. Every lesson comes up once before any comes up again."""
        share = text_share(settings.direction)
        replayed = round(settings.replay * settings.batch)
        found: list[tuple[Direction, list[Example]]] = []
        for direction in (TEXT, IMAGE):
            mine = share if direction is TEXT else 1 - share
            chosen: list[Example] = []
            for name, pool, size in (
                ("lessons", self.lessons[direction], settings.batch),
                ("replay", self.replay[direction], replayed),
            ):
                # So many in all after each update; rounding never loses one side for good.
                start, stop = math.floor(update * size * mine), math.floor((update + 1) * size * mine)
                chosen += [
                    _at(pool, i, seed=seed, name=f"{name}/{direction}").example for i in range(start, stop)
                ]
            if chosen:
                found.append((direction, chosen))
        return found


def _at(pool: Sequence[Lesson], index: int, *, seed: int, name: str) -> Lesson:
    """The index-th lesson of an endless shuffled round through the pool."""
    epoch, place = divmod(index, len(pool))
    return pool[int(_order(len(pool), f"{seed}/{name}/{epoch}")[place])]


def _order(size: int, key: str) -> Any:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(size)


def text_share(direction: str) -> float:
    """Share of the lessons that are in text."""
    mixed = MIXED.fullmatch(direction)
    return float(mixed[1]) if mixed else {"text": 1.0, "image": 0.0, "both": 0.5}[direction]


def pools(settings: TrainingSettings, training: Training | None) -> Pools:
    """Lessons and replay by direction.

    Raises:
        UserError: a side that is to be taught has no lessons, or replay has none.
    """
    given = training or Training()
    found: dict[str, dict[Direction, list[Lesson]]] = {}
    for name, lessons in (("lessons", given.lessons), ("replay", given.replay)):
        found[name] = {d: [one for one in lessons if one.direction is d] for d in (TEXT, IMAGE)}
    share = text_share(settings.direction)
    for direction, wanted in ((TEXT, share), (IMAGE, 1 - share)):
        if wanted and not found["lessons"][direction]:
            raise UserError(
                f"direction: '{settings.direction}' needs lessons for {direction}, but the facts give none; "
                + ("give facts" if direction is TEXT else "add facts.pictures, a folder of pictures")
                + ", or choose the other direction"
            )
        if wanted and settings.replay and not found["replay"][direction]:
            raise UserError(
                f"replay: the benchmark has nothing for {direction} that no probe asks about; set it to 0"
            )
    return Pools(found["lessons"], found["replay"])


class Anchor:
    """The original model's first-token distribution on questions that are to stay as they are.

    Made before anything is trained. `divergence(update)` is KL(original || now), in nats, averaged
    over a batch of the questions.
    """

    def __init__(self, umm: UMM, texts: Sequence[str], *, settings: TrainingSettings, seed: int) -> None:
        if not texts:
            raise UserError("kl_factor: there are no questions that no probe asks about; set it to 0")
        order = _order(len(texts), f"{seed}/anchor")
        self._texts = [texts[i] for i in order[: settings.kl_texts]]
        self._backbone = umm.backbone()
        self._size = min(settings.batch, len(self._texts))
        self._original = []
        with torch.no_grad():
            for start in range(0, len(self._texts), self._size):
                self._original.append(self._distribution(self._texts[start : start + self._size]))

    def _distribution(self, texts: Sequence[str]) -> Tensor:
        encoded: Encoded = self._backbone.encode(texts, None)
        logits = self._backbone.logits(encoded)[:, -1].float()  # left-padded: the last is the answer's
        return logits.log_softmax(-1)

    def divergence(self, update: int) -> Tensor:
        """Mean KL over the questions of this update's turn: a scalar."""
        turn = update % len(self._original)
        original = self._original[turn]
        now = self._distribution(self._texts[turn * self._size : (turn + 1) * self._size])
        return (original.exp() * (original - now)).sum(-1).mean()


def train(
    umm: UMM,
    settings: TrainingSettings,
    parameters: Mapping[str, nn.Parameter],
    *,
    loss: Loss,
    seed: int,
    log: Log,
    training: Training | None,
    after_update: Callable[[], None] = lambda: None,
) -> None:
    """Train the parameters in place; everything else must be frozen already.

    Args:
        umm: the model that the parameters belong to.
        settings: see `TrainingSettings`.
        parameters: what is trained, by name.
        loss: of examples of one direction.
        seed: order of lessons, dropout.
        log: takes `train/loss` and, where there is one, `train/kl`, a point per update.
        training: lessons, replay, anchors, folder, watch.
        after_update: called after each update; may move the parameters (a projection).

    Raises:
        UserError: the loss is not finite any more, or a side has no lessons.
    """
    given, root = training or Training(), umm.backbone().root
    chosen = pools(settings, given)
    anchor = None
    if settings.kl_factor:
        anchor = Anchor(umm, given.anchors, settings=settings, seed=seed)
    optimiser = _optimiser(settings, list(parameters.values()))
    state = Checkpoint(
        given.folder,
        settings.checkpoint_every,
        parameters,
        optimiser,
        key=training_key(settings, given, seed, parameters),
    )
    curves = state.load()
    for point in curves:
        log(*point)
    start = state.done
    if given.watch and start == 0:
        given.watch(0)
    with _checkpointing(root, settings.gradient_checkpointing), torch.enable_grad():
        for update in range(start, settings.steps):
            root.train()
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{update}".encode()).digest()[:7], "big"))
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * rate(settings, update)
            optimiser.zero_grad(set_to_none=True)
            batch = chosen.batch(settings, update, seed=seed)
            points = _backward(settings, loss, batch, anchor, update, device=_device(root))
            value = sum(points.values())
            if not math.isfinite(value):
                raise UserError(
                    f"lr: the loss is {value} at update {update + 1} of {settings.steps} "
                    f"(lr: {settings.lr:g}); lower it, or add warmup. The model is as it was"
                )
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            optimiser.step()
            after_update()
            root.eval()
            for name, part in points.items():
                curves.append((f"train/{name}", part, update))
                log(*curves[-1])
            if given.watch:
                given.watch(update + 1)
            state.save(update + 1, curves, last=update + 1 == settings.steps)
    optimiser.zero_grad(set_to_none=True)
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            raise UserError(f"lr: {name} is not finite after training (lr: {settings.lr:g}); lower it")


def _backward(
    settings: TrainingSettings,
    loss: Loss,
    batch: Sequence[tuple[Direction, list[Example]]],
    anchor: Anchor | None,
    update: int,
    *,
    device: str,
) -> dict[str, float]:
    """Gradients of one update, part by part; returns the terms of the loss."""
    total = sum(len(examples) for _, examples in batch)
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=settings.bf16)
    points = {"loss": 0.0}
    for direction, examples in batch:
        size = math.ceil(len(examples) / settings.accumulate)
        for start in range(0, len(examples), size):
            with autocast:
                part = loss(examples[start : start + size], direction).sum() / total
            part.backward()  # type: ignore[no-untyped-call]
            points["loss"] += float(part.detach())
    if anchor is not None:
        with autocast:
            held = settings.kl_factor * anchor.divergence(update)
        held.backward()  # type: ignore[no-untyped-call]
        points["kl"] = float(held.detach())
    return points


def rate(settings: TrainingSettings, update: int) -> float:
    """The learning rate of an update (from 0) as a share of the highest one."""
    if update < settings.warmup:
        return (update + 1) / (settings.warmup + 1)
    along = (update - settings.warmup) / max(1, settings.steps - settings.warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - along
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * along))


def _optimiser(settings: TrainingSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    made: torch.optim.Optimizer = kinds[settings.optimiser](
        parameters, lr=settings.lr, weight_decay=settings.weight_decay
    )
    return made


def _device(root: nn.Module) -> str:
    return next(root.parameters()).device.type


@contextlib.contextmanager
def _checkpointing(root: nn.Module, wanted: bool) -> Iterator[None]:
    """Activation checkpointing inside, where the model knows how."""
    if not wanted:
        yield
        return
    # transformers is renaming these; both names do the same.
    names = [name for name in ("activation", "gradient") if hasattr(root, f"{name}_checkpointing_enable")]
    if not names:
        raise UserError("gradient_checkpointing: this model does not know it; set it to false")
    getattr(root, f"{names[0]}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(root, f"{names[0]}_checkpointing_disable")()
