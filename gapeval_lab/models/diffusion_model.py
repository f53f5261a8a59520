"""A diffusion pipeline in memory, as a unified multimodal model that only draws.

What a pipeline can do is found out in diffusion_kinds. Its weights are out of interventions' reach.
Knows no benchmark or judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.checkpoint import is_hub_id, unusable
from gapeval_lab.models.diffusion import Diffusion
from gapeval_lab.models.diffusion_kinds import by_kind, check_options, options
from gapeval_lab.models.loading import find_device
from gapeval_lab.models.sequences import same_length


class CannotDraw(ValueError):
    """One prompt asks for what the pipeline does not do. The error is that item's, not the run's."""


@dataclass(frozen=True)
class Stage:
    """A pipeline for one kind of prompt, with the options that its call takes."""

    pipeline: Any
    options: dict[str, Any]


class LoadedDiffusion:
    """A diffusion pipeline in memory: the protocols `UMM` and `Weightless`.

    Attributes:
        pipeline: as it was stored.
        drawing: what draws from text alone, None where the weights cannot.
        editing: what changes a given picture, None likewise. Both share all weights.
        root: every module of the pipeline; owns the weights.
    """

    directions: frozenset[Direction] = frozenset({Direction.GENERATION})

    def __init__(self, pipeline: Any, settings: Diffusion) -> None:
        self._settings, self.pipeline = settings, pipeline
        self.name = f"diffusion/{Path(settings.weights).name}"
        drawing, editing = by_kind(pipeline)
        check_options(settings, [one for one in (drawing, editing) if one is not None])
        self.drawing = None if drawing is None else Stage(drawing, options(settings, drawing))
        self.editing = None if editing is None else Stage(editing, options(settings, editing))
        self._configuration = _configuration(pipeline)  # now: calls leave their padding in a tokenizer
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.root = nn.ModuleDict(modules).eval().requires_grad_(False)

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """Not to be had.

        Raises:
            UserError: always, but for no prompts.
        """
        if prompts:
            raise UserError(f"model: {self.name} draws and gives no text; ask it for pictures only")
        return []

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """A picture for each prompt, from noise of the prompt's own seed.

        A prompt that holds a picture goes to the editing pipeline, one without to the drawing one.

        Raises:
            CannotDraw: a prompt is of a kind that the pipeline does not take, or a safety checker hid
                the picture. Nothing else was drawn then.
        """
        same_length(prompts, seeds)
        for prompt in prompts:
            self._check(prompt)
        found: dict[int, Image.Image] = {}
        for group in self._groups(prompts):
            texts, own = [prompts[i].text for i in group], [seeds[i] for i in group]
            shown = prompts[group[0]].images
            found.update(zip(group, self._drawn(texts, own, shown), strict=True))
        return [found[index] for index in range(len(prompts))]

    def _check(self, prompt: Prompt) -> None:
        if not prompt.pictures and self.drawing is None:
            raise CannotDraw(f"{self.name} only edits, and this prompt holds no picture")
        if prompt.pictures and self.editing is None:
            raise CannotDraw(f"{self.name} draws from text alone, and this prompt holds a picture")
        if len(prompt.pictures) > 1:
            raise CannotDraw(f"{self.name} edits one picture, and this prompt holds {len(prompt.pictures)}")

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Indices of the prompts of each call.

        Some pipelines pad texts to the longest of a call, so only texts of as many tokens share one.
        Edits stand alone: to some pipelines a list of pictures is one prompt with several.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            if prompt.pictures or self._settings.batch == 1:
                yield [index]
            else:
                alike.setdefault(self._lengths(prompt.text), []).append(index)
        for members in alike.values():
            for start in range(0, len(members), self._settings.batch):
                yield members[start : start + self._settings.batch]

    def _lengths(self, text: str) -> tuple[int, ...]:
        """The text's number of tokens in each of the pipeline's tokenizers."""
        parts = [part for _, part in sorted(self.pipeline.components.items()) if hasattr(part, "tokenize")]
        return tuple(len(part.tokenize(text)) for part in parts)

    def _drawn(
        self, texts: Sequence[str], seeds: Sequence[int], shown: Sequence[Image.Image]
    ) -> list[Image.Image]:
        """The pictures of one call."""
        stage = self.editing if shown else self.drawing
        if stage is None:
            raise AssertionError("prompts are checked before")
        # Always a full call: another batch size takes other kernels, whose last digits differ, and no
        # picture may depend on what is drawn beside it.
        size = 1 if shown else self._settings.batch
        filling = size - len(texts)
        whole, own = [*texts, *[texts[0]] * filling], [*seeds, *[seeds[0]] * filling]
        # On the CPU, so that the noise is the same on every device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in own]
        chosen = dict(stage.options)
        if shown:
            chosen["image"] = shown[0]
        if size > 1 and isinstance(chosen.get("negative_prompt"), str):
            chosen["negative_prompt"] = [chosen["negative_prompt"]] * size
        given = stage.pipeline(
            prompt=whole if size > 1 else whole[0],
            generator=generators if size > 1 else generators[0],
            output_type="pil",
            **chosen,
        )
        hidden = getattr(given, "nsfw_content_detected", None) or []
        if any(hidden[: len(texts)]):
            raise CannotDraw(f"the safety checker of {self.name} hid the picture")
        return [image.convert("RGB") for image in given.images[: len(texts)]]

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Not to be had: a diffusion model gives no likelihoods.

        Raises:
            UserError: always.
        """
        raise UserError(f"model: {self.name} gives no likelihoods; take a model that does, such as a janus")

    def backbone(self) -> Backbone:
        """Not to be had: there is no trunk that also tells.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"model: {self.name} has no language trunk to write into; measure it without an intervention"
        )

    def identity(self) -> str:
        """The fingerprint of every module's weights."""
        return fingerprint(self.root)

    def settings(self) -> dict[str, Any]:
        """What the pictures depend on beside the weights; the scheduler and tokenizers as a hash."""
        chosen = self._settings
        stages = {"drawing": self.drawing, "editing": self.editing}
        return {
            "family": "diffusion",
            "dtype": chosen.dtype,
            "device": self.pipeline.device.type,
            "batch": chosen.batch,  # of one size all is the same to the bit; between sizes digits differ
            "options": {
                name: None if stage is None else dict(sorted(stage.options.items()))
                for name, stage in stages.items()
            },
            "pipelines": {
                name: None if stage is None else type(stage.pipeline).__name__
                for name, stage in stages.items()
            },
            "configuration": self._configuration,
        }


