"""Brings weights into memory the way `LoadOptions` say, for every family in Hugging Face format.

Knows devices, attention, quantisation and compilation, and no model family.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import AutoProcessor, BitsAndBytesConfig
from transformers.utils import is_torchvision_available
from transformers.utils import logging as library_logging

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.models.checkpoint import unusable
from gapeval_lab.models.load_options import LoadOptions


def load_weights(
    family: Any, folder: Path, options: LoadOptions, *, attention: Mapping[str, str] | None = None
) -> Any:
    """A model of the family in evaluation mode, on the device or devices asked for.

    Args:
        family: a model class of the library, or one of its auto classes.
        folder: a checkpoint that `check_checkpoint` found whole.
        options: how to load it.
        attention: part of the model -> implementation, where they cannot all have the one asked for.

    Raises:
        UserError: an option cannot be had on this machine, or the weights do not fit config.json.
    """
    placed = options.device_map is not None or options.quantise is not None
    device = None if options.device_map else find_device(options.device)
    if options.device_map and options.device != "auto":
        raise UserError(
            f"model.device: '{options.device}' and device_map '{options.device_map}' exclude each other; "
            "set one of them to its default (device: auto, device_map: null)"
        )
    more: dict[str, Any] = {}
    if options.quantise is not None:
        more["quantization_config"] = _quantisation(options)
    if placed:
        more["device_map"] = options.device_map or {"": device}
    with quiet():
        try:
            model, report = family.from_pretrained(
                folder,
                dtype=getattr(torch, options.dtype),
                attn_implementation=options.attention if attention is None else dict(attention),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                # Asked for only to hear of misfits in the report instead of an exception.
                ignore_mismatched_sizes=True,
                **more,
            )
        except (ImportError, ValueError) as error:
            chosen = {"attention": (options.attention, "sdpa"), "quantise": (options.quantise, None)}
            asked = [name for name, (value, plain) in chosen.items() if value not in (plain, "eager")]
            if not asked and options.attention == "sdpa" and "attention" in str(error):
                raise UserError(
                    f"model.attention: 'sdpa' is not in this model ({str(error).splitlines()[0]}); set "
                    "it to eager"
                ) from None
            if not asked:
                raise
            field, (value, plain) = asked[0], chosen[asked[0]]
            raise UserError(
                f"model.{field}: '{value}' cannot be had here ({str(error).splitlines()[0]}); install what "
                f"it needs, or set it to {plain or 'null'}"
            ) from None
    wrong = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if wrong:
        raise unusable(
            options.weights,
            f"lacks {len(wrong)} weights that its config.json asks for, or has them in another shape "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})",
            "take config.json and weights from the same checkpoint",
        )
    outside = [name for name, value in model.named_parameters() if value.is_meta]
    if outside:
        raise UserError(
            f"model.device_map: '{options.device_map}' leaves {len(outside)} weights outside the devices "
            f"({outside[0]}, ...), where nothing can be read or written; use a smaller dtype, quantise, or "
            "more GPUs"
        )
    return (model if placed else model.to(device)).eval()


def _quantisation(options: LoadOptions) -> BitsAndBytesConfig:
    """The library's own settings for 8 or 4 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantise: '{options.quantise}' needs the package bitsandbytes; install it, or set "
            "quantise to null"
        )
    if find_device(options.device).type != "cuda":
        raise UserError(
            f"model.quantise: '{options.quantise}' needs a CUDA device, and the model is to lie on the CPU; "
            "set quantise to null, or take a machine with one"
        )
    if options.quantise == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, options.dtype),
    )


def without_weights(build: Callable[[], Any], weights: str) -> nn.Module:
    """What `build` builds, on torch's meta device.

    Args:
        build: makes a model of the library from its config.
        weights: what the checkpoint is called in messages.

    Raises:
        UserError: it cannot be built.
    """
    try:
        with torch.device("meta"):
            root: nn.Module = build()
    except Exception as error:  # the library's models fail in any way on a config that does not fit
        raise unusable(
            weights,
            f"has a config.json from which no model can be built ({type(error).__name__}: {error})",
            "copy or download it again",
        ) from None
    return root


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: it is not on this machine.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"model.device: '{name}' is not on this machine; use 'auto' or 'cpu'")
    return device


