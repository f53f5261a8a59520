"""One run of a recipe: before, fit, apply, after, revert, verify, controls; then the Outcome on disk.

Knows no MLflow. Everything finished is on disk at once (responses as they come, the delta when it is
fitted), so the same command after a kill goes on where it stopped.
"""

import contextlib
import datetime
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapeval_lab.bench import Bench, hash_of_facts
from gapeval_lab.delta import WeightDelta, fingerprint, placebo
from gapeval_lab.delta_file import Origin, Part
from gapeval_lab.delta_measures import spectrum
from gapeval_lab.errors import SafetyError
from gapeval_lab.evaluate import Evaluation, ResponseStore, evaluate, store_key
from gapeval_lab.files import write_text
from gapeval_lab.fitting import DELTA, Curves, Fitted, fit_stage, rounding
from gapeval_lab.gap.records import GapReport
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.shift import shift_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.interfaces import ADAPTER, ENGINE_LOG, side_of
from gapeval_lab.item_rows import item_rows, reasoned_rows
from gapeval_lab.items import Direction, Example, Fact
from gapeval_lab.outcome import Outcome, PhaseResult
from gapeval_lab.outcome import Stage as StageRecord
from gapeval_lab.provenance import git_revision, peak_memory_gib, versions
from gapeval_lab.quality import SIDES, ProbeState, Side, edit_quality, held, probes
from gapeval_lab.reasoning import reason

OnStage = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]
"""`on_progress(phase, done, total)`."""

PLACEBO_SEED = 1  # added to the run's seed, so that the placebo is not drawn like the intervention
WIDEST = 2048  # side of dense terms up to which singular values are logged


@dataclass(frozen=True)
class Measured:
    """One phase: the benchmark's evaluation and, where there are facts, their probes."""

    evaluation: Evaluation
    probes: ProbeState | None


