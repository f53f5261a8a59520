"""One run of a recipe: before, fit, apply, after, revert, verify, controls; then the Outcome on disk.

Knows no MLflow. Everything finished is on disk at once (responses as they come, the delta when it is
fitted), so the same command after a kill goes on where it stopped.
"""

import contextlib
import datetime
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapeval_lab.bench import Bench, hash_of_facts
from gapeval_lab.delta import WeightDelta, fingerprint, placebo
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.evaluate import Evaluation, ResponseStore, evaluate, store_key
from gapeval_lab.files import write_text
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.shift import shift_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.items import Direction, Example, Fact, png_bytes
from gapeval_lab.outcome import ItemRow, Outcome, PhaseResult
from gapeval_lab.provenance import git_revision, peak_memory_gib, versions
from gapeval_lab.quality import SIDES, ProbeState, Side, edit_quality, probes

OnStage = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]
"""`on_progress(phase, done, total)`."""

PLACEBO_SEED = 1  # added to the run's seed, so that the placebo is not drawn like the intervention


@contextlib.contextmanager
def working_folder(home: Path, key: str) -> Iterator[Path]:
    """The folder of one run, locked while the block runs; its content outlives a kill.

    Raises:
        UserError: another process runs the same thing, or the folder cannot be written.
    """
    folder = home / "work" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (home / "work" / f"{key}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"store: cannot write {folder} ({error.strerror}); set GAPEVAL_LAB_HOME to a folder that can be "
            "written"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            "run: this very recipe is running already; wait for it, or change something (--set seed=1)"
        ) from None
    with lock:
        yield folder


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
            before = self._measure("before", self.home / "cache" / "responses")
        if self.bench.intervention is None:
            return self._finish(before, None, None, None, None)
        with self._phase("fit"):
            delta = self._fit()
        self._verify("fitting")
        with self._phase("after"), delta.applied(self.root):
            after = self._measure("after", self.work / "after")
        self._verify("reverting")
        controls = self.bench.loaded.recipe.controls
        identity = sham = None
        if controls.identity:
            with self._phase("identity"), delta.scaled(0.0).applied(self.root):
                identity = self._measure("identity", self.work / "identity", facts=False)
            self._verify("the identity control")
        if controls.placebo:
            with self._phase("placebo"), placebo(delta, seed=self.seed + PLACEBO_SEED).applied(self.root):
                sham = self._measure("placebo", self.work / "placebo", facts=False)
            self._verify("the placebo control")
        return self._finish(before, after, sham, identity, delta)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        began = time.monotonic()
        yield
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
            progress=lambda done, total: self.on_progress(phase, done, total),
        )
        evaluation = Evaluation(tuple(bench.items), whole.responses, whole.verdicts)
        if not asked:
            return Measured(evaluation, None)
        return Measured(evaluation, ProbeState(whole, self._logprobs()))

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

    def _fit(self) -> WeightDelta:
        """The delta: fitted, or read from the working folder where a killed run left it."""
        file = self.work / "delta.safetensors"
        curves = self.work / "curves.json"
        if file.exists() and curves.exists():
            self.bench.curves = {
                name: [(int(step), float(value)) for step, value in points]
                for name, points in json.loads(curves.read_text(encoding="utf-8")).items()
            }
            return WeightDelta.load(file)
        found: dict[str, list[tuple[int, float]]] = {}

        def log(name: str, value: float, step: int) -> None:
            found.setdefault(name, []).append((step, value))
            if name.startswith("loss/"):
                done = len([key for key in found if key.startswith("loss/")])
                self.on_progress("fit", done, len(self.bench.facts))

        intervention = self.bench.intervention
        if intervention is None:
            raise ValueError("a recipe without an intervention has nothing to fit")
        delta: WeightDelta = intervention.fit(
            self.bench.umm,
            self.bench.facts,
            seed=self.seed,
            texts=self.bench.benchmark.training_texts(),
            log=log,
            cache=self.home / "cache" / "moments",
        )
        write_text(curves, json.dumps(found))
        delta.save(file)
        self.bench.curves = found
        return delta

    def _verify(self, what: str) -> None:
        now = fingerprint(self.root)
        if now != self.bench.weights:
            raise SafetyError(
                f"the model's weights changed by {what}: fingerprint {now[:16]}, "
                f"before {self.bench.weights[:16]}"
            )

    def _finish(
        self,
        before: Measured,
        after: Measured | None,
        sham: Measured | None,
        identity: Measured | None,
        delta: WeightDelta | None,
    ) -> Outcome:
        """Reports, pictures and the Outcome, all in the working folder."""
        self.on_stage("report")
        began = time.monotonic()
        bench, loaded = self.bench, self.bench.loaded
        phases = {"before": before, "after": after, "placebo": sham, "identity": identity}
        results = {
            name: None if measured is None else self._result(name, measured.evaluation)
            for name, measured in phases.items()
        }
        quality = None
        if after is not None and before.probes and after.probes:
            quality = edit_quality(
                bench.facts,
                before.probes,
                after.probes,
                edited=bench.intervention.direction if bench.intervention else "text",
                seed=self.seed,
            )
        first = results["before"]
        if first is None:
            raise ValueError("every run measures before")
        reverted = fingerprint(self.root)
        bench.seconds["report"] = time.monotonic() - began
        outcome = Outcome(
            run_id=f"{loaded.recipe.name}-{self.began:%Y%m%dT%H%M%S}-{bench.key[:6]}",
            kind="baseline" if delta is None else "edit",
            recipe=loaded.resolved,
            recipe_text=loaded.text,
            recipe_hash=loaded.hash,
            overrides=list(loaded.overrides),
            target_categories=sorted({fact.edit.category for fact in bench.facts}),
            direction=bench.intervention.direction if bench.intervention else "both",
            umm=bench.name,
            seed=self.seed,
            started=self.began.isoformat(timespec="seconds"),
            versions=versions(),
            git_revision=git_revision(),
            data_hash=bench.data_hash,
            facts_hash=hash_of_facts(bench.facts),
            weights_fingerprint=bench.weights,
            weights_fingerprint_reverted=None if delta is None else reverted,
            reverted=None if delta is None else reverted == bench.weights,
            before=first,
            after=results["after"],
            placebo=results["placebo"],
            identity=results["identity"],
            shift=self._shift(before, after),
            placebo_shift=self._shift(before, sham),
            identity_shift=self._shift(before, identity),
            quality=quality,
            delta_file=None if delta is None else "delta.safetensors",
            delta_norms={} if delta is None else delta.norms(),
            curves=bench.curves,
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

    def _result(self, phase: str, evaluation: Evaluation) -> PhaseResult:
        protocol = self.bench.loaded.recipe.evaluation
        report = gap_report(
            cells(self._verdicts(evaluation)),
            seed=self.seed,
            replicates=protocol.replicates,
            official=protocol.official and phase in ("before", "after"),
        )
        return PhaseResult(gap=report, rows=self._rows(phase, evaluation))

    def _shift(self, before: Measured, later: Measured | None) -> Any:
        if later is None:
            return None
        return shift_report(
            self._verdicts(before.evaluation),
            self._verdicts(later.evaluation),
            seed=self.seed,
            replicates=self.bench.loaded.recipe.evaluation.replicates,
        )

    def _rows(self, phase: str, evaluation: Evaluation) -> list[ItemRow]:
        """One row per item; pictures are written beside the outcome."""
        place = self.work / "pictures" / phase
        place.mkdir(parents=True, exist_ok=True)
        inputs = self.work / "pictures" / "input"
        inputs.mkdir(parents=True, exist_ok=True)
        rows = []
        for item in self.bench.items:
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


def archive(work: Path, place: Path) -> Path:
    """Move a finished run's folder to where it stays; responses kept for resuming are dropped."""
    for phase in ("after", "identity", "placebo"):
        shutil.rmtree(work / phase, ignore_errors=True)
    (work / "curves.json").unlink(missing_ok=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work, place)
    except OSError as error:
        raise UserError(f"--out: cannot write {place} ({error.strerror}); choose another folder") from None
    return place


def _file_name(identity: str) -> str:
    """An item's id as a file name."""
    return "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in identity)
