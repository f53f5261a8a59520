"""Draws one picture of a finished run: gap before and after, edit quality, and what it draws now.

python scripts/picture_of_outcome.py mlruns/outcomes/<run> --out recipes/pictures/rome_world_knowledge.png
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from gapeval_lab.outcome import QUALITIES, ItemRow, Outcome
from gapeval_lab.report import headline

TEXT, IMAGE, BEFORE, AFTER = "#0072B2", "#D55E00", "#999999", "#222222"  # apart for colour-blind readers too
SHOWN = 6


def draw_gaps(axes: Any, outcome: Outcome) -> None:
    """Gap per category, before and after, with intervals and what chance alone would give."""
    names = [*outcome.before.gap.categories]
    for offset, (label, phase, colour) in enumerate(
        (("before", outcome.before, BEFORE), ("after", outcome.after, AFTER))
    ):
        if phase is None:
            continue
        for i, name in enumerate(names):
            gap = phase.gap.categories[name].gap
            y = i + 0.22 * (offset - 0.5)
            axes.plot([gap.low, gap.high], [y, y], color=colour, lw=1.6)
            axes.plot(gap.value, y, "o", color=colour, label=label if i == 0 else None, ms=5)
            axes.plot(phase.gap.categories[name].null_gap, y, "|", color="#AAAAAA", ms=9)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_xlabel("Gap Score (| : by chance)")
    axes.legend(frameon=False, fontsize=8)


def draw_quality(axes: Any, outcome: Outcome) -> None:
    """Edit quality after the edit, text and image side by side."""
    quality = outcome.quality
    if quality is None:
        return
    for offset, (side, colour) in enumerate((("text", TEXT), ("image", IMAGE))):
        for i, kind in enumerate(QUALITIES):
            cell = getattr(quality, kind).get(side)
            if cell is not None:
                after = cell.after
                axes.bar(
                    i + 0.36 * (offset - 0.5), after.value, 0.34, color=colour, label=side if i == 0 else None
                )
                axes.plot([i + 0.36 * (offset - 0.5)] * 2, [after.low, after.high], color="black", lw=1)
    axes.set_xticks(range(len(QUALITIES)), QUALITIES, fontsize=8)
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def changed(outcome: Outcome) -> list[tuple[ItemRow, ItemRow]]:
    """Items whose picture's verdict flipped or whose subject was edited, the edited category first."""
    if outcome.after is None:
        return []
    pairs = list(zip(outcome.before.rows, outcome.after.rows, strict=True))
    subjects = {fact["subject"] for fact in outcome.facts}
    about = [pair for pair in pairs if pair[0].tags.get("entity") in subjects]
    return about[:SHOWN]


def draw_gallery(figure: Any, cells: Any, pairs: list[tuple[ItemRow, ItemRow]], folder: Path) -> None:
    """Before and after, side by side, under the drawing prompt."""
    for i, pair in enumerate(pairs):
        for j, row in enumerate(pair):
            axes = figure.add_subplot(cells[j, i])
            if row.picture:
                with Image.open(folder / row.picture) as image:
                    axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
            mark = {True: "right", False: "wrong", None: "not scored"}[row.generation]
            axes.set_xlabel(f"{('before', 'after')[j]}: {mark}\ntold: {row.answer}", fontsize=7)
            if j == 0:
                axes.set_title(row.draw_prompt, fontsize=7, wrap=True)


def main() -> None:
    """Read the outcome, draw, save."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    outcome = Outcome.load(args.folder)
    figure = plt.figure(figsize=(11, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    left, right = upper.subplots(1, 2)
    draw_gaps(left, outcome)
    draw_quality(right, outcome)
    figure.suptitle(f"{outcome.recipe['name']}: {headline(outcome)}", fontsize=10)
    pairs = changed(outcome)
    if pairs:
        draw_gallery(lower, lower.add_gridspec(2, len(pairs)), pairs, args.folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
