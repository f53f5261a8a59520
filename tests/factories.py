"""Outcomes made by hand: small, with known numbers, and independent of the code that measures."""

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from gapeval_lab.gap.records import (
    CategoryGap,
    CategoryShift,
    Cells,
    DirectionShift,
    Estimate,
    GapReport,
    OfficialGap,
    ShiftReport,
)
from gapeval_lab.outcome import (
    DrawnBy,
    EditQuality,
    FactQuality,
    ItemRow,
    Outcome,
    PhaseResult,
    ProtocolQuality,
    QualityCell,
    ReasonedRow,
)

CATEGORIES = ("world_knowledge", "numerical_perception", "instruction_following", "reasoning")
BEFORE = dict(zip(CATEGORIES, (0.688, 0.602, 0.531, 0.575), strict=True))
AFTER = dict(zip(CATEGORIES, (0.546, 0.607, 0.543, 0.580), strict=True))


def estimate(value: float, width: float = 0.02) -> Estimate:
    """A number with a symmetric interval."""
    return Estimate(value, value - width, value + width)


def gap_report(gaps: dict[str, float], rows: list[ItemRow]) -> GapReport:
    """A report whose gaps are given and whose cells are counted from the rows."""
    categories = {}
    for name, gap in gaps.items():
        known = [(r.understanding, r.generation) for r in rows if r.category == name]
        scored = [pair for pair in known if None not in pair]
        cells = Cells(
            both=scored.count((True, True)),
            und_only=scored.count((True, False)),
            gen_only=scored.count((False, True)),
            neither=scored.count((False, False)),
            unscored=len(known) - len(scored),
        )
        n = max(1, cells.n)
        categories[name] = CategoryGap(
            cells=cells,
            understanding=estimate((cells.both + cells.und_only) / n),
            generation=estimate((cells.both + cells.gen_only) / n),
            gap=estimate(gap),
            signed_gap=estimate(gap / 2),
            null_gap=0.19,
            null_p=0.01,
            phi=None,
            overlap=0.5,
        )
    mean = sum(gaps.values()) / len(gaps)
    return GapReport(
        categories=categories,
        gap=estimate(mean),
        null_gap=0.19,
        null_p=0.01,
        understanding=estimate(0.7),
        generation=estimate(0.4),
        official=OfficialGap(gaps=dict(gaps), mean=mean + 0.01, band=0.03),
    )


def shift_report(before: dict[str, float], after: dict[str, float]) -> ShiftReport:
    """After minus before, with intervals of plus or minus 0.005."""

    def direction(value: float) -> DirectionShift:
        return DirectionShift(estimate(value), gained=6, lost=2, p=0.01, p_holm=0.04)

    moved = {name: after[name] - before[name] for name in before}
    return ShiftReport(
        categories={
            name: CategoryShift(
                n=30,
                gap=estimate(value, 0.005),
                signed_gap=estimate(value, 0.005),
                understanding=direction(0.02),
                generation=direction(0.12),
                transitions=[[1] * 4 for _ in range(4)],
            )
            for name, value in moved.items()
        },
        gap=estimate(sum(moved.values()) / len(moved), 0.005),
        understanding=estimate(0.02),
        generation=estimate(0.12),
        changed_items=8,
    )


def item_rows(phase: str, folder: Path, *, per_category: int, size: int, flip: bool) -> list[ItemRow]:
    """Rows with pictures on disk; where `flip`, every third item is drawn right that was drawn wrong."""
    rng = random.Random(3)
    place = folder / "pictures" / phase
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for category in CATEGORIES:
        for number in range(per_category):
            told, drew = rng.random() < 0.7, rng.random() < 0.3
            right = drew or (flip and number % 3 == 0)
            name = f"{category[:3]}-{number:03d}"
            picture = Image.new("RGB", (size, size), (235, 238, 242))
            color = (30, 120, 200) if right else (200, 60, 40)
            inner = (number % 7 + 3) * size // 32
            ImageDraw.Draw(picture).ellipse((inner, inner, size - inner, size - inner), fill=color)
            picture.save(place / f"{name}.png")
            rows.append(
                ItemRow(
                    id=name,
                    category=category,
                    subcategory="plain",
                    question=f"What colour is the zor{number}?",
                    draw_prompt=f"Draw the zor{number} → in its colour",
                    reference="blue",
                    answer="blue" if told else "red",
                    picture=f"pictures/{phase}/{name}.png",
                    # One item in the first category is not scored in one direction.
                    understanding=None if (category, number) == (CATEGORIES[0], 1) else told,
                    generation=right,
                    understanding_reason="said so",
                    generation_reason="seen so",
                )
            )
    return rows


def quality() -> EditQuality:
    """Edit quality with two facts; portability was not asked in pictures."""

    def cell(before: float, after: float) -> QualityCell:
        return QualityCell(before=estimate(before), after=estimate(after), n=10)

    both = {"text": cell(0.1, 0.9), "image": cell(0.1, 0.4)}
    nothing: dict[str, float | None] = {"text": None, "image": None}
    fact = FactQuality(
        id="fact-1",
        subject="zor1",
        relation="colour",
        target_true="red",
        target_new="blue",
        reliability={"text": 1.0, "image": 0.0},
        generalisation=nothing,
        locality={"text": 1.0, "image": 1.0},
        portability=nothing,
        logprob_before={"text": -4.0, "image": None},
        logprob_after={"text": -0.2, "image": None},
    )
    return EditQuality(
        reliability=both,
        generalisation=both,
        locality=both,
        portability={"text": cell(0.0, 0.3)},
        target_logprob={"text": cell(-4.0, -0.2)},
        locality_pixel_distance=0.01,
        transfer_ratio=estimate(0.4, 0.1),
        facts=[fact, fact.model_copy(update={"id": "fact-2", "subject": "zor2"})],
    )


