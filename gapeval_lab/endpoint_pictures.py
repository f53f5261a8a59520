"""Pictures and texts on their way to an endpoint: data URLs, and roughly how many tokens they are."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from gapeval_lab.items import Picture, PictureFile, opened

PICTURE_LEAST = 85
"""Tokens of a picture at the coarsest detail that endpoints offer."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; its pictures come after its text."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """A rough estimate from below and from above; no tokenizer is asked."""

    least: int
    most: int


def encoded(picture: Picture, *, format: Literal["png", "jpeg"], longest_side: int) -> bytes:
    """The picture in RGB, scaled down to the longest side where it is larger.

    Raises:
        OSError: it cannot be read.
    """
    image = opened(picture).convert("RGB")
    if max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def data_url(picture: Picture, *, format: Literal["png", "jpeg"], longest_side: int) -> str:
    """`encoded`, as a URL that holds the picture itself."""
    data = encoded(picture, format=format, longest_side=longest_side)
    return f"data:image/{format};base64,{base64.b64encode(data).decode()}"


def estimate_tokens(messages: Sequence[Message], *, longest_side: int) -> Tokens:
    """Tokens of a conversation: four characters to a token, or three; pictures whole, or in tiles."""
    letters = sum(len(message.text) for message in messages)
    turns = 8 * len(messages)  # roles and separators
    pictures = [picture for message in messages for picture in message.pictures]
    least = math.ceil(letters / 4) + PICTURE_LEAST * len(pictures)
    most = math.ceil(letters / 3) + sum(_tiles(_size(picture), longest_side) for picture in pictures)
    return Tokens(least, most + turns)


def _size(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, PictureFile):
        try:
            with Image.open(picture.path) as image:  # reads the head alone
                return image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return (0, 0)  # cannot be read: will not be sent
    return picture.size


def _tiles(size: tuple[int, int], longest_side: int) -> int:
    """Tokens at full detail: scaled so that the short side is 768 at most, then tiles of 512 pixels."""
    width, height = (float(max(1, side)) for side in size)
    shrink = min(1.0, min(longest_side, 2048) / max(width, height))
    shrink = min(shrink, 768.0 / min(width, height))
    tiles = math.ceil(width * shrink / 512) * math.ceil(height * shrink / 512)
    return PICTURE_LEAST + 170 * tiles
