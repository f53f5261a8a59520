"""What methods that edit by values have in common: their settings, their requests, and writing in batches.

Facts are written some at a time, each batch into the model that holds the earlier ones. What is
written lies in a checkpoint after every batch, so that a killed edit goes on and ends with the same
delta. Knows no method.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from gapeval_lab.delta import LowRank, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes
from gapeval_lab.interfaces import CHECKPOINT, UMM, Log, Training
from gapeval_lab.interventions.compat import Compat
from gapeval_lab.interventions.lookup import FactToken
from gapeval_lab.interventions.request import ValueRequest, value_request
from gapeval_lab.interventions.trace import linear_weight
from gapeval_lab.interventions.value_rows import KlOrder
from gapeval_lab.interventions.values import ValueSettings
from gapeval_lab.items import Direction, Example, Fact

LISTED = 3  # facts that a message about a batch names


class EditSettings(BaseModel):
    """Settings of every method that seeks values. Fields only.

    Attributes:
        site: name of the linear site to edit.
        fact_token: the token whose key and value are used.
        steps: updates of the value at most.
        lr: Adam's learning rate for the value.
        weight_decay: weight of |delta|^2 / |v_init|^2.
        kl_factor: weight of the divergence after the essence prompts; 0 leaves it out.
        kl_order: which distribution comes first in it; the papers have `edited_original`.
        essence: prompts that must go on as before, with `{subject}` in them. One that names a fact's
            relation is left out for that fact. The papers have one, "{subject} is a".
        clamp_norm_factor: longest delta, as a multiple of |v_init|.
        early_stop: loss at which the value is good enough; None runs all steps.
        text_factor: weight of the target's text.
        picture_factor: weight of the target's picture; 0 edits by text alone.
        drawings: how many of the fact's drawing prompts are used, its edit wording first.
        contexts: how many times the question is also asked behind another text.
        context_words: length of such a text, in words.
        moment_texts: questions behind the second moment, at most; where pictures are sought, also so many
            drawings.
        ridge: added to its diagonal, as a share of its mean. Guards against a singular matrix where
            there are fewer tokens than dimensions.
        max_relative_norm: an update whose Frobenius norm is more than so many times the weight's own
            is refused.
        compat: what to compute as EasyEdit does instead, see `Compat`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Literal["edit"]] = "edit"

    site: str = "mlp_down"
    fact_token: FactToken = "subject_last"
    steps: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1.5e-3, ge=0, allow_inf_nan=False)
    kl_factor: float = Field(default=0.0625, ge=0, allow_inf_nan=False)
    kl_order: KlOrder = "edited_original"
    essence: tuple[str, ...] = ("{subject} is",)
    clamp_norm_factor: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    early_stop: float | None = Field(default=0.05, gt=0, allow_inf_nan=False)
    text_factor: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    picture_factor: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drawings: int = Field(default=1, ge=1)
    contexts: int = Field(default=5, ge=0)
    context_words: int = Field(default=10, ge=1)
    moment_texts: int = Field(default=1000, ge=1)
    ridge: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    max_relative_norm: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    compat: Compat = Compat()

    @field_validator("essence")
    @classmethod
    def _names_the_subject(cls, essence: tuple[str, ...]) -> tuple[str, ...]:
        if not all("{subject}" in template for template in essence):
            raise ValueError("every one must hold {subject}")
        return essence

    @model_validator(mode="after")
    def _some_objective(self) -> Self:
        if not (self.text_factor or self.picture_factor):
            raise ValueError("text_factor: it and picture_factor are both 0; one of them must be more")
        return self

    @property
    def needs_texts(self) -> bool:
        """Second moments are taken over texts."""
        return True

    @property
    def direction(self) -> str:
        """The side that the values are sought for."""
        if not self.picture_factor:
            return "text"
        return "both" if self.text_factor else "image"


def value_settings(settings: EditSettings) -> ValueSettings:
    """The part of the settings that the values' optimisation takes."""
    return ValueSettings(**{one.name: getattr(settings, one.name) for one in fields(ValueSettings)})


def requests_of(
    settings: EditSettings,
    facts: Sequence[Fact],
    *,
    texts: Sequence[str],
    seed: int,
    training: Training | None,
    shared: bool = False,
) -> list[ValueRequest]:
    """What a value is sought for, per fact; `shared`: all are asked behind the first one's contexts."""
    if shared:
        texts = [text for text in texts if not any(fact.subject in text for fact in facts)]
    found = [
        value_request(
            fact,
            texts,
            seed=seed,
            contexts=settings.contexts,
            context_words=settings.context_words,
            essence=settings.essence,
            lessons=training.lessons if training else (),
            drawings=settings.drawings,
        )
        for fact in facts
    ]
    if not shared:
        return found
    bare = found[0].contexts[0]
    starts = [context.removesuffix(bare) for context in found[0].contexts]
    return [replace(one, contexts=tuple(start + one.contexts[0] for start in starts)) for one in found]


def drawn_examples(settings: EditSettings, training: Training | None) -> list[Example]:
    """Drawings of what the model knows, for second moments; none where no picture is sought."""
    known = training.replay if training and settings.picture_factor else ()
    return [lesson.example for lesson in known if lesson.direction is Direction.GENERATION]


def require_drawing(settings: EditSettings, umm: UMM) -> None:
    """Refuse a model that draws nothing where pictures are sought."""
    if settings.picture_factor and umm.backbone().encode_drawings is None:
        raise UserError(f"picture_factor: the trunk of {umm.name} draws nothing; set it to 0")