class Runner:
    """Runs the phases of one recipe in one working folder."""

    def __init__(
        self, bench: Bench, *, home: Path, work: Path, on_stage: OnStage, on_progress: OnProgress
    ) -> None:
        """See `run`."""
        self.bench = bench
        self.home = home
        self.work = work
        self.on_stage = on_stage
        self.on_progress = on_progress
        self.root = bench.umm.backbone().root
        self.seed = bench.loaded.recipe.seed
        self.began = datetime.datetime.now(datetime.UTC)

    def run(self) -> Outcome:
        """All phases, then the Outcome, saved in the working folder.

        Raises:
            SafetyError: the weights were not as before after an intervention or its revert.
        """
        with self._phase("before"):
            states = [self._measure("before", self.home / "cache" / "responses")]
        if not self.bench.stages:
            return self._finish(states, None, None, [], WeightDelta.zero())
        total, fitted, several = WeightDelta.zero(), [], len(self.bench.stages) > 1
        for number, stage in enumerate(self.bench.stages, start=1):
            tail = f" {number}" if several else ""
            place = self.work / "stages" / str(number) if several else self.work
            with self._phase(f"fit{tail}") as phase, total.applied(self.root):
                fitted.append(
                    fit_stage(
                        self.bench,
                        stage,
                        place=place,
                        home=self.home,
                        seed=self.seed,
                        progress=functools.partial(self.on_progress, phase),
                    )
                )
            self._count_watching(phase, fitted[-1].watching)
            total = total.then(fitted[-1].delta)
            self._verify("fitting")
            with self._phase(f"after{tail}") as phase, total.applied(self.root):
                states.append(self._measure(phase, self.work / phase.replace(" ", "-")))
            self._verify("reverting")
        if several:
            parts = tuple(
                Part(one.delta.digest, 1.0, f"intervention {n}") for n, one in enumerate(fitted, start=1)
            )
            origin = Origin(self.bench.weights, self.bench.direction, parts)
            total.save(self.work / DELTA, origin=origin)
        controls = self.bench.loaded.recipe.controls
        identity = sham = None
        if controls.identity:
            with self._phase("identity"), total.scaled(0.0).applied(self.root):
                identity = self._measure("identity", self.work / "identity", facts=False)
            self._verify("the identity control")
        if controls.placebo:
            with self._phase("placebo"), placebo(total, seed=self.seed + PLACEBO_SEED).applied(self.root):
                sham = self._measure("placebo", self.work / "placebo", facts=False)
            self._verify("the placebo control")
        return self._finish(states, sham, identity, fitted, total)

    def _count_watching(self, phase: str, seconds: float) -> None:
        """Measuring while a method trains is no part of its fitting."""
        if seconds:
            spent = self.bench.seconds
            spent[phase] -= seconds
            spent["emergence"] = spent.get("emergence", 0.0) + seconds

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[str]:
        self.on_stage(name)
        began = time.monotonic()
        yield name
        self.bench.seconds[name] = time.monotonic() - began

    def _measure(self, phase: str, place: Path, *, facts: bool = True) -> Measured:
        """Ask the benchmark, and the facts' probes, of the model as it is now."""
        bench = self.bench
        key = store_key(bench.umm, weights=fingerprint(self.root), seed=self.seed)
        store = ResponseStore(place / key)
        asked = probes(bench.facts) if facts else []
        whole = evaluate(
            bench.umm,
            [*bench.items, *asked],
            judge=bench.judge,
            seed=self.seed,
            store=store,
            chunk=bench.loaded.recipe.evaluation.batch,
            progress=functools.partial(self.on_progress, phase),
        )
        evaluation = Evaluation(tuple(bench.items), whole.responses, whole.verdicts)
        if not asked:
            return Measured(evaluation, None)
        protocol, reasoned = bench.loaded.recipe.evaluation, None
        if protocol.reasoning is not None:
            reasoned = reason(
                bench.umm,
                bench.facts,
                protocol.reasoning,
                judge=bench.judge,
                seed=self.seed,
                store=store,
                chunk=protocol.batch,
                progress=functools.partial(self.on_progress, phase),
            )
        return Measured(evaluation, ProbeState(whole, self._logprobs(), reasoned))

    def _logprobs(self) -> Mapping[Side, Mapping[str, float]]:
        """Teacher-forced log-probability of each fact's target, in nats."""
        import torch

        bench, found = self.bench, {}
        for side, direction in SIDES.items():
            if direction not in bench.umm.directions:
                continue
            examples = {
                fact.id: Example(fact.edit.prompt(direction), answer)
                for fact in bench.facts
                if (answer := self._target(fact, side)) is not None
            }
            if examples:
                with torch.no_grad():
                    losses = bench.umm.loss(list(examples.values()), direction)
                found[side] = dict(zip(examples, (-losses).tolist(), strict=True))
        return found

    def _target(self, fact: Fact, side: Side) -> Any:
        if side == "text":
            return fact.edit.reference_text
        return self.bench.benchmark.illustrate(fact.edit.target)

    def _verify(self, what: str) -> None:
        now = fingerprint(self.root)
        if now != self.bench.weights:
            raise SafetyError(
                f"the model's weights changed by {what}: fingerprint {now[:16]}, "
                f"before {self.bench.weights[:16]}"
            )

    def _finish(
        self,
        states: Sequence[Measured],
        sham: Measured | None,
        identity: Measured | None,
        fitted: Sequence[Fitted],
        delta: WeightDelta,
    ) -> Outcome:
        """Reports, pictures and the Outcome, all in the working folder."""
        self.on_stage("report")
        began = time.monotonic()
        bench, loaded = self.bench, self.bench.loaded
        before, after = states[0], states[-1] if bench.stages else None
        phases = {"before": before, "after": after, "placebo": sham, "identity": identity}
        results = {
            name: None if measured is None else self._result(name, measured.evaluation)
            for name, measured in phases.items()
        }
        quality, reasoned = None, []
        if after is not None and before.probes and after.probes:
            reasoned += reasoned_rows("before", bench.facts, before.probes, work=self.work)
            reasoned += reasoned_rows("after", bench.facts, after.probes, work=self.work)
            quality = edit_quality(
                bench.facts, before.probes, after.probes, edited=bench.direction, seed=self.seed
            )
        stages, kept_before = self._stages(states, fitted)
        first = results["before"]
        if first is None:
            raise ValueError("every run measures before")
        reverted = fingerprint(self.root)
        bench.seconds["report"] = time.monotonic() - began
        outcome = Outcome(
            run_id=f"{loaded.recipe.name}-{self.began:%Y%m%dT%H%M%S}-{bench.key[:6]}",
            kind=bench.kind,
            recipe=loaded.resolved,
            recipe_text=loaded.text,
            recipe_hash=loaded.hash,
            overrides=list(loaded.overrides),
            target_categories=sorted({fact.edit.category for fact in bench.facts}),
            direction=bench.direction,
            umm=bench.name,
            seed=self.seed,
            started=self.began.isoformat(timespec="seconds"),
            versions=versions(),
            git_revision=git_revision(),
            data_hash=bench.data_hash,
            facts_hash=hash_of_facts(bench.facts),
            weights_fingerprint=bench.weights,
            weights_fingerprint_reverted=reverted if fitted else None,
            reverted=reverted == bench.weights if fitted else None,
            before=first,
            after=results["after"],
            placebo=results["placebo"],
            identity=results["identity"],
            shift=self._shift(before, after),
            placebo_shift=self._shift(before, sham),
            identity_shift=self._shift(before, identity),
            quality=quality,
            delta_file=DELTA if fitted else None,
            delta_address=delta.digest if fitted else None,
            delta_norms=delta.norms(),
            delta_spectrum=spectrum(delta, widest=WIDEST),
            stages=stages,
            kept_before=kept_before,
            merge_error=rounding(delta, self.root) if fitted else None,
            adapter=ADAPTER if (self.work / ADAPTER).is_dir() else None,
            engine_logs=[
                file.relative_to(self.work).as_posix()
                for pattern in (ENGINE_LOG, f"stages/*/{ENGINE_LOG}")
                for file in sorted(self.work.glob(pattern))
            ],
            emergence=fitted[0].emergence if len(fitted) == 1 else None,
            reasoned=reasoned,
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
        )
        write_text(self.work / "recipe.yaml", loaded.text)
        outcome.save(self.work)
        return outcome

    def _verdicts(self, evaluation: Evaluation) -> list[ItemVerdict]:
        return [
            ItemVerdict(
                item.category,
                evaluation.correct(item, Direction.UNDERSTANDING),
                evaluation.correct(item, Direction.GENERATION),
            )
            for item in self.bench.items
        ]

    def _stages(
        self, states: Sequence[Measured], fitted: Sequence[Fitted]
    ) -> tuple[list[StageRecord], list[dict[Side, float | None]]]:
        """Of a recipe with several interventions: what each did, and what each fact set kept."""
        stages = self.bench.stages
        if len(stages) < 2:
            return [], []

        def kept(state: Measured) -> list[dict[Side, float | None]]:
            return [held(stage.facts, _probed(state)) for stage in stages]

        records = [
            StageRecord(
                method=node.use,
                direction=side_of(stage.intervention.direction),
                facts=[fact.id for fact in stage.facts],
                gap=self._report(state.evaluation, official=False),
                shift=self._shift(states[0], state),
                kept=kept(state),
                quality=edit_quality(
                    stage.facts,
                    _probed(earlier),
                    _probed(state),
                    edited=side_of(stage.intervention.direction),
                    seed=self.seed,
                ),
                emergence=one.emergence,
            )
            for stage, node, one, earlier, state in zip(
                stages, self.bench.loaded.recipe.interventions, fitted, states, states[1:], strict=False
            )
        ]
        return records, kept(states[0])

    def _report(self, evaluation: Evaluation, *, official: bool) -> GapReport:
        return gap_report(
            cells(self._verdicts(evaluation)),
            seed=self.seed,
            replicates=self.bench.loaded.recipe.evaluation.replicates,
            official=official,
        )

    def _result(self, phase: str, evaluation: Evaluation) -> PhaseResult:
        official = self.bench.loaded.recipe.evaluation.official and phase in ("before", "after")
        report = self._report(evaluation, official=official)
        return PhaseResult(gap=report, rows=item_rows(phase, self.bench.items, evaluation, work=self.work))

    def _shift(self, before: Measured, later: Measured | None) -> Any:
        if later is None:
            return None
        return shift_report(
            self._verdicts(before.evaluation),
            self._verdicts(later.evaluation),
            seed=self.seed,
            replicates=self.bench.loaded.recipe.evaluation.replicates,
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


def run(
    bench: Bench,
    *,
    home: Path,
    work: Path,
    on_stage: OnStage,
    on_progress: OnProgress,
) -> Outcome:
    """Run a recipe in its (locked) working folder; an outcome that lies there already is returned.

    Args:
        bench: from `load_bench`.
        home: `mlruns/`: caches that runs share.
        work: from `working_folder`.
        on_stage: told when a phase begins.
        on_progress: told how far a phase is.
    """
    finished = work / "outcome.json"
    if finished.exists():
        return Outcome.load(finished)
    runner = Runner(bench, home=home, work=work, on_stage=on_stage, on_progress=on_progress)
    return runner.run()
