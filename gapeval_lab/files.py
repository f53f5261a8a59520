"""Files written so that a kill at any moment leaves the old one or the new one, never a half."""

import os
import tempfile
from pathlib import Path

from gapeval_lab.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, flush to disk, rename.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(
            f"output: cannot write {path} ({error.strerror}); choose a folder that can be written"
        ) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"output: cannot write {path} ({error.strerror}); free some space or choose another folder"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))
