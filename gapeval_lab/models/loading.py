"""Reads a model and its processor from a checkpoint that `checkpoint` has found whole.

Knows the transformers library; knows no model family. Everything that can be wrong with a checkpoint
ends in one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor
from transformers.utils import logging as library_logging

from gapeval_lab.errors import UserError
from gapeval_lab.models.checkpoint import unusable


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first CUDA device if there is one, else the CPU.

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


def read_processor(folder: Path, *, weights: str) -> Any:
    """Tokenizer, template and picture settings.

    Raises:
        UserError: they are not there or not usable.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
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


def read_model(
    family: Any, folder: Path, *, weights: str, dtype: str, attention: str | Mapping[str, str]
) -> Any:
    """The model on the CPU, every weight read from the checkpoint.

    Args:
        family: the library's class.
        folder: where the checkpoint lies.
        weights: what the user called it.
        dtype: name of torch's type.
        attention: the library's name of an implementation, or one for each part of the model.

    Raises:
        UserError: config and weights do not fit each other.
    """
    model, report = family.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # Asked for only to hear of misfits in the report instead of an exception.
        ignore_mismatched_sizes=True,
    )
    wrong = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if wrong:
        raise unusable(
            weights,
            f"lacks {len(wrong)} weights that its config.json asks for, or has them in another shape "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})",
            "take config.json and weights from the same checkpoint",
        )
    return model


def check_vocabulary(model: Any, processor: Any, *, weights: str) -> None:
    """Make sure that the model has every token of the tokenizer.

    Raises:
        UserError: it has fewer.
    """
    if model.config.text_config.vocab_size < len(processor.tokenizer):
        raise unusable(
            weights,
            f"has {len(processor.tokenizer)} tokens in its tokenizer and "
            f"{model.config.text_config.vocab_size} in its model",
            "take tokenizer and weights from the same checkpoint",
        )


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
