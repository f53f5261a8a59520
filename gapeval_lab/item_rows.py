"""One phase as rows, an item each, with the pictures beside them. Reads an evaluation, never a model."""

from collections.abc import Sequence
from pathlib import Path

from gapeval_lab.evaluate import Evaluation
from gapeval_lab.items import Direction, Item, png_bytes
from gapeval_lab.outcome import ItemRow


def item_rows(phase: str, items: Sequence[Item], evaluation: Evaluation, *, work: Path) -> list[ItemRow]:
    """One row per item; pictures are written under `work/pictures/<phase>/`, inputs once."""
    place = work / "pictures" / phase
    place.mkdir(parents=True, exist_ok=True)
    inputs = work / "pictures" / "input"
    inputs.mkdir(parents=True, exist_ok=True)
    rows = []
    for item in items:
        told = evaluation.responses.get((item.id, Direction.UNDERSTANDING))
        drawn = evaluation.responses.get((item.id, Direction.GENERATION))
        verdicts = {d: evaluation.verdicts.get((item.id, d)) for d in Direction}
        name = f"{_file_name(item.id)}.png"
        if drawn is not None and drawn.image is not None:
            (place / name).write_bytes(png_bytes(drawn.image))
        shown = (*item.understand.images, *item.generate.images)
        if shown and phase == "before":
            (inputs / name).write_bytes(png_bytes(shown[0]))
        und, gen = verdicts[Direction.UNDERSTANDING], verdicts[Direction.GENERATION]
        rows.append(
            ItemRow(
                id=item.id,
                category=item.category,
                subcategory=item.subcategory,
                question=item.understand.text,
                draw_prompt=item.generate.text,
                reference=item.reference_text,
                answer=None if told is None else told.text,
                picture=f"pictures/{phase}/{name}" if drawn and drawn.image else None,
                understanding=und.correct if und else None,
                generation=gen.correct if gen else None,
                understanding_reason=und.reason if und else "",
                generation_reason=gen.reason if gen else "",
                input_picture=f"pictures/input/{name}" if shown else None,
                tags=dict(item.tags),
            )
        )
    return rows


def _file_name(identity: str) -> str:
    """An item's id as a file name."""
    return "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in identity)
