"""Outcomes with everything that a page may have to show, made by hand on top of `factories`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from factories import CATEGORIES, estimate, gap_report, make_outcome, quality, shift_report, with_protocols

from gapeval_lab.auditing import audited
from gapeval_lab.gap.records import DirectionShift, OneSided, OneSidedShift
from gapeval_lab.outcome import (
    Emergence,
    EmergencePoint,
    Outcome,
    PhaseResult,
    ProtocolResult,
    ProtocolRow,
    ProtocolState,
    Stage,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & ]]> --> {{ 7 * 7 }} $x$"
GONE = ("after", "placebo", "identity", "shift", "placebo_shift", "identity_shift", "quality")


def full_outcome(folder: Path, **settings: Any) -> Outcome:
    """An edit of two stages with curves, protocols of facts and items, unscored items, an identity."""
    outcome = with_protocols(make_outcome(folder, **settings))
    points = [
        EmergencePoint(step=step, text=step / 8, image=step / 16, gap=0.6 - step / 40)
        for step in (0, 2, 4, 8)
    ]
    learned = Emergence(
        points=points, crossings={"text": {"50": 4.0, "90": 7.25}, "image": {"50": 8.0, "90": None}},
        lag={"50": 4.0, "90": None},
    )  # fmt: skip
    written = Emergence(
        unit="facts",
        points=[
            EmergencePoint(
                step=step, text=None, image=None, gap=0.5,
                reliability={"text": 1.0, "image": 0.5}, locality={"text": 0.75},
            )
            for step in (1, 2, 4)
        ],
        crossings={},
        lag={},
    )  # fmt: skip
    report = outcome.before.gap
    still = shift_report(dict.fromkeys(CATEGORIES, 0.5), dict.fromkeys(CATEGORIES, 0.5))
    zero = replace(estimate(0.0), low=0.0, high=0.0)
    still = replace(still, gap=zero, understanding=zero, generation=zero, changed_items=0)
    assert outcome.shift is not None
    stages = [
        Stage(
            method=method,
            direction="text",
            facts=["fact-1"],
            gap=report,
            shift=outcome.shift,
            kept=[{"text": 1.0, "image": 0.5}, {"text": 0.25, "image": None}],
            quality=quality(),
            emergence=emergence,
        )
        for method, emergence in (("rome", learned), ("memit", written))
    ]
    state = ProtocolState(
        understanding=estimate(0.7),
        generation=estimate(0.5),
        gap=estimate(0.4),
        over_direct={"gap": estimate(-0.1), "generation": estimate(0.1)},
        passed={"generation": estimate(0.8)},
        agreement={"understanding": estimate(0.9)},
        alone=3,
    )
    protocol = ProtocolResult(
        name="thought", use="reason", k=4, n=18, unscored=2, before=state, after=state,
        shift={"gap": estimate(-0.05), "generation": estimate(0.02)},
    )  # fmt: skip
    row = ProtocolRow(
        protocol="thought", phase="after", item="wor-000", direction="generation", asked="how?",
        step=HOSTILE, step_picture=None, answer=None, picture=None, correct=[True, None], reason="",
    )  # fmt: skip
    changed = outcome.model_copy(
        update={
            "identity": outcome.before,
            "identity_shift": still,
            "stages": stages,
            "kept_before": [{"text": 0.0, "image": 0.0}, {"text": 0.5, "image": 0.25}],
            "protocols": [protocol],
            "protocol_rows": [row],
            "merge_error": 0.00123,
        }
    )
    changed = audited(changed)
    changed.save(folder)
    return changed


def one_sided_outcome(folder: Path) -> Outcome:
    """An edit of a model that only tells: accuracies, and no gap."""
    outcome = make_outcome(folder)
    told = OneSided("understanding", 20, 2, estimate(0.6))
    moved = DirectionShift(estimate(0.1), gained=4, lost=2, p=0.02, p_holm=0.03)
    change = OneSidedShift("understanding", 20, moved)
    assert outcome.after and outcome.shift
    none = {"categories": {}, "gap": None, "generation": None, "left_out": dict.fromkeys(CATEGORIES, 20)}
    report = replace(
        outcome.before.gap, **none, null_gap=None, null_p=None, official=None, official_note="One side only.",
        one_sided=dict.fromkeys(CATEGORIES, told),
    )  # fmt: skip
    shift = replace(outcome.shift, **none, one_sided=dict.fromkeys(CATEGORIES, change))

    def blind(phase: PhaseResult) -> PhaseResult:
        rows = [row.model_copy(update={"generation": None, "picture": None}) for row in phase.rows]
        return PhaseResult(gap=report, rows=rows)

    changed = outcome.model_copy(
        update={
            "before": blind(outcome.before),
            "after": blind(outcome.after),
            "placebo": None,
            "placebo_shift": None,
            "shift": shift,
        }
    )
    changed.save(folder)
    return changed


def hostile_outcome(folder: Path) -> Outcome:
    """Every text that a model, a benchmark or a user gives tries to break out of the page."""
    outcome = make_outcome(folder, per_category=2)
    texts = dict.fromkeys(("question", "draw_prompt", "reference", "answer", "subcategory"), HOSTILE)
    names = {"understanding_reason": HOSTILE, "category": f"a/b~c {HOSTILE}"}

    def bad(phase: PhaseResult) -> PhaseResult:
        rows = [row.model_copy(update={**texts, **names}) for row in phase.rows]
        return PhaseResult(gap=gap_report({f"a/b~c {HOSTILE}": 0.5}, rows), rows=rows)

    assert outcome.after and outcome.quality
    facts = [fact.model_copy(update={"subject": HOSTILE}) for fact in outcome.quality.facts]
    changed = outcome.model_copy(
        update={
            "before": bad(outcome.before),
            "after": bad(outcome.after),
            "shift": shift_report({f"a/b~c {HOSTILE}": 0.5}, {f"a/b~c {HOSTILE}": 0.4}),
            "placebo": None,
            "placebo_shift": None,
            "quality": outcome.quality.model_copy(update={"facts": facts}),
            "umm": HOSTILE,
            "recipe": outcome.recipe | {"name": HOSTILE, "about": HOSTILE},
            "recipe_text": HOSTILE,
            "overrides": [HOSTILE],
            "target_categories": [f"a/b~c {HOSTILE}"],
            "curves": {"loss": [(0, 1.0), (1, 0.5)]},
        }
    )
    changed.save(folder)
    return changed
