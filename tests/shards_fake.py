"""A model that workers can load, and can be told to be slow, to die or to differ; as a module for spawn."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from gapeval_lab.items import Item, Prompt
from gapeval_lab.testing import ScriptedUMM


def items(number: int) -> list[Item]:
    return [
        Item(f"i-{i}", "c", f"s{i % 3}", Prompt(f"tell {i}"), Prompt(f"draw {i}"), (f"{i}",))
        for i in range(number)
    ]


class Fake(ScriptedUMM):
    """Answers by its prompt, its seed and its weight; notes in a folder which process was asked what."""

    def __init__(self, folder: Path, behaviour: str = "") -> None:
        super().__init__(self._say, self._paint)
        self._folder, self._behaviour = folder, behaviour

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        self._act(prompts)
        return super().answer(prompts, seeds=seeds)

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        self._act(prompts)
        return super().draw(prompts, seeds=seeds)

    def _act(self, prompts: Sequence[Prompt]) -> None:
        with (self._folder / f"{os.getpid()}.asked").open("a") as stream:
            stream.writelines(f"{prompt.text}\n" for prompt in prompts)
        if self._behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._behaviour == "fails":
            raise MemoryError("no room")
        if self._behaviour == "hangs":
            time.sleep(600)
        if self._behaviour == "late":  # the others get their turn first
            time.sleep(0.5)
            self._behaviour = ""
        time.sleep(0.02)

    def _say(self, prompt: Prompt, seed: int) -> str:
        return f"{prompt.text} {seed} {self.weight.sum().item():.6f}"

    def _paint(self, prompt: Prompt, seed: int) -> Image.Image:
        shade = int(self.weight.abs().sum().item() * 20) % 256
        return Image.new("RGB", (4, 4), (seed % 256, shade, len(prompt.text)))


def load(folder: Path, behaviour: str = "") -> Fake:
    """What a worker loads; the folder gets a file once it is loaded."""
    if behaviour == "refuses":
        raise MemoryError("out of memory")
    fake = Fake(folder, behaviour)
    if behaviour == "differs":
        with torch.no_grad():
            fake.weight[0, 0] += 1e-6
    (folder / f"{os.getpid()}.ready").touch()
    return fake


def wait_for(folder: Path, pattern: str, number: int, seconds: float = 30.0) -> None:
    """Until so many files are there."""
    end = time.monotonic() + seconds
    while len(list(folder.glob(pattern))) < number:
        if time.monotonic() > end:
            raise TimeoutError(f"{number} x {pattern} in {folder}")
        time.sleep(0.02)