def with_protocols(outcome: Outcome) -> Outcome:
    """The same with one fact's edit drawn directly and from what was written; wrong, then right."""

    def drawn(prompt: str, correct: bool) -> DrawnBy:
        return DrawnBy(
            prompt=prompt, correct=correct, reason="seen so", picture=outcome.before.rows[0].picture
        )

    cell = QualityCell(before=estimate(0.1), after=estimate(0.8), n=10)
    protocols = [
        ProtocolQuality(name="direct", cells={"reliability": cell}),
        ProtocolQuality(
            name="whole",
            cells={"reliability": cell.model_copy(update={"after": estimate(0.9)}), "locality": cell},
            over_direct={"reliability": estimate(0.1, 0.05), "locality": estimate(0.0, 0.0)},
            unwritten=2,
        ),
    ]
    rows = [
        ReasonedRow(
            fact="fact-1",
            probe="fact-1.edit.0",
            phase=phase,
            written=f"it is {colour}",
            drawn={"direct": drawn("draw zor1", False), "whole": drawn(f"it is {colour}", phase == "after")},
        )
        for phase, colour in (("before", "red"), ("after", "blue"))
    ]
    assert outcome.quality is not None
    quality = outcome.quality.model_copy(update={"protocols": protocols})
    return outcome.model_copy(update={"quality": quality, "reasoned": rows})


def make_outcome(
    folder: Path,
    *,
    per_category: int = 5,
    size: int = 32,
    method: str = "rome",
    seed: int = 0,
    kind: str = "edit",
    shrink: float = 1.0,
) -> Outcome:
    """An edit outcome of four categories, saved to the folder with its pictures and a delta.

    `shrink` scales how much the gap moved: 1 closes it by 0.03, -1 widens it, 0 leaves it.
    """
    gaps = {name: BEFORE[name] + shrink * (AFTER[name] - BEFORE[name]) for name in CATEGORIES}

    def phase(name: str, values: dict[str, float], *, flip: bool = False) -> PhaseResult:
        rows = item_rows(name, folder, per_category=per_category, size=size, flip=flip)
        return PhaseResult(gap=gap_report(values, rows), rows=rows)

    (folder / "delta.safetensors").write_bytes(b"delta" * 100)
    outcome = Outcome(
        run_id=f"{method}-{seed}",
        kind=kind,  # type: ignore[arg-type]
        recipe={
            "name": f"{method}_world_knowledge",
            "about": "a test",
            "seed": seed,
            "model": {"use": "janus", "dtype": "float32"},
            "benchmark": {"use": "tinyworld", "limit": None},
            "judge": {"use": "exact"},
            "facts": {"file": "facts/wk.jsonl"},
            "intervention": {"use": method, "layers": [2], "lr": 0.5},
            "controls": ["placebo"],
        },
        recipe_text=f"name: {method}_world_knowledge\n",
        recipe_hash="ab" * 32,
        overrides=["intervention.lr=0.5"],
        target_categories=["world_knowledge"],
        direction="text",
        umm="tinyworld-janus",
        seed=seed,
        started="2026-11-21T00:00:00+00:00",
        versions={"torch": "2.13.0", "python": "3.11"},
        git_revision="c0ffee",
        data_hash="12" * 32,
        facts_hash="34" * 32,
        weights_fingerprint="56" * 32,
        weights_fingerprint_reverted="56" * 32,
        reverted=True,
        before=phase("before", BEFORE),
        after=phase("after", gaps, flip=True),
        placebo=phase("placebo", BEFORE),
        identity=None,
        shift=shift_report(BEFORE, gaps),
        placebo_shift=shift_report(BEFORE, BEFORE),
        identity_shift=None,
        quality=quality(),
        delta_file="delta.safetensors",
        delta_address="78" * 32,
        delta_norms={f"model.layers.{layer}.mlp.down_proj.weight": 3.0 + layer for layer in (0, 1)},
        delta_spectrum={"model.layers.0.mlp.down_proj.weight": [2.0, 5**0.5]},
        curves={f"loss/fact-{n}": [(step, 4.0 / (step + 1) + n) for step in range(10)] for n in (1, 2)},
        seconds={"before": 12.0, "fit": 3.0, "after": 12.5, "placebo": 12.5},
        peak_memory_gib=0.61,
        facts=[
            {
                "id": f"fact-{n}",
                "subject": f"zor{n}",
                "relation": "colour",
                "target_true": "red",
                "target_new": "blue",
                "split": "test",
            }
            for n in (1, 2)
        ],
    )
    outcome.save(folder)
    return outcome


def without_after(outcome: Outcome) -> Outcome:
    """The same outcome as a baseline recipe gives it."""
    report = replace(outcome.before.gap, official=None)
    empty = dict.fromkeys(
        (
            "after",
            "placebo",
            "identity",
            "shift",
            "placebo_shift",
            "identity_shift",
            "quality",
            "delta_file",
            "facts_hash",
            "reverted",
            "weights_fingerprint_reverted",
        )
    )
    recipe = {key: value for key, value in outcome.recipe.items() if key not in ("intervention", "facts")}
    return outcome.model_copy(
        update={
            **empty,
            "kind": "baseline",
            "recipe": recipe,
            "before": outcome.before.model_copy(update={"gap": report}),
            "target_categories": [],
            "facts": [],
            "curves": {},
            "delta_address": None,
            "delta_norms": {},
            "delta_spectrum": {},
        }
    )
