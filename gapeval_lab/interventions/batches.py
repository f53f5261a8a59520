"""Encoded batches: drawings as one, some of the rows, two batches as one. Knows no facts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gapeval_lab.interfaces import Backbone, Drawing, Encoded
from gapeval_lab.items import Example


def drawing_of(backbone: Backbone, examples: Sequence[Example]) -> Drawing:
    """Drawing prompts with their pictures, as a batch of a model that draws."""
    assert backbone.encode_drawings is not None
    pictures = [example.answer for example in examples if not isinstance(example.answer, str)]
    return backbone.encode_drawings([example.prompt.text for example in examples], pictures)


def chosen(encoded: Encoded, keep: Tensor) -> Encoded:
    """Some rows of a batch."""
    rows = keep.nonzero().flatten().tolist()
    return Encoded(
        input_ids=encoded.input_ids[keep],
        attention_mask=encoded.attention_mask[keep],
        labels=encoded.labels[keep],
        texts=[encoded.texts[row] for row in rows],
        offsets=[encoded.offsets[row] for row in rows],
    )


def stacked(first: Encoded, second: Encoded) -> tuple[Encoded, tuple[int, int]]:
    """Two batches as one, padded on the left, and how far the columns of each moved."""
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])
    shifts = (width - first.input_ids.shape[1], width - second.input_ids.shape[1])

    def joined(one: Tensor, two: Tensor, fill: int) -> Tensor:
        parts = zip((one, two), shifts, strict=True)
        return torch.cat([torch.nn.functional.pad(part, (shift, 0), value=fill) for part, shift in parts])

    offsets = [
        [(0, 0)] * shift + spans
        for part, shift in zip((first, second), shifts, strict=True)
        for spans in part.offsets
    ]
    encoded = Encoded(
        # Masked positions may hold any id.
        input_ids=joined(first.input_ids, second.input_ids, 0),
        attention_mask=joined(first.attention_mask, second.attention_mask, 0),
        labels=joined(first.labels, second.labels, -100),
        texts=[*first.texts, *second.texts],
        offsets=offsets,
    )
    return encoded, shifts
