"""An Outcome, made of what was measured. Runs nothing and changes no model.

A trial's record is leaner than a run's: trials come in hundreds and each can be run again from its
recipe, so neither pictures nor the change of the weights stay with it, and of several interventions
the last state alone is measured.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gapeval_lab.bench import Bench, hash_of_facts
from gapeval_lab.delta import WeightDelta
from gapeval_lab.delta_measures import spectrum
from gapeval_lab.evaluate import Evaluation
from gapeval_lab.fitting import DELTA, Curves, Fitted, rounding
from gapeval_lab.gap.audit import audit
from gapeval_lab.gap.detectable import detectable
from gapeval_lab.gap.one_sided import state_report, state_shift
from gapeval_lab.gap.records import GapReport, ShiftReport
from gapeval_lab.inputs import keep
from gapeval_lab.interfaces import ADAPTER, ENGINE_LOG, side_of
from gapeval_lab.item_rows import item_rows, reasoned_rows
from gapeval_lab.measuring import Measured
from gapeval_lab.outcome import Outcome, PhaseResult
from gapeval_lab.outcome import Stage as StageRecord
from gapeval_lab.protocol_record import protocol_results, protocol_rows, verdicts
from gapeval_lab.provenance import code_hash, git_diff, git_revision, machine, peak_memory_gib, versions
from gapeval_lab.quality import ProbeState, Side, edit_quality, held

WIDEST = 2048  # side of dense terms up to which singular values are logged


@dataclass(frozen=True)
class Course:
    """What happened in a run.

    Attributes:
        began: when, UTC.
        states: before, then after each intervention; of a trial, before and after all of them.
        fitted: what each intervention gave.
        delta: all of it together.
        placebo, identity: the controls, where they were measured.
        known: results that were recorded before.
    """

    began: datetime.datetime
    states: Sequence[Measured]
    fitted: Sequence[Fitted] = ()
    delta: WeightDelta = field(default_factory=WeightDelta.zero)
    placebo: Measured | None = None
    identity: Measured | None = None
    known: Mapping[str, PhaseResult] = field(default_factory=dict)


def record(bench: Bench, course: Course, *, weights: str, work: Path, trial: bool = False) -> Outcome:
    """Reports and rows of what was measured; pictures go into the working folder, the Outcome does not.

    Args:
        bench: what was measured with, and the seconds of its phases.
        course: what was measured.
        weights: the fingerprint of the model now that everything was taken back.
        work: the working folder.
        trial: whether it is one trial of a search.

    A run of which the state before alone is measured yet has a record, too: what its baseline's takes.
    """
    loaded, seed, fitted = bench.loaded, bench.loaded.recipe.seed, course.fitted
    first, after = course.states[0], course.states[-1] if len(course.states) > 1 else None
    lean = trial or (after is None and bool(bench.stages))
    phases = {"before": first, "after": after, "placebo": course.placebo, "identity": course.identity}
    results = {
        name: course.known.get(name)
        or phase_result(bench, name, measured.evaluation, pictures=None if trial else work)
        for name, measured in phases.items()
        if measured is not None
    }
    quality, reasoned = None, []
    if after is not None and first.probes and after.probes:
        if not trial:
            reasoned += reasoned_rows("before", bench.facts, first.probes, work=work)
            reasoned += reasoned_rows("after", bench.facts, after.probes, work=work)
        quality = edit_quality(bench.facts, first.probes, after.probes, edited=bench.direction, seed=seed)
    protocols = [] if lean else protocol_results(bench, first, after)
    protocol_rows_of = []
    if protocols:
        protocol_rows_of += protocol_rows("before", first, work=work)
        protocol_rows_of += protocol_rows("after", after, work=work) if after else []
    stages, kept_before = _stages(bench, course)
    shift = _shift(bench, first, after) if after else None
    placebo_shift = _shift(bench, first, course.placebo) if course.placebo else None
    return Outcome(
        run_id=f"{loaded.recipe.name}-{course.began:%Y%m%dT%H%M%S}-{bench.key[:6]}",
        kind="trial" if trial else bench.kind,
        recipe=loaded.resolved,
        recipe_text=loaded.text,
        recipe_hash=loaded.hash,
        overrides=list(loaded.overrides),
        target_categories=targets(bench),
        direction=bench.direction,
        umm=bench.name,
        seed=seed,
        started=course.began.isoformat(timespec="seconds"),
        versions=versions(),
        git_revision=git_revision(),
        data_hash=bench.data_hash,
        facts_hash=hash_of_facts(bench.facts),
        weights_fingerprint=bench.weights,
        weights_fingerprint_reverted=weights if fitted else None,
        reverted=weights == bench.weights if fitted else None,
        before=results["before"],
        after=results.get("after"),
        placebo=results.get("placebo"),
        identity=results.get("identity"),
        shift=shift,
        placebo_shift=placebo_shift,
        identity_shift=_shift(bench, first, course.identity) if course.identity else None,
        quality=quality,
        delta_file=DELTA if fitted and not trial else None,
        delta_address=course.delta.digest if fitted else None,
        delta_norms=course.delta.norms(),
        delta_spectrum=spectrum(course.delta, widest=0 if trial else WIDEST),
        stages=stages,
        kept_before=kept_before,
        merge_error=rounding(course.delta, bench.umm.backbone().root) if fitted else None,
        adapter=ADAPTER if (work / ADAPTER).is_dir() and not trial else None,
        engine_logs=[
            file.relative_to(work).as_posix()
            for pattern in (ENGINE_LOG, f"stages/*/{ENGINE_LOG}")
            for file in sorted(work.glob(pattern))
        ],
        emergence=fitted[0].emergence if len(fitted) == 1 else None,
        reasoned=reasoned,
        protocols=protocols,
        protocol_rows=protocol_rows_of,
        audit=None
        if lean
        else audit(
            verdicts(first.evaluation),
            verdicts(after.evaluation) if after else None,
            official_before=results["before"].gap.official,
            official_after=results["after"].gap.official if after else None,
            seed=seed,
        ),
        detectable=detectable(results["before"].gap, shift, placebo_shift) if shift and not trial else None,
        curves=_joined(fitted),
        seconds={name: round(value, 3) for name, value in bench.seconds.items()},
        peak_memory_gib=round(peak_memory_gib(), 3),
        facts=[
            {
                "id": fact.id,
                "subject": fact.subject,
                "relation": fact.relation,
                "target_true": fact.target_true,
                "target_new": fact.target_new,
                "split": fact.split,
            }
            for fact in bench.facts
        ],
        git_diff=git_diff(),
        code_hash=code_hash(),
        machine=machine(),
        inputs=keep(bench.inputs, None if lean else work),
        model_settings=bench.umm.settings(),
        judge_settings=bench.judge.settings(),
        reproduces=bench.reproduces,
    )


def phase_result(bench: Bench, phase: str, evaluation: Evaluation, *, pictures: Path | None) -> PhaseResult:
    """The report and the rows of one state; its pictures go into a folder, where one is given."""
    report = _report(bench, evaluation, official=phase in ("before", "after"))
    return PhaseResult(gap=report, rows=item_rows(phase, bench.items, evaluation, work=pictures))


def targets(bench: Bench) -> list[str]:
    """The categories that the facts belong to."""
    return sorted({fact.edit.category for fact in bench.facts})


def _stages(bench: Bench, course: Course) -> tuple[list[StageRecord], list[dict[Side, float | None]]]:
    """What each of several interventions did, and what each fact set kept; nothing of a single one."""
    stages, states, seed = bench.stages, course.states, bench.loaded.recipe.seed
    if len(states) < 3:
        return [], []

    def kept(state: Measured) -> list[dict[Side, float | None]]:
        return [held(stage.facts, _probed(state)) for stage in stages]

    records = [
        StageRecord(
            method=node.use,
            direction=side_of(stage.intervention.direction),
            facts=[fact.id for fact in stage.facts],
            gap=_report(bench, state.evaluation, official=False),
            shift=_shift(bench, states[0], state),
            kept=kept(state),
            quality=edit_quality(
                stage.facts,
                _probed(earlier),
                _probed(state),
                edited=side_of(stage.intervention.direction),
                seed=seed,
            ),
            emergence=one.emergence,
        )
        for stage, node, one, earlier, state in zip(
            stages, bench.loaded.recipe.interventions, course.fitted, states, states[1:], strict=False
        )
    ]
    return records, kept(states[0])


def _report(bench: Bench, evaluation: Evaluation, *, official: bool) -> GapReport:
    protocol = bench.loaded.recipe.evaluation
    return state_report(
        verdicts(evaluation),
        seed=bench.loaded.recipe.seed,
        replicates=protocol.replicates,
        official=official and protocol.official,
    )


def _shift(bench: Bench, before: Measured, later: Measured) -> ShiftReport:
    return state_shift(
        verdicts(before.evaluation),
        verdicts(later.evaluation),
        seed=bench.loaded.recipe.seed,
        replicates=bench.loaded.recipe.evaluation.replicates,
    )


def _probed(state: Measured) -> ProbeState:
    if state.probes is None:
        raise ValueError("facts are asked before and after every intervention")
    return state.probes


def _joined(fitted: Sequence[Fitted]) -> Curves:
    """The curves of all stages, one after the other under the same names."""
    found: Curves = {}
    for one in fitted:
        ends = {name: points[-1][0] + 1 for name, points in found.items()}
        for name, points in one.curves.items():
            start = ends.get(name, 0)
            found.setdefault(name, []).extend((start + step, value) for step, value in points)
    return found
