"""The state of a training on disk, so that a killed one goes on and ends with the same bits."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import nn

from gapeval_lab.files import write_bytes
from gapeval_lab.interfaces import CHECKPOINT, Training
from gapeval_lab.items import image_digest


def training_key(
    settings: BaseModel, training: Training, seed: int, parameters: Mapping[str, nn.Parameter]
) -> str:
    """Hash of what a training depends on, but for the weights, which the run's own folder stands for."""
    told = []
    for one in (*training.lessons, *training.replay):
        answer = one.example.answer
        shown = answer if isinstance(answer, str) else image_digest(answer)
        told.append((one.about, one.direction, one.example.prompt.digest, shown))
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    text = json.dumps([settings.model_dump(mode="json"), seed, told, list(training.anchors), shapes])
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint:
    """The state of a training on disk: written whole or not at all, taken up only by the same training."""

    def __init__(
        self,
        folder: Path | None,
        every: int,
        parameters: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        *,
        key: str,
    ) -> None:
        self._file = folder / CHECKPOINT if folder else None
        self._every = every
        self._parameters, self._optimiser, self._key = parameters, optimiser, key
        self.done = 0

    def load(self) -> list[tuple[str, float, int]]:
        """Put parameters and optimiser where they were; returns the curves so far."""
        if self._file is None or not self._file.exists():
            return []
        state = torch.load(self._file, weights_only=True)
        if state["key"] != self._key:
            return []
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state["parameters"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        return [(name, value, step) for name, value, step in state["curves"]]

    def save(self, done: int, curves: Sequence[tuple[str, float, int]], *, last: bool) -> None:
        """Write the state, every so many updates and after the last one."""
        if self._file is None or (done % self._every and not last):
            return
        state = {
            "key": self._key,
            "done": done,
            "parameters": {name: p.detach().cpu() for name, p in self._parameters.items()},
            "optimiser": self._optimiser.state_dict(),
            "curves": [list(point) for point in curves],
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        write_bytes(self._file, stream.getvalue())
