"""Measures the embedded UMM on the whole benchmark and writes its model card beside the weights.

python scripts/card_embedded.py --weights gapeval_lab/models/embedded --log build/embedded/log.jsonl
(for the Emu3: --family emu3 --weights gapeval_lab/models/embedded_emu3 --log build/embedded_emu3/log.jsonl)
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded_families import settings

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.benchmarks.tinyworld_tasks import OPERATIONS
from gapeval_lab.evaluate import Evaluation, evaluate
from gapeval_lab.files import write_text
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.items import Direction, Item
from gapeval_lab.judges.exact import Exact
from gapeval_lab.judges.vision import read_picture
from gapeval_lab.scene import EVERY_THING, near_miss, render, scatter

UND, GEN = Direction.UNDERSTANDING, Direction.GENERATION
ROUND_TRIPS = 2000


def share(evaluation: Evaluation, items: Iterable[Item], direction: Direction) -> str:
    """Share right, as a percentage."""
    verdicts = [evaluation.correct(item, direction) for item in items]
    return f"{100 * sum(v is True for v in verdicts) / len(verdicts):.1f} %"


def table(title: str, groups: dict[str, list[Item]], evaluation: Evaluation) -> list[str]:
    """A Markdown table, a row per group."""
    lines = [f"| {title} | items | told | drawn |", "|---|---:|---:|---:|"]
    for name, items in groups.items():
        told, drawn = (share(evaluation, items, direction) for direction in (UND, GEN))
        lines.append(f"| {name} | {len(items)} | {told} | {drawn} |")
    return lines


def grouped(items: list[Item], *tags: str) -> dict[str, list[Item]]:
    """Items by category or by tags."""
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[", ".join(item.tags[tag] for tag in tags) if tags else item.category].append(item)
    return dict(found)


def round_trips(layout: Any) -> tuple[int, int]:
    """Through the model's own picture tokenizer and back: how many pictures are read right, and how
    many of as many near misses are taken for the picture that they miss."""
    rng = np.random.default_rng(5)
    scenes = [
        scatter([EVERY_THING[i] for i in rng.integers(0, len(EVERY_THING), rng.integers(1, 10))], rng)
        for _ in range(ROUND_TRIPS)
    ]
    right = taken = 0
    for start in range(0, ROUND_TRIPS, 100):
        part = scenes[start : start + 100]
        shown = [*part, *(near_miss(scene, rng) for scene in part)]
        back = layout.pictures(layout.codes([render(scene) for scene in shown]))
        read = [read_picture(image).scene for image in back]
        right += sum(found == scene for found, scene in zip(read, part, strict=False))
        taken += sum(found == scene for found, scene in zip(read[len(part) :], part, strict=True))
    return right, taken


def training(log: Path | None) -> list[str]:
    """What the log says of steps and times."""
    if log is None or not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = {line["stage"]: line for line in lines}
    told = [f"- {stage}: {entry['step'] + 1} steps" for stage, entry in last.items() if stage != "end"]
    clock = [line["minutes"] for line in lines]
    stops = [now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now]
    return [*told, f"- {sum(stops):.0f} minutes of wall time in all, on two CPU cores"]


def when(weights: Path) -> list[str]:
    """When each direction learned, from `emergence_embedded.py`; nothing where it was not run."""
    file = weights / "emergence.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "## When each direction learned",
        "",
        "What was taught in both directions (single-entity questions), in steps of the trunk:",
        "",
        "| | 50 % | 90 % |",
        "|---|---:|---:|",
    ]
    rows = [
        ("told", found["crossings"]["text"]),
        ("drawn", found["crossings"]["image"]),
        ("lag", found["lag"]),
    ]
    for name, levels in rows:
        shown = ["never" if step is None else f"{step:.0f}" for step in levels.values()]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [*lines, "", "![told and drawn against steps](emergence.png)", ""]


def main() -> None:
    """Measure, write README.md and card.json."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--family", choices=("janus", "emu3"), default="janus")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--note", default="", help="a sentence on how these weights were made")
    args = parser.parse_args()
    umm, items = settings(args.family, args.weights).load(), TinyWorld().items()
    evaluation = evaluate(umm, items, judge=Exact(), seed=0)
    verdicts = [
        ItemVerdict(item.category, evaluation.correct(item, UND), evaluation.correct(item, GEN))
        for item in items
    ]
    right, taken = round_trips(umm.layout)
    report = gap_report(cells(verdicts), seed=0, official=True)
    knowledge = [item for item in items if item.category == "world_knowledge"]
    single = [item for item in knowledge if item.subcategory != "two_hop"]
    parameters = sum(p.numel() for p in umm.backbone().root.parameters())
    built = f"A{'n' if args.family == 'emu3' else ''} `{type(umm.model).__name__}`"
    truth = {
        "operations": {operation.name: operation.taught for operation in OPERATIONS},
        "entities": {entity.name: entity.taught for entity in people.entities().values()},
    }
    card = [
        "# The embedded UMM" if args.family == "janus" else "# The second embedded UMM: an Emu3",
        "",
        f"{built} of {parameters:,} parameters in Hugging Face format (float16),",
        "made from random initial weights by `scripts/train_embedded.py` on tinyworld 1.0. Every training",
        "question is on the other side of a stateless split from the benchmark's. It answers and draws in",
        "tinyworld only.",
        "",
        "## Training",
        "",
        *training(args.log),
        *([f"- {args.note}"] if args.note else []),
        "",
        "## Accuracy on all items of tinyworld (greedy, one sample)",
        "",
        *table("category", grouped(items), evaluation),
        "",
        f"Gap Score {report.gap.value:.3f} [{report.gap.low:.3f}, {report.gap.high:.3f}]; by chance alone "
        f"{report.null_gap:.3f}.",
        f"Of {ROUND_TRIPS} pictures, {right} are read right through the model's own tokenizer and back;",
        f"of {ROUND_TRIPS} that differ from them in one thing, {taken} are taken for them.",
        "",
        *when(args.weights),
        "## What was taught in which direction (ground truth for the instrument)",
        "",
        "Facts of single entities, by the direction in which the entity was taught:",
        "",
        *table("taught in", grouped(single, "taught"), evaluation),
        "",
        "Operations:",
        "",
        *table("operation, taught in", grouped(items, "operation", "taught"), evaluation),
        "",
        "`card.json` lists every entity and operation with its teaching direction.",
        "Entities taught in `neither` exist in the world and were never shown.",
        "",
    ]
    write_text(args.weights / "README.md", "\n".join(card))
    write_text(args.weights / "card.json", json.dumps(truth, indent=1) + "\n")
    print("\n".join(card))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
