"""How a Janus draws: its picture head and its code embeddings in the common loop.

The loop itself is `decode.draw_codes`; text answers are written by `decode.continue_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gapeval_lab.models import decode
from gapeval_lab.models.decode import Stepper


def draw_codes(
    stepper: Stepper,
    embeddings: Tensor,
    *,
    model: Any,
    seeds: Sequence[int],
    count: int,
    temperature: float,
    guidance: float,
) -> Tensor:
    """Picture codes, (batch, count).

    Args:
        stepper: over the prompts, with room for `count` - 1 positions.
        embeddings: the prompts, as `decode.draw_codes` takes them.
        model: gives the picture head and the code embeddings.
        seeds: one per row.
        count: codes in a picture.
        temperature: 0 takes the likeliest code.
        guidance: 1 is none.
    """
    return decode.draw_codes(
        stepper,
        embeddings,
        head=model.model.generation_head,
        embed=lambda codes, step: model.prepare_embeddings_for_image_generation(codes[:, None]),
        seeds=seeds,
        count=count,
        temperature=temperature,
        guidance=guidance,
    )
