"""Where recipes, configs and fact files lie: a path, the working directory, the package.

Knows folders and names, and nothing of what the files hold.
"""

from __future__ import annotations

from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.validation import did_you_mean


def packaged(folder: str) -> Path:
    """The packaged `recipes` or `configs` folder.

    In an installed wheel it lies inside the package; in a checkout, beside it.
    """
    inside = Path(__file__).parent / folder
    return inside if inside.is_dir() else Path(__file__).parent.parent / folder


def find_file(name: str, *, folder: str, suffix: str = "") -> Path:
    """The file that a name stands for: a path, then ./<folder>/<name>, then the packaged one.

    Args:
        name: a path, or a name below the folder, with or without the suffix.
        folder: "recipes", or "configs/models" and the like.
        suffix: what a name may leave out (".yaml").

    Raises:
        UserError: nothing there; the message has the places and the closest name.
    """
    spellings = [name] if suffix == "" or name.endswith(suffix) else [name, name + suffix]
    places = [Path(), Path(folder), packaged(folder)]
    for place in places:
        for spelling in spellings:
            if (place / spelling).is_file():
                return place / spelling
    hint = did_you_mean(name, names_in(folder, suffix=suffix))
    raise UserError(
        f"file: '{name}' was found neither as a path, nor in ./{folder}, nor in the packaged {folder}{hint}"
    )


def names_in(folder: str, *, suffix: str) -> list[str]:
    """Names, without suffix, of the files below ./<folder> and below the packaged one; sorted.

    The tables in a folder `sites` belong to families, and have no names of their own.
    """
    return sorted(
        {
            file.relative_to(place).as_posix().removesuffix(suffix)
            for place in (Path(folder), packaged(folder))
            for file in place.rglob(f"*{suffix}")
            if file.is_file() and file.parent.name != "sites"
        }
    )


def read_text(path: Path) -> str:
    """The file as UTF-8 text, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"file: cannot read {path} ({error.strerror}); check its path and rights") from None
    except UnicodeDecodeError as error:
        raise UserError(f"file: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
