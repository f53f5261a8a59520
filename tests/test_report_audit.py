"""The audit and the plan as people read them: rows, the warning, the commands, MLflow's numbers."""

import io
import json
import re
from dataclasses import replace

import pytest
from factories import CATEGORIES, make_outcome, without_after
from rich.console import Console
from typer.testing import CliRunner

from gapeval_lab import cli
from gapeval_lab.auditing import audited
from gapeval_lab.errors import UserError
from gapeval_lab.gap.power import Budget
from gapeval_lab.gap.records import Audit, Dispute, Estimate, Variant
from gapeval_lab.outcome import Outcome, PhaseResult
from gapeval_lab.planning import (
    Basis,
    basis_of_accuracies,
    basis_of_run,
    cells_of_accuracies,
    correlations,
    plan,
)
from gapeval_lab.report import draw_outcome
from gapeval_lab.report_audit import (
    audit_data,
    audit_notes,
    category_data,
    detectable_data,
    detectable_note,
    estimators_note,
    firm,
)
from gapeval_lab.report_plan import draw_plan, plan_columns, plan_data
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_tables import pairs, tables
from gapeval_lab.tracking_values import note, tags

OURS = Variant("ours", "estimator", 0.6, 0.5, -0.1, {"reasoning": 0.6}, {"reasoning": 0.5})
PUBLISHED = Variant("published", "estimator", 0.6, 0.59, -0.01, {}, {}, band=0.03)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    made = make_outcome(tmp_path_factory.mktemp("outcome"), per_category=12)
    return audited(made.model_copy(update={"before": banded(made.before), "after": banded(made.after)}))


def banded(phase: PhaseResult) -> PhaseResult:
    """With the rounding of each category known, so that the published model is not fitted for it."""
    official = phase.gap.official
    known = replace(official, bands=dict.fromkeys(official.gaps, 0.01))
    return phase.model_copy(update={"gap": replace(phase.gap, official=known)})


def printed(what) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def with_audit(outcome: Outcome, audit: Audit, *, low: float, high: float) -> Outcome:
    shift = outcome.shift.__class__(**{**vars(outcome.shift), "gap": Estimate((low + high) / 2, low, high)})
    return outcome.model_copy(update={"audit": audit, "shift": shift})


def test_a_stored_run_is_audited_and_kept(outcome, tmp_path) -> None:
    assert outcome.audit is not None and outcome.detectable is not None
    outcome.save(tmp_path)
    assert Outcome.load(tmp_path) == outcome
    labels = [row.label for row in audit_data(outcome)]
    assert labels[:3] == ["ours", "published", "published (converged)"] and len(labels) >= 12
    assert "ours with unscored right or wrong" in labels  # an item of the first category lacks a verdict
    assert [row.label for row in category_data(outcome)][0] == "ours"
    older = json.loads(outcome.model_dump_json())
    del older["audit"], older["detectable"], older["before"]["gap"]["official"]["bands"]
    assert Outcome.model_validate(older).audit is None


def test_the_warning_names_who_says_what(outcome) -> None:
    dispute = Dispute("mean", ["published", "ours with items pooled"], ["ours", "published (converged)"])
    found = with_audit(outcome, Audit([OURS, PUBLISHED], "disagree", [dispute]), low=-0.1, high=-0.02)
    assert estimators_note(found) == (
        "Whether the gap closed depends on the estimator: closed by ours, published (converged); wider by "
        "published, ours with items pooled."
    )
    assert firm(found)
    several = [Dispute(name, ["ours"], ["published"]) for name in (*CATEGORIES, "more")]
    some = with_audit(outcome, Audit([OURS], "disagree", several), low=-0.1, high=-0.02)
    text = audit_notes(some)[0]
    assert text.startswith("The sign of a category's shift depends on the estimator: world knowledge (closed")
    assert text.endswith("; and 2 more.")


