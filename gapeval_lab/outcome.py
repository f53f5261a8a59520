"""The record of one run of a recipe. Written to disk before anything else hears of it.

Holds plain values only: reports read an Outcome, never a live model. Pictures lie beside it,
under `pictures/<phase>/<item id>.png`.
"""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gapeval_lab.gap.records import Audit, Detectable, Estimate, GapReport, ShiftReport

Phase = Literal["before", "after", "placebo", "identity"]


class Record(BaseModel):
    """Base of every record: frozen, nothing extra."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ItemRow(Record):
    """One item in one phase: what was asked, answered, and judged."""

    id: str
    category: str
    subcategory: str
    question: str
    draw_prompt: str
    reference: str
    answer: str | None
    picture: str | None  # file name, relative to the outcome's folder
    understanding: bool | None
    generation: bool | None
    understanding_reason: str = ""
    generation_reason: str = ""
    input_picture: str | None = None
    tags: dict[str, str] = {}


class PhaseResult(Record):
    """One measurement of the whole benchmark."""

    gap: GapReport
    rows: list[ItemRow]


class QualityCell(Record):
    """One edit-quality measure in one direction: share of probes that pass, per state.

    For locality, `before` is 1.0 by definition and `after` is the share of unchanged answers.
    """

    before: Estimate
    after: Estimate
    n: int


class FactQuality(Record):
    """What became of one fact: share of probes passed after the edit, text and image apart."""

    id: str
    subject: str
    relation: str
    target_true: str
    target_new: str
    reliability: dict[Literal["text", "image"], float | None]
    generalisation: dict[Literal["text", "image"], float | None]
    locality: dict[Literal["text", "image"], float | None]
    portability: dict[Literal["text", "image"], float | None]
    logprob_before: dict[Literal["text", "image"], float | None]
    logprob_after: dict[Literal["text", "image"], float | None]


class ProtocolQuality(Record):
    """What became of the edited facts where they were drawn by one protocol; see reasoning.py.

    Attributes:
        name: "direct", or the recipe's name for it. All of a run's are measured on the same probes.
        cells: measure -> shares of its drawings, as in `EditQuality`; one that was not scored is missing.
        over_direct: measure -> this share minus that of drawing directly, after, paired by fact; none
            for "direct" itself.
        unwritten: drawings after the intervention for which the model had written nothing, so that they
            were asked for directly.
    """

    name: str
    cells: dict[str, QualityCell]
    over_direct: dict[str, Estimate] = {}
    unwritten: int = 0


class DrawnBy(Record):
    """A drawing of a probe by one protocol: with which prompt, the verdict, and why."""

    prompt: str
    correct: bool | None
    reason: str
    picture: str | None  # file name, relative to the outcome's folder


class ReasonedRow(Record):
    """One probe of a fact in one state: what the model wrote about it, and its drawing by each protocol."""

    fact: str
    probe: str
    phase: Literal["before", "after"]
    written: str
    drawn: dict[str, DrawnBy]


REPORT = "report.html"
"""The page of a run, in its outcome's folder."""
INPUTS = "inputs"
"""The folder, in an outcome's folder, of copies of what the run read."""


class Input(Record):
    """A file or folder that a run read beside its benchmark, its model and its judge.

    Attributes:
        name: as the recipe names it; of what an intervention reads itself, the recipe's field.
        sha256: of its bytes; of a folder, over the names and bytes that were read.
        file: its copy, relative to the outcome's folder; None where none is kept (trials, very large ones).
    """

    name: str
    sha256: str
    file: str | None = None


QUALITIES = ("reliability", "generalisation", "locality", "portability")
"""The shares of `EditQuality`, in the order in which they are told."""


