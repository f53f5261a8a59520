"""Where a checkpoint lies and whether it is whole, found out before any weight is read.

Knows folders in Hugging Face format: config.json and safetensors files. Knows no model family and
no torch; the network is used for hub ids only, never for a folder.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from gapeval_lab.errors import UserError

EMBEDDED: Final = "embedded"
EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded"
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILES: Final = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


def is_hub_id(weights: str) -> bool:
    """Whether it reads like "owner/name"."""
    return _HUB_ID.fullmatch(weights) is not None


def unusable(weights: str, problem: str, fix: str) -> UserError:
    """The one error for weights that cannot be used: field, value, fix."""
    return UserError(f"model.weights: '{weights}' {problem}; {fix}")


def find_checkpoint(weights: str, *, embedded: Path) -> Path:
    """The folder that `weights` means.

    Args:
        weights: "embedded", a local folder, or "owner/name" on the hub where no such folder exists.
        embedded: the folder that "embedded" means.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    if weights == EMBEDDED:
        if not embedded.is_dir():
            raise unusable(weights, f"is not in this installation ({embedded})", "install the package again")
        return embedded
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise unusable(weights, "is a file", "give the folder that holds config.json and the weights")
    if not is_hub_id(weights):
        raise unusable(
            weights, "does not exist", "give a folder in Hugging Face format, a hub id, or 'embedded'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise _unreachable(weights, error) from None


def _unreachable(weights: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return unusable(
        weights,
        f"is no local folder and could not be fetched from the hub ({type(error).__name__}: {reason})",
        "check the name and the network, or give a local folder",
    )


def find_config(weights: str, *, embedded: Path, model_type: str | Collection[str]) -> dict[str, Any]:
    """The checkpoint's config.json, without its weights; of a hub id, this one file is fetched.

    Args:
        weights, embedded: see `find_checkpoint`.
        model_type: see `check_checkpoint`.

    Raises:
        UserError: there is none, or it is of another family.
    """
    if weights == EMBEDDED or Path(weights).expanduser().exists() or not _HUB_ID.fullmatch(weights):
        folder = find_checkpoint(weights, embedded=embedded)
    else:
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(weights, "config.json")).parent
        except (OSError, ValueError) as error:
            raise _unreachable(weights, error) from None
    return _config(folder, weights, model_type)


def check_checkpoint(folder: Path, *, weights: str, model_type: str | Collection[str]) -> dict[str, Any]:
    """Make sure that the folder holds a whole checkpoint of the family.

    Each safetensors file states in its header how long it must be; a file cut short in a copy or a
    download is told from a whole one without reading its tensors.

    Args:
        folder: the checkpoint.
        weights: what it is called in messages.
        model_type: the family's name in config.json, or the names of several.

    Returns:
        config.json.

    Raises:
        UserError: config or weights are missing, cut short, or of another family.
    """
    config = _config(folder, weights, model_type)
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        shards = _json(index, weights).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise unusable(weights, f"has no weight map in {index.name}", "copy or download it again")
        names = sorted(set(shards.values()))
    for name in names:
        if not (folder / name).is_file():
            raise unusable(weights, f"has no file {name}", "copy or download it again")
        problem = _damage(folder / name)
        if problem:
            raise unusable(weights, f"has a damaged file {name} ({problem})", "copy or download it again")
    return config


def _config(folder: Path, weights: str, model_type: str | Collection[str]) -> dict[str, Any]:
    """config.json of a checkpoint of the family."""
    config = _json(folder / "config.json", weights)
    found = config.get("model_type")
    if isinstance(model_type, str):
        if found != model_type:
            raise unusable(
                weights,
                f"holds a model of type '{found}', not '{model_type}'",
                f"give a {model_type} checkpoint in the format of the transformers library",
            )
    elif found not in model_type:
        raise unusable(
            weights,
            f"holds a model of type '{found}', which is none of the families that fit here",
            "give a checkpoint in the format of the transformers library, of a family that it knows",
        )
    return config


def _json(path: Path, weights: str) -> dict[str, Any]:
    if not path.is_file():
        raise unusable(
            weights, f"has no file {path.name}", "give the folder that holds config.json and the weights"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise unusable(weights, f"has a damaged file {path.name} (not JSON)", "copy or download it again")
    return content


def _damage(path: Path) -> str | None:
    """What is wrong with a safetensors file: 8 bytes of header length, a JSON header, the data."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return f"{size} bytes, cut short or not safetensors"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, IndexError, TypeError):
            return "its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{size} bytes where its header says {expected}"
