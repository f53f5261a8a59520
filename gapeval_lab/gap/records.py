"""The numbers that gap measurement yields, as plain frozen records (JSON-able through pydantic).

Computes nothing; METRICS in the README says what each number is.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cells:
    """Joint outcomes of the items judged in BOTH directions (counts).

    both: right in both; und_only: understanding right, generation wrong; gen_only: the reverse;
    neither: wrong in both. unscored: items with a missing verdict in a direction, left out of n.
    """

    both: int
    und_only: int
    gen_only: int
    neither: int
    unscored: int = 0

    @property
    def n(self) -> int:
        """Items scored in both directions."""
        return self.both + self.und_only + self.gen_only + self.neither


@dataclass(frozen=True)
class CategoryGap:
    """One category's state: accuracies, gap, agreement."""

    cells: Cells
    understanding: Estimate
    generation: Estimate
    gap: Estimate
    signed_gap: Estimate
    null_gap: float  # mean gap when each item's two directions are exchanged at random
    null_p: float  # share of exchanges with a gap at least as large as the observed one
    phi: float | None  # correlation of the two directions over items; None where undefined
    overlap: float | None  # both / (both + und_only + gen_only); None where undefined


@dataclass(frozen=True)
class OfficialGap:
    """The published estimator's numbers, with the rounding band measured beside them."""

    gaps: dict[str, float]
    mean: float
    band: float  # largest move of the mean when the input is perturbed by 1e-6, several times
    bands: dict[str, float] = field(default_factory=dict)  # the same per category; older records lack it


@dataclass(frozen=True)
class OneSided:
    """One direction's accuracy in a category none of whose items is scored in the other direction."""

    direction: Literal["understanding", "generation"]
    n: int
    unscored: int
    accuracy: Estimate


@dataclass(frozen=True)
class GapReport:
    """The state of one model on one benchmark.

    Numbers are means over the categories whose items are scored in both directions. Where there is no
    such category, as with a model that only tells, there is no gap, and the accuracies are means over
    the categories of `one_sided`.
    """

    categories: dict[str, CategoryGap]
    gap: Estimate | None
    null_gap: float | None
    null_p: float | None
    understanding: Estimate | None
    generation: Estimate | None
    official: OfficialGap | None
    official_note: str = ""  # why there is no official number, where there is none
    # Categories without an item scored in both directions -> their unscored items. In no mean.
    left_out: dict[str, int] = field(default_factory=dict)
    one_sided: dict[str, OneSided] = field(default_factory=dict)  # some of those left out


@dataclass(frozen=True)
class DirectionShift:
    """One direction's accuracy, after minus before, on the same items."""

    shift: Estimate
    gained: int  # wrong before, right after
    lost: int  # right before, wrong after
    p: float  # exact McNemar, two-sided
    p_holm: float  # Holm-corrected over the categories of this direction


@dataclass(frozen=True)
class CategoryShift:
    """What changed in one category (items scored in both directions, before and after)."""

    n: int
    gap: Estimate
    signed_gap: Estimate
    understanding: DirectionShift
    generation: DirectionShift
    transitions: list[list[int]]  # 4 x 4; rows before, columns after: both, und_only, gen_only, neither


@dataclass(frozen=True)
class OneSidedShift:
    """What changed in one direction of a category none of whose items is scored in the other one."""

    direction: Literal["understanding", "generation"]
    n: int
    accuracy: DirectionShift


@dataclass(frozen=True)
class ShiftReport:
    """After minus before; what is missing is missing as in `GapReport`."""

    categories: dict[str, CategoryShift]
    gap: Estimate | None
    understanding: Estimate | None
    generation: Estimate | None
    changed_items: int
    # Categories without an item scored in both directions, before and after -> their items. In no mean.
    left_out: dict[str, int] = field(default_factory=dict)
    one_sided: dict[str, OneSidedShift] = field(default_factory=dict)  # some of those left out


CONVERGED = "published (converged)"
"""What the published model, fitted to its optimum, is called among an audit's variants."""


@dataclass(frozen=True)
class Variant:
    """One way of computing the gap: its means over categories, and per category; see audit.py.

    band, bands: by how much the shift may be off by rounding alone; of a fit in single precision.
    low, high, of: where the variant is a range (the unscored items), its bounds, and what they are of;
    its other numbers are then None.
    """

    name: str
    family: Literal["estimator", "weights", "smoothing", "weighting", "unscored", "steps"]
    before: float | None = None
    after: float | None = None
    shift: float | None = None
    categories_before: dict[str, float] = field(default_factory=dict)
    categories_after: dict[str, float] = field(default_factory=dict)
    band: float = 0.0
    bands: dict[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    of: Literal["shift", "gap", ""] = ""

    def moved(self, category: str) -> float | None:
        """The shift of a category; None where this variant has none."""
        if category not in self.categories_after or category not in self.categories_before:
            return None
        return self.categories_after[category] - self.categories_before[category]


@dataclass(frozen=True)
class Dispute:
    """A shift whose sign depends on how the gap is computed. `where` is a category, or "mean"."""

    where: str
    wider: list[str]  # variants by which the gap widened
    closed: list[str]  # by which it closed


@dataclass(frozen=True)
class Audit:
    """The gap, and its shift, by other estimators and with other constants; see audit.py.

    variants: ours first. All but the published one's are of the items scored in both states.
    said: whether they agree on the signs of the shifts; None where there is no after.
    disputes: the mean's first.
    unsure: where the published shift is within its rounding.
    notes: what could not be computed, or holds with a reservation.
    """

    variants: list[Variant]
    said: Literal["agree", "disagree", "within rounding"] | None = None
    disputes: list[Dispute] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DetectableSide:
    """The smallest shift of one direction's accuracy that McNemar's test would have told.

    alpha: what Holm's correction asks of a category that shifts alone.
    noise: share of items taken to flip each way without an effect, and where that is from.
    shift: None where no shift that fits into the items would have been told.
    """

    n: int
    alpha: float
    noise: float
    source: Literal["placebo", "before and after"]
    shift: float | None


@dataclass(frozen=True)
class DetectableCategory:
    """The smallest shifts of one category that a run could have told; None where they have no number.

    closing, widening: of the gap; None where none that goes this way would have been told.
    gap: the larger of the two, or the one that there is.
    """

    gap: float | None
    understanding: DetectableSide | None
    generation: DetectableSide | None
    closing: float | None = None
    widening: float | None = None


@dataclass(frozen=True)
class Detectable:
    """The smallest shifts that a run could have told, by size; see detectable.py.

    gap, closing, widening, understanding, generation: of the means over categories.
    """

    power: float
    categories: dict[str, DetectableCategory]
    gap: float | None
    understanding: float | None
    generation: float | None
    closing: float | None = None
    widening: float | None = None