def load_processor(folder: Path, weights: str, *, family: type[Any] | None = None) -> Any:
    """Tokenizer, template and picture settings of a checkpoint.

    Args:
        folder: the checkpoint.
        weights: what it is called in messages.
        family: the processor's class; it is loaded without its part for videos where torchvision, which that
            part needs, is not installed. None: the checkpoint says which, and has all its parts.

    Raises:
        UserError: they are missing or damaged, without fast tokenizer, or without chat template.
    """
    try:
        processor = _reader(family).from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise unusable(
            weights, f"needs a package that is not installed ({' '.join(lines)[:200]})", "install it"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise unusable(
            weights,
            f"has no usable tokenizer and picture settings ({str(error).splitlines()[0]})",
            "copy tokenizer and processor files beside config.json",
        ) from None
    if not getattr(getattr(processor, "tokenizer", None), "is_fast", False):
        raise unusable(
            weights,
            "has no fast tokenizer, which tells where each token stands in the text",
            "save the tokenizer as tokenizer.json",
        )
    if processor.chat_template is None:
        raise unusable(
            weights, "has no chat template", "add chat_template.jinja from the original checkpoint"
        )
    return processor


def _reader(family: type[Any] | None) -> Any:
    """The class that reads a processor."""
    if family is None or is_torchvision_available():
        return AutoProcessor
    return without_video(family) if "video_processor" in family.get_attributes() else AutoProcessor


def without_video(family: type[Any]) -> type[Any]:
    """The processor's class for texts and pictures alone; it saves itself under the same name."""
    parts = [part for part in family.get_attributes() if part != "video_processor"]
    return type(family.__name__, (family,), {"get_attributes": classmethod(lambda cls: parts)})


def check_vocabulary(model: Any, processor: Any, weights: str) -> None:
    """Make sure that the model has an embedding for every token.

    Raises:
        UserError: it has fewer.
    """
    size = model.config.get_text_config().vocab_size
    if size < len(processor.tokenizer):
        raise unusable(
            weights,
            f"has {len(processor.tokenizer)} tokens in its tokenizer and {size} in its model",
            "take tokenizer and weights from the same checkpoint",
        )


class Compiled:
    """A module that runs compiled inside `with`, and as it is everywhere else.

    Interventions hang hooks on modules and exchange them, which compiled code may not notice. The module
    stays where it is, under its own name, with its own weights.

    Args:
        module: the module.
        wanted: False leaves it as it is inside `with`, too.
    """

    def __init__(self, module: nn.Module, *, wanted: bool) -> None:
        self._module: Any = module
        self._call: Callable[..., Any] | None = None
        if wanted:
            module.compile(dynamic=True)
            self._call, self._module._compiled_call_impl = self._module._compiled_call_impl, None

    def __enter__(self) -> None:
        self._module._compiled_call_impl = self._call

    def __exit__(self, *_: object) -> None:
        self._module._compiled_call_impl = None


class _HasModel(Protocol):
    model: Any
    name: str


class Quantised:
    """What a model with quantised weights has instead of a trunk: it fits the protocol `Weightless`."""

    refused: ClassVar[str] = (
        "model.quantise: the weights of {name} are quantised, and nothing can be written into them; set "
        "quantise to null, or run a recipe without intervention"
    )

    def identity(self: _HasModel) -> str:
        """SHA-256 over every tensor of the model's state, scales of the quantisation included."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            if isinstance(value, torch.Tensor):
                digest.update(f"{name}\x00{tuple(value.shape)}\x00{value.dtype}\x00".encode())
                flat = value.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def backbone(self: _HasModel) -> Backbone:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError(Quantised.refused.format(name=self.name))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings while loading: what is wrong with weights is reported here."""
    bars, level = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()
