"""A delta that was computed before, given in place of a new one.

Measures what a stored, composed or scaled delta does, with everything that runs beside any other
intervention. Reads one file, whose content is part of what makes a run; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab.delta import WeightDelta, fingerprint
from gapeval_lab.delta_file import read_head, require_weights
from gapeval_lab.interfaces import UMM, Log, Side, Training
from gapeval_lab.interventions.trace import left_as_found
from gapeval_lab.items import Direction, Example, Fact


class Saved(BaseModel):
    """Which delta, and how much of it.

    Attributes:
        delta: its file.
        scale: what it is multiplied by; negative takes it away.
        direction: the side that it was taught through: the transfer ratio looks from there to the other.
        any_weights: also take a model with other weights than the delta was made for, if the names and
            shapes fit (another dtype is other weights).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Literal["edit"]] = "edit"

    delta: str = Field(min_length=1)
    scale: float = Field(default=1.0, allow_inf_nan=False)
    direction: Side = "both"
    any_weights: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.delta).expanduser()

    def content_hash(self) -> str:
        """The address of the stored delta."""
        return read_head(self.path).address

    def check(self, umm: UMM) -> None:
        """Refuse a file that is no delta, and a model that it was not made for or does not fit."""
        root = umm.backbone().root
        WeightDelta.load(self.path).check(root)
        if not self.any_weights:
            fix = "set intervention.any_weights=true"
            require_weights(read_head(self.path), fingerprint(root), path=self.path, fix=fix)

    def fit(
        self,
        umm: UMM,
        facts: Sequence[Fact],
        *,
        seed: int,
        texts: Sequence[str],
        log: Log,
        cache: Path | None = None,
        training: Training | None = None,
    ) -> WeightDelta:
        """The stored delta, scaled; see `Intervention.fit`.

        Logs what the facts' targets cost in text, as `loss/<fact id>` and `train/loss` (their mean):
        step 0 without the delta, step 1 with it. A model that does not answer has no such curve.

        Raises:
            UserError: the file cannot be read, or does not fit this model.
        """
        delta, root = WeightDelta.load(self.path).scaled(self.scale), umm.backbone().root
        examples = {fact.id: Example(fact.edit.understand, fact.edit.reference_text) for fact in facts}
        if Direction.UNDERSTANDING in umm.directions and examples:
            with left_as_found(root):
                for step, state in enumerate((WeightDelta.zero(), delta)):
                    with torch.no_grad(), state.applied(root):
                        losses = umm.loss(list(examples.values()), Direction.UNDERSTANDING)
                    for name, loss in zip(examples, losses.tolist(), strict=True):
                        log(f"loss/{name}", loss, step)
                    log("train/loss", float(losses.mean()), step)
        return delta