def load(settings: Diffusion) -> LoadedDiffusion:
    """Read the pipeline that the settings name.

    Raises:
        UserError: see `Diffusion.load`.
    """
    device, folder = find_device(settings.device), _folder(settings.weights)
    index = _index(folder, settings.weights)
    with _quiet():
        parts = {
            name: _part(folder, name, kind, settings)
            for name, (library, kind) in index.items()
            if library == "diffusers"
        }
        pipeline = _whole(folder, {name: part for name, part in parts.items() if part is not None}, settings)
        pipeline.set_progress_bar_config(disable=True)
        return LoadedDiffusion(pipeline.to(device), settings)


def _folder(weights: str) -> Path:
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise unusable(weights, "is a file", "give the folder that holds model_index.json")
    if not is_hub_id(weights):
        raise unusable(weights, "does not exist", "give a folder in diffusers format, or a hub id")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(weights, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise unusable(
            weights,
            f"is no local folder and could not be fetched from the hub ({_first_line(error)})",
            "check the name and the network, or give a local folder",
        ) from None


def _index(folder: Path, weights: str) -> dict[str, tuple[str, str]]:
    """Part -> (library, class), from the pipeline's table of contents."""
    file = folder / "model_index.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: tuple(entry) for name, entry in content.items() if isinstance(entry, list)}
    except FileNotFoundError:
        raise unusable(weights, "has no model_index.json", "give a folder in diffusers format") from None
    except (OSError, ValueError, AttributeError):
        raise unusable(weights, "has a damaged model_index.json", "copy or download it again") from None
    return {name: (str(entry[0]), str(entry[1])) for name, entry in parts.items() if len(entry) == 2}


def _part(folder: Path, name: str, kind: str, settings: Diffusion) -> Any:
    """A model of the pipeline; None for what holds no weights, such as a scheduler.

    Loaded alone because only so the library tells of weights that are missing, which it fills at random.
    """
    import diffusers

    plan = getattr(diffusers, kind, None)
    if plan is None or not issubclass(plan, diffusers.ModelMixin):
        return None
    try:
        part, report = plan.from_pretrained(
            folder,
            subfolder=name,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except Exception as error:  # each library has its own for a file that is missing, cut short or misfits
        raise _damaged(settings.weights, f"part '{name}'", error) from None
    if missing := sorted(report["missing_keys"]):
        raise unusable(
            settings.weights,
            f"lacks {len(missing)} weights of '{name}' ({', '.join(missing[:3])})",
            "copy or download it again",
        )
    return part


def _whole(folder: Path, parts: Mapping[str, Any], settings: Diffusion) -> Any:
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            local_files_only=True,
            **parts,
        )
    except Exception as error:  # as in `_part`
        raise _damaged(settings.weights, "the pipeline", error) from None


def _damaged(weights: str, what: str, error: Exception) -> UserError:
    return unusable(
        weights,
        f"cannot be read: {what} ({type(error).__name__}: {_first_line(error)})",
        "give a whole pipeline in diffusers format, saved as safetensors",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _configuration(pipeline: Any) -> str:
    """Hash of the pipeline's own settings and its parts', weights and places on disk left out."""
    parts: dict[str, Any] = {"pipeline": _plain(pipeline.config)}
    for name, part in sorted(pipeline.components.items()):
        core = getattr(part, "backend_tokenizer", None)
        if core is not None:
            parts[name] = core.to_str()
        elif hasattr(part, "get_vocab"):
            parts[name] = part.get_vocab()
        elif hasattr(part, "config"):
            parts[name] = _plain(part.config)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(config: Any) -> dict[str, Any]:
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {
        name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and warnings of the libraries while loading; what is wrong is reported here."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    kept = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (ours, theirs)]
    for log, _, _ in kept:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level, bars in kept:
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