def test_what_the_run_does_not_claim_is_one_sentence_and_the_audit_has_it_all(outcome) -> None:
    dispute = Dispute("mean", ["published"], ["ours"])
    audit = Audit([OURS, PUBLISHED], "disagree", [dispute], ["mean"])
    loose = with_audit(outcome, audit, low=-0.1, high=0.02)
    assert not firm(loose)
    assert estimators_note(loose) == (
        "A shift this small has no sign on which all ways of computing the gap agree; see `gapeval-lab audit "
        f"{outcome.run_id}`."
    )
    whole = audit_notes(loose)
    assert "closed by ours; wider by published. The published estimator cannot tell" in whole[0]
    assert "The interval of our own shift, −0.100 to +0.020, holds 0" in whole[0]
    of_category = Audit([OURS], "disagree", [Dispute("nowhere", ["ours"], ["published"])])
    text = estimators_note(with_audit(outcome, of_category, low=-0.1, high=-0.02))
    assert text.startswith("Ways of computing the gap differ on the sign of a category's shift that is too")
    unsure = with_audit(
        outcome, Audit([OURS, PUBLISHED], "within rounding", [], ["mean"]), low=-0.1, high=0.1
    )
    assert estimators_note(unsure) == ""  # neither claims anything
    claimed = with_audit(outcome, audit, low=-0.1, high=-0.02)
    assert firm(claimed) and whole[0].startswith(estimators_note(claimed))


def test_within_rounding_is_said_and_agreement_is_silent(outcome) -> None:
    rounding = with_audit(
        outcome, Audit([OURS, PUBLISHED], "within rounding", [], ["mean"]), low=-0.1, high=-0.02
    )
    text = estimators_note(rounding)
    assert text == "The published estimator cannot tell: its shift −0.010 is within its rounding, 0.030."
    assert audit_data(rounding)[1].cells == ("0.600", "0.590", "−0.010 ± 0.030", "cannot tell")
    quiet = with_audit(outcome, Audit([OURS], "agree"), low=-0.1, high=-0.02)
    assert estimators_note(quiet) == ""
    assert audit_notes(quiet) == ["Every way of computing the gap says the same about every shift."]
    none = replace(OURS, shift=0.0)
    assert audit_data(with_audit(outcome, Audit([none], "agree"), low=0, high=0))[0].cells[-1] == "no shift"
    assert [tags(one).get("gapeval.estimators") for one in (rounding, quiet)] == ["within rounding", "agree"]


def test_it_stands_under_the_headline_and_in_mlflow_s_note(outcome) -> None:
    dispute = Dispute("mean", ["published"], ["ours"])
    found = with_audit(outcome, Audit([OURS, PUBLISHED], "disagree", [dispute]), low=-0.1, high=-0.02)
    lines = printed(draw_outcome(found)).splitlines()
    assert lines[1].rstrip() == estimators_note(found)
    assert note(found, links={}).splitlines()[2] == estimators_note(found)
    assert "Smallest shift this run could see, 80 % power" in printed(draw_outcome(found))


def test_mlflow_has_few_numbers_and_the_tables_the_rest(outcome) -> None:
    found = scalars(outcome)
    shifts = [one.shift for one in outcome.audit.variants if one.shift is not None]
    assert found["audit/lowest"] == round(min(shifts), 4) and found["audit/highest"] == round(max(shifts), 4)
    converged = next(one for one in outcome.audit.variants if one.name == "published (converged)")
    assert found["audit/converged"] == round(converged.shift, 4)
    kept = {key for key in found if key.startswith(("audit/", "detectable/"))}
    assert len(kept) <= 6
    made = {table.name: table for table in tables(outcome, pairs(outcome))}
    assert len(made["12_audit"].rows) == len(outcome.audit.variants)
    assert {len(row) for row in made["12_audit"].rows} == {len(made["12_audit"].columns)}
    assert [row[0] for row in made["13_detectable"].rows] == [*CATEGORIES, "mean"]
    assert {len(row) for row in made["13_detectable"].rows} == {len(made["13_detectable"].columns)}


def test_smallest_shifts_are_rows_with_their_reasons(outcome) -> None:
    rows = detectable_data(outcome)
    assert [row.label for row in rows][-1] == "mean" and len(rows) == 5
    assert "Flips beside the effect: its own that went against its shift" in detectable_note(outcome)
    assert "p under 0.0125" in detectable_note(outcome)
    first = {
        name: replace(one, closing=None, widening=0.25) for name, one in outcome.detectable.categories.items()
    }
    found = replace(outcome.detectable, categories=first, closing=None, widening=0.2, gap=0.2)
    told = outcome.model_copy(update={"detectable": found})
    assert [row.cells[-2:] for row in detectable_data(told)] == [("none", "+0.250")] * 4 + [
        ("none", "+0.200")
    ]
    assert "not even one that closes wholly would be told" in detectable_note(told)


