"""A model with a delta added to its weights for good, as a checkpoint for use elsewhere."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from gapeval_lab.delta import WeightDelta, fingerprint
from gapeval_lab.delta_file import Head, require_weights
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.interfaces import UMM, Savable

RECORD = "merged.json"


def write_merged(
    umm: UMM, delta: WeightDelta, folder: Path, *, head: Head, source: Path, scale: float, any_weights: bool
) -> str:
    """Write the model with the delta; the model itself is unchanged on return.

    The folder appears whole or not at all. Beside the checkpoint lies `merged.json`: the weights before
    and after, the delta's address, its scale.

    Args:
        umm: the model.
        delta: what to add, scaled already.
        folder: new, or empty.
        head: of the delta's file.
        source: that file, for messages.
        scale: what the stored delta was multiplied by, for the record.
        any_weights: also take a model that the delta was not made for, if names and shapes fit.

    Returns:
        The fingerprint of the merged weights.

    Raises:
        UserError: the model cannot be saved, the delta does not fit it, or the folder is taken.
    """
    if not isinstance(umm, Savable):
        raise UserError(f"--model: {umm.name} cannot be saved as a checkpoint; take one of another family")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: {folder} is not empty; choose a new folder")
    root = umm.backbone().root
    before = fingerprint(root)
    if not any_weights:
        require_weights(head, before, path=source, fix="give --any-weights")
    delta.check(root)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"--out: cannot write {folder} ({error.strerror}); choose another folder") from None
    try:
        with delta.applied(root):
            after = fingerprint(root)
            umm.save(unfinished)
        record = {"weights": before, "delta": head.address, "scale": scale, "merged_weights": after}
        write_text(unfinished / RECORD, json.dumps(record, indent=1) + "\n")
        unfinished.chmod(0o755)
        for file in unfinished.iterdir():
            file.chmod(0o644)
        unfinished.replace(folder)
    except OSError as error:
        raise UserError(f"--out: cannot write {folder} ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return after