class ProtocolState(Record):
    """A benchmark asked by one protocol, in one state of the model; None where it was not scored.

    Attributes:
        understanding, generation, gap: means over categories; of several samples, their means.
        over_direct: each minus what the direct way gives on the same items, paired.
        passed: side -> pass@k, of several samples alone.
        agreement: side -> share of answers of which the model's own verdict is the judge's; of a model that
            judges itself alone.
        alone: prompts that could not be asked so, and were asked directly.
    """

    understanding: Estimate | None
    generation: Estimate | None
    gap: Estimate | None
    over_direct: dict[Literal["understanding", "generation", "gap"], Estimate] = {}
    passed: dict[Literal["understanding", "generation"], Estimate] = {}
    agreement: dict[Literal["understanding", "generation"], Estimate] = {}
    alone: int = 0


class ProtocolResult(Record):
    """A benchmark asked by one protocol; see protocols.py.

    Attributes:
        name: the recipe's; use: which kind.
        k: samples.
        n: items scored in every sample of every state, directly too, on both sides, or on one of them
            where none is scored on both; unscored: the rest.
        shift: after minus before, paired.
    """

    name: str
    use: str
    k: int
    n: int
    unscored: int
    before: ProtocolState
    after: ProtocolState | None = None
    shift: dict[Literal["understanding", "generation", "gap"], Estimate] = {}


class ProtocolRow(Record):
    """One item in one direction, asked by a protocol: the way there, the last prompt, what came of it.

    `asked` is empty for samples; where the model judges itself it is that question, and `step` its reply.
    """

    protocol: str
    phase: Literal["before", "after"]
    item: str
    direction: Literal["understanding", "generation"]
    asked: str
    step: str
    step_picture: str | None
    answer: str | None
    picture: str | None
    correct: list[bool | None]
    reason: str


class EditQuality(Record):
    """Cross-modal quality of an intervention. Text and image never share a name."""

    reliability: dict[Literal["text", "image"], QualityCell]
    generalisation: dict[Literal["text", "image"], QualityCell]
    locality: dict[Literal["text", "image"], QualityCell]
    portability: dict[Literal["text", "image"], QualityCell]
    target_logprob: dict[Literal["text", "image"], QualityCell]
    locality_pixel_distance: float | None  # mean absolute difference of neighbours' pictures, 0 to 1
    transfer_ratio: Estimate | None  # gain of the other direction / gain of the edited one
    transfer_note: str = ""
    facts: list[FactQuality]
    protocols: list[ProtocolQuality] = []  # the direct one first; none where the recipe asks for none


class EmergencePoint(Record):
    """The state of both directions after so many updates of a training.

    text, image: share of the facts' edit and reworded questions that are right; None where unscored.
    gap, understanding, generation, categories (their gaps): on a subset of the benchmark, where one
    was asked.
    reliability, locality: where facts are written one after the other: of those written so far.
    """

    step: int
    text: float | None
    image: float | None
    gap: float | None = None
    understanding: float | None = None
    generation: float | None = None
    categories: dict[str, float] = {}
    reliability: dict[Literal["text", "image"], float] = {}
    locality: dict[Literal["text", "image"], float] = {}


class Emergence(Record):
    """When each direction learned: points, the updates at which 50 % and 90 % are crossed, the lag.

    A lag is image minus text: positive where the model told before it drew. None where a level was
    not reached. Where facts are written one after the other, steps count facts, and there are neither.
    """

    unit: Literal["updates", "facts"] = "updates"
    points: list[EmergencePoint]
    crossings: dict[Literal["text", "image"], dict[str, float | None]]
    lag: dict[str, float | None]


class Stage(Record):
    """One intervention of several: what it was, and the state of everything after it.

    kept: for each fact set so far and to come, the share of its facts' edit and reworded questions that
    are right now, text and image apart. `quality` is of its own facts, since the stage before.
    """

    method: str
    direction: Literal["text", "image", "both"]
    facts: list[str]
    gap: GapReport
    shift: ShiftReport  # since before everything
    kept: list[dict[Literal["text", "image"], float | None]]
    quality: EditQuality
    emergence: Emergence | None = None