def test_an_older_record_has_one_size_of_the_gap_s_shift(outcome) -> None:
    stored = json.loads(outcome.model_dump_json())["detectable"]
    for one in (stored, *stored["categories"].values()):
        del one["closing"], one["widening"]
        one["gap"] = 0.125
    found = outcome.model_validate({**outcome.model_dump(mode="json"), "detectable": stored})
    assert {row.cells[-2:] for row in detectable_data(found)} == {("±0.125", "±0.125")}
    assert "2.8 standard errors" in detectable_note(found)


def test_a_run_without_an_after_is_audited_as_a_state(outcome) -> None:
    alone = audited(without_after(outcome))
    assert alone.audit.said is None and alone.detectable is None and detectable_data(alone) == []
    assert estimators_note(alone) == "" and category_data(alone) == []
    assert {row.cells[2] for row in audit_data(alone)} == {""}
    assert "gapeval.estimators" not in tags(alone)
    printed(draw_outcome(alone))


def test_a_plan_from_accuracies_and_one_from_a_run(few, outcome) -> None:
    given = dict(told=None, drawn=None, correlation=None, changed=None, source="tinyworld")
    basis = basis_of_accuracies(**given, items=(480, 448), categories=2)
    found = plan(basis, detect=0.15, power=0.8, alpha=0.05)
    assert [(one.test, one.of) for one in found.answers] == [
        ("McNemar", "understanding"),
        ("McNemar", "generation"),
        ("Gap Score", "one category"),
        ("Gap Score", "mean over 2"),
    ]
    for answer in found.answers:
        sizes = [n for n in answer.items.values() if n is not None]
        assert sizes == sorted(sizes, reverse=True) and list(answer.items) == [0.02, 0.15, 0.3]
        assert 0.8 <= answer.power < 0.9 and 0 < answer.detects < 0.2 and not answer.reasons
    assert [answer.way for answer in found.answers] == [None, None, "closes", "closes"]
    assert plan_columns(found, "McNemar")[-2:] == ["power at 0.15", "448 items tell"]
    assert plan_columns(found, "Gap Score")[:2] == ["gap before", "shift"]
    assert len(plan_data(found, "McNemar")) == len(plan_data(found, "Gap Score")) == 2
    assert "0.8 told, 0.6 drawn, correlation 0.3 (defaults)" in found.assumed[1]
    own = basis_of_run(outcome, None)
    cells = outcome.before.gap.categories["reasoning"].cells
    assert own.cells["reasoning"][0] == (cells.both + 0.25) / (cells.n + 1) and own.items[-1] == cells.n
    placebo, moved = (s.categories.values() for s in (outcome.placebo_shift, outcome.shift))
    flipped = sum(c.generation.gained + c.generation.lost for c in placebo) / 2 / sum(c.n for c in placebo)
    against = sum(min(c.generation.gained, c.generation.lost) for c in moved) / sum(c.n for c in moved)
    assert own.noise[1] == max(flipped, against) and "placebo" in own.notes[1]
    assert basis_of_run(outcome, 0.08).noise == (0.04, 0.04)


def test_what_cannot_be_is_said_with_its_reason(few, monkeypatch) -> None:
    monkeypatch.setattr("gapeval_lab.planning.SIZES", ())
    even = Basis(
        "here", {"near": (0.6, 0.12, 0.13, 0.15), "far": (0.4, 0.4, 0.05, 0.15)}, (0, 0), (20, 20), 2, ()
    )
    found = plan(even, detect=0.3, power=0.8, alpha=0.05)
    near, far, mean = found.answers[2:]
    assert (near.way, far.way, mean.way) == ("widens", "closes", "closes")
    assert near.items[0.3] and far.items[0.3] and near.gap < 0.1
    closing = plan(even, detect=0.3, power=0.8, alpha=0.05, way="closes").answers[2]
    assert (
        closing.items[0.3] is None
        and closing.reasons[0.3] == f"it cannot close by more than there is, {near.gap:.3f}"
    )
    text = printed(draw_plan(plan(even, detect=0.9, power=0.8, alpha=0.05)))
    assert "cannot: understanding, 0.9: no accuracy has room for so large a shift: 0.800 at most." in text
    assert re.search(r"cannot: far, (0.3, )?0.9: these moves shift it by 0.\d+ at most\.", text)
    assert "none: the items at hand tell no shift" in text
    mixed = plan(even, detect=0.3, power=0.8, alpha=0.05, moves=(2, 0)).answers[-1]
    assert "close some gaps and widen others" in mixed.reasons[0.3]