def update(
    root: nn.Module,
    path: str,
    left: Tensor,
    right: Tensor,
    *,
    transposed: bool,
    facts: Sequence[str],
    most: float,
) -> WeightDelta:
    """W' = W + left right^T at a module, as a delta.

    Args:
        root: of the model.
        path: a linear module.
        left: (out, n).
        right: (in, n).
        transposed: whether the model stores (in, out).
        facts: ids, for messages.
        most: the largest norm as a multiple of the weight's.

    Raises:
        UserError: the update is not finite, or larger than that.
    """
    weight = linear_weight(root, path).detach()
    # |left right^T|_F through the small Gram matrices.
    size = float(((left.T @ left) * (right.T @ right)).sum().clamp_min(0).sqrt())
    relative = size / float(weight.double().norm())
    if not relative <= most:  # also true of NaN
        what = f"{_named(facts)}: {'its' if len(facts) == 1 else 'their'} update"
        raise UserError(
            f"facts: {what} is {relative:.3g} times as large as the weight {path} "
            f"(max_relative_norm: {most}); raise ridge, or lower lr or clamp_norm_factor"
        )
    up, down = (right, left) if transposed else (left, right)
    return WeightDelta({f"{path}.weight": LowRank(up.float(), down.T.contiguous().float())})


@dataclass(frozen=True)
class Written:
    """One batch: what it adds to the model as it was, and each fact's losses."""

    delta: WeightDelta
    losses: Sequence[tuple[float, ...]]


Memory = dict[str, Tensor]
"""What a method remembers from batch to batch."""


@dataclass
class _Progress:
    """What is written so far."""

    delta: WeightDelta = field(default_factory=WeightDelta.zero)
    done: int = 0
    losses: list[tuple[float, ...]] = field(default_factory=list)
    memory: Memory = field(default_factory=dict)


def write(
    umm: UMM,
    facts: Sequence[Fact],
    *,
    settings: BaseModel,
    size: int,
    seed: int,
    log: Log,
    training: Training | None,
    fit: Callable[[Sequence[Fact], Memory], Written],
) -> WeightDelta:
    """Write all facts, `size` at a time. Call inside `left_as_found`.

    Logs each value's loss as `loss/<fact id>` (step 0 is before the first update), and all of them in a
    row as `train/loss`. `training.watch` hears of the number of facts written.

    Args:
        umm: the model.
        facts: what to write, in order.
        settings: of the method; with the seed and the facts they tell whose checkpoint one is.
        size: facts per batch.
        seed: of the method.
        log: takes the curves.
        training: folder and watch.
        fit: computes a batch on the model as it is then, and may keep something for the next.
    """
    given, root = training or Training(), umm.backbone().root
    file = given.folder / CHECKPOINT if given.folder else None
    key = _key(settings, facts, seed)
    state = _load(file, key)
    step = 0
    for fact, losses in zip(facts, state.losses, strict=False):
        step = _log_losses(log, fact, losses, step)
    if given.watch and not state.done:
        given.watch(0)
    while state.done < len(facts):
        chunk = facts[state.done : state.done + size]
        # Fitted on exactly what the composed delta will make of the weights, rounding included.
        with state.delta.applied(root):
            written = fit(chunk, state.memory)
        state.delta = state.delta.then(written.delta)
        _require_fit(state.delta, root, chunk)
        state.done += len(chunk)
        state.losses += written.losses
        for fact, losses in zip(chunk, written.losses, strict=True):
            step = _log_losses(log, fact, losses, step)
        if given.watch:
            with state.delta.applied(root):
                given.watch(state.done)
        if file is not None and state.done < len(facts):
            _save(file, key, state)
    return state.delta


def _require_fit(delta: WeightDelta, root: nn.Module, facts: Sequence[Fact]) -> None:
    """Name the facts whose change the weights cannot take: one that overflows a 16-bit type, say."""
    try:
        with delta.applied(root):
            pass
    except UserError as error:
        raise UserError(f"facts: {_named([fact.id for fact in facts])}: {error}") from None


def _named(facts: Sequence[str]) -> str:
    """`fact 'a'`, or `facts 'a', 'b', 'c', ...`."""
    listed = ", ".join(f"'{name}'" for name in facts[:LISTED]) + (", ..." if len(facts) > LISTED else "")
    return f"fact{'s' if len(facts) > 1 else ''} {listed}"


def _log_losses(log: Log, fact: Fact, losses: Sequence[float], step: int) -> int:
    for number, loss in enumerate(losses):
        log(f"loss/{fact.id}", loss, number)
        log("train/loss", loss, step)
        step += 1
    return step


def _key(settings: BaseModel, facts: Sequence[Fact], seed: int) -> str:
    """Hash of what an edit depends on, but for the weights, which the run's own folder stands for."""
    told = [(fact.id, fact.subject, fact.target_new, fact.edit.digest) for fact in facts]
    text = json.dumps([type(settings).__name__, settings.model_dump(mode="json"), seed, told])
    return hashlib.sha256(text.encode()).hexdigest()


def _load(file: Path | None, key: str) -> _Progress:
    if file is None or not file.exists():
        return _Progress()
    kept: dict[str, Any] = torch.load(file, weights_only=True)
    if kept["key"] != key:
        return _Progress()
    terms = {name: LowRank(*parts) for name, parts in kept["terms"].items()}
    losses = [tuple(values) for values in kept["losses"]]
    return _Progress(WeightDelta(terms), kept["done"], losses, kept["memory"])


def _save(file: Path, key: str, state: _Progress) -> None:
    stream = io.BytesIO()
    kept = {
        "key": key,
        "terms": {name: [*term.parts.values()] for name, term in state.delta.terms.items()},
        "done": state.done,
        "losses": [list(values) for values in state.losses],
        "memory": state.memory,
    }
    torch.save(kept, stream)
    write_bytes(file, stream.getvalue())
