"""One phase as rows, an item each, with the pictures beside them. Reads evaluations, never a model."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gapeval_lab.evaluate import Evaluation
from gapeval_lab.items import Direction, Fact, Item, Picture, PictureFile, opened, png_bytes
from gapeval_lab.outcome import DrawnBy, ItemRow, ReasonedRow
from gapeval_lab.quality import ProbeState, drawn_by, probes


def item_rows(
    phase: str, items: Sequence[Item], evaluation: Evaluation, *, work: Path | None
) -> list[ItemRow]:
    """One row per item; pictures are written under `work/pictures/<phase>/`, inputs once; none for None."""
    rows = []
    for item in items:
        told = evaluation.responses.get((item.id, Direction.UNDERSTANDING))
        drawn = evaluation.responses.get((item.id, Direction.GENERATION))
        verdicts = {d: evaluation.verdicts.get((item.id, d)) for d in Direction}
        shown = (*item.understand.pictures, *item.generate.pictures)
        name = f"{file_name(item.id)}.png"
        picture = f"pictures/{phase}/{name}" if work and drawn and drawn.picture else None
        input_picture = f"pictures/input/{name}" if work and shown else None
        if work and picture and drawn and drawn.picture:
            write_picture(work / picture, drawn.picture)
        if work and input_picture and phase == "before":
            write_picture(work / input_picture, shown[0])
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
                picture=picture,
                understanding=und.correct if und else None,
                generation=gen.correct if gen else None,
                understanding_reason=und.reason if und else "",
                generation_reason=gen.reason if gen else "",
                input_picture=input_picture,
                tags=dict(item.tags),
            )
        )
    return rows


def reasoned_rows(
    phase: Literal["before", "after"], facts: Sequence[Fact], state: ProbeState, *, work: Path
) -> list[ReasonedRow]:
    """One row per probe that the model wrote about; pictures go to `work/pictures/<protocol>/<phase>/`."""
    if state.reasoned is None:
        return []
    written, prompts = state.reasoned.written, state.reasoned.prompts
    rows = []
    for fact in facts:
        for item in probes([fact]):
            if item.id not in written:
                continue
            drawn = {}
            for protocol, evaluation in drawn_by(state).items():
                response = evaluation.responses[item.id, Direction.GENERATION]
                verdict = evaluation.verdicts[item.id, Direction.GENERATION]
                name = f"pictures/{protocol}/{phase}/{file_name(item.id)}.png"
                if response.picture is not None:
                    write_picture(work / name, response.picture)
                drawn[protocol] = DrawnBy(
                    prompt=prompts.get(protocol, {}).get(item.id, item.generate.text),
                    correct=verdict.correct,
                    reason=verdict.reason,
                    picture=name if response.picture is not None else None,
                )
            rows.append(
                ReasonedRow(fact=fact.id, probe=item.id, phase=phase, written=written[item.id], drawn=drawn)
            )
    return rows


def write_picture(file: Path, picture: Picture) -> None:
    """As PNG; one that lies on disk as such is copied."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, PictureFile) and picture.path.suffix == ".png":
        shutil.copyfile(picture.path, file)
    else:
        file.write_bytes(png_bytes(opened(picture)))


def file_name(identity: str) -> str:
    """An item's id as a file name."""
    return "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in identity)