def test_cells_keep_the_accuracies_and_refuse_what_cannot_be() -> None:
    cells = cells_of_accuracies(0.8, 0.6, 0.3)
    assert sum(cells) == pytest.approx(1) and cells[0] + cells[1] == pytest.approx(0.8)
    assert cells[0] + cells[2] == pytest.approx(0.6)
    assert correlations(0.5, 0.5) == pytest.approx((-1, 1))
    with pytest.raises(UserError, match="--correlation: 0.9 cannot be.*between -0.21 and 0.5$"):
        cells_of_accuracies(0.9, 0.7, 0.9)


@pytest.fixture
def few(monkeypatch) -> None:
    """Fewer drawn runs than a person waits for."""
    monkeypatch.setattr("gapeval_lab.gap.power.NEAR", Budget(120, 3))
    monkeypatch.setattr("gapeval_lab.planning.CAREFUL", Budget(300, 3))
    monkeypatch.setattr("gapeval_lab.planning.QUICK", Budget(200, 3))
    monkeypatch.setattr("gapeval_lab.planning.SIZES", (0.02, 0.3))


@pytest.fixture
def home(outcome, tmp_path, monkeypatch):
    folder = tmp_path / "mlruns" / "outcomes" / "run-1"
    folder.mkdir(parents=True)
    outcome.save(folder)
    monkeypatch.setattr("gapeval_lab.planning.SIZES", ())
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def run(*words: str) -> str:
    result = CliRunner().invoke(cli.app, words)
    if result.exception:
        raise result.exception
    return result.output


def test_the_commands_print_and_write(home, outcome, request) -> None:
    file = home / "audit.json"
    text = run("audit", "last", "--json", str(file))
    assert "published (converged)" in text and "Smallest shift this run could see" in text
    stored = json.loads(outcome.model_dump_json(include={"run_id", "audit", "detectable"}))
    assert json.loads(file.read_text()) == stored  # computed anew, the same
    request.getfixturevalue("few")  # draws less, from here on
    planned = home / "plan.json"
    text = run(
        "plan",
        "--detect",
        "0.2",
        "--told",
        "0.7",
        "--items",
        "50",
        "--categories",
        "1",
        "--json",
        str(planned),
    )
    assert "1 category, 50 items each" in text and "0.7 told" in text
    stored = json.loads(planned.read_text())
    needed = stored["answers"][0]["items_per_category_by_shift"]["0.2"]
    assert re.search(rf"understanding .* {needed} ", text)
    assert stored["answers"][2]["at_asked_shift"]["power"] >= 0.8
    assert "cells before: the run's own" in run("plan", "--from", "run-1", "--detect", "0.2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "--detect", "2"), "--detect: 2 does not lie between 0 and 1"),
        (("plan", "--power", "0.01"), "--power: 0.01 is no more than"),
        (("plan", "--told", "1"), "--told: 1 is no accuracy"),
        (("plan", "--moves", "up:down"), "--moves: 'up:down' is not two of"),
        (("plan", "--from", "run-1", "--told", "0.5"), "--told: --from takes it from the run"),
        (("plan", "--changed", "1.2"), "--changed: 1.2 is no share"),
        (("plan", "--way", "up"), "--way: 'up' is neither closes nor widens"),
        (("plan", "--way", "closes", "--moves", "both:neither"), "--way: --moves says already"),
        (("plan", "--categories", "0"), "--categories: 0 cannot be"),
        (("audit", "last", "--steps", "a,b"), "--steps: 'a,b' is no list"),
        (("audit", "last", "--steps", "0"), "--steps: '0' is no list"),
        (("audit", "nothing"), "run: 'nothing' is no finished run"),
    ],
)
def test_bad_input_is_one_message(home, words, message) -> None:
    with pytest.raises(UserError) as caught:
        run(*words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