class Outcome(Record):
    """One run of a recipe, whole."""

    schema_version: int = 1
    run_id: str  # ours: recipe name + time + short hash; also the folder's name
    kind: Literal["baseline", "edit", "inject", "trial"]
    recipe: dict[str, Any]  # resolved
    recipe_text: str  # as the user wrote it
    recipe_hash: str
    overrides: list[str]
    target_categories: list[str]  # categories that the facts belong to
    direction: Literal["text", "image", "both"]  # the side that the intervention was given
    umm: str
    seed: int
    started: str  # ISO 8601, UTC
    versions: dict[str, str]
    git_revision: str | None
    data_hash: str
    facts_hash: str | None
    weights_fingerprint: str
    weights_fingerprint_reverted: str | None
    reverted: bool | None
    before: PhaseResult
    after: PhaseResult | None
    placebo: PhaseResult | None
    identity: PhaseResult | None
    shift: ShiftReport | None  # after minus before
    placebo_shift: ShiftReport | None
    identity_shift: ShiftReport | None
    quality: EditQuality | None
    delta_file: str | None
    delta_address: str | None = None  # `WeightDelta.digest` of the whole change
    delta_norms: dict[str, float]  # parameter -> Frobenius norm of its term
    delta_spectrum: dict[str, list[float]] = {}  # parameter -> leading singular values; wide dense ones lack
    stages: list[Stage] = []  # of a recipe with several interventions
    kept_before: list[dict[Literal["text", "image"], float | None]] = []  # `Stage.kept`, before everything
    merge_error: float | None = None  # what rounding to the weights' type lost, as a share of the delta
    adapter: str | None = None  # folder of the adapter in its library's own format
    engine_logs: list[str] = []  # files of what engines of others' making printed
    emergence: Emergence | None = None  # of a recipe with one intervention; else each stage has its own
    reasoned: list[ReasonedRow] = []  # of a recipe whose facts are drawn from what the model writes
    protocols: list[ProtocolResult] = []  # of a recipe whose items are asked in other ways, too
    protocol_rows: list[ProtocolRow] = []
    audit: Audit | None = None  # whether conclusions depend on how the gap is computed; trials have none
    detectable: Detectable | None = None  # the smallest shifts that could have been told
    curves: dict[str, list[tuple[int, float]]]  # what the intervention logged while it fitted
    seconds: dict[str, float]  # phase -> wall time
    peak_memory_gib: float
    facts: list[dict[str, str]]  # id, subject, relation, target_true, target_new, split
    git_diff: str | None = None  # SHA-256 of what was changed beside `git_revision`; None where nothing was
    code_hash: str | None = None  # SHA-256 over our own source files, as they ran
    machine: dict[str, str] = {}  # `provenance.machine`
    inputs: list[Input] = []
    model_settings: dict[str, Any] = {}  # what answers depend on beside the weights
    judge_settings: dict[str, Any] = {}  # what verdicts depend on
    reproduces: str | None = None  # the run that this one repeats

    def trainings(self) -> dict[str, Emergence]:
        """What was measured while interventions trained: "emergence", or "emergence/2" for the second."""
        found = {"emergence": self.emergence}
        found |= {f"emergence/{n}": stage.emergence for n, stage in enumerate(self.stages, start=1)}
        return {name: emergence for name, emergence in found.items() if emergence is not None}

    def delta_norm(self) -> float:
        """Frobenius norm of the whole change."""
        return math.hypot(*self.delta_norms.values())

    def stable_ranks(self) -> dict[str, float]:
        """Parameter -> |dW|_F^2 / s_1^2 of its term; those that are 0 or have no spectrum are left out."""
        return {
            name: (self.delta_norms[name] / values[0]) ** 2
            for name, values in self.delta_spectrum.items()
            if values and values[0] and name in self.delta_norms
        }

    def save(self, folder: Path) -> Path:
        """Write `outcome.json` into the folder, atomically; returns its path."""
        from gapeval_lab.files import write_text

        path = folder / "outcome.json"
        write_text(path, self.model_dump_json(indent=1))
        return path

    @staticmethod
    def load(path: Path) -> "Outcome":
        """Read an outcome from its file or from the folder that holds it."""
        file = path / "outcome.json" if path.is_dir() else path
        return Outcome.model_validate_json(file.read_text(encoding="utf-8"))
