"""A noisy judge's rates, corrected by what is known of its mistakes.

Knows counts and verdicts; knows no judges and no models.

    Se      sensitivity: of the answers that are right, the share that the judge calls right
    Sp      specificity: of the answers that are wrong, the share that it calls wrong
    q       share that the judge calls right; E[q] = p Se + (1 - p)(1 - Sp) for a true share p
    p       (q + Sp - 1) / (Se + Sp - 1), cut to [0, 1] (Rogan and Gladen 1978)
    shift   (q_after - q_before) / (Se + Sp - 1): what the judge gets wrong of both states cancels

Where Se + Sp <= 1 a judge tells nothing and there is no corrected rate. The intervals are percentile
intervals (95 %) over resamples of the items, both states of an item together, and of the calibration
set. Se and Sp are drawn from Beta(k + 1/2, n - k + 1/2), and the items' cells from the Dirichlet with 1/2
for every cell, which are the resamples' smooth counterparts: a judge without a single mistake in 20
answers is not taken for one that makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.resample import estimate, stream

REPLICATES = 10_000
LEAST_POWER = 0.05  # Se + Sp - 1 below which a resample says nothing; 0 is a coin
Floats = NDArray[np.float64]


class Confusion(BaseModel):
    """What a judge said of answers whose truth is known (counts).

    Attributes:
        right_right, right_wrong: of the answers that are right, those called right and wrong.
        wrong_right, wrong_wrong: of the answers that are wrong, likewise.
        unscored: answers that the judge did not score; in no rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    right_right: int = Field(default=0, ge=0)
    right_wrong: int = Field(default=0, ge=0)
    wrong_right: int = Field(default=0, ge=0)
    wrong_wrong: int = Field(default=0, ge=0)
    unscored: int = Field(default=0, ge=0)

    @property
    def whole(self) -> bool:
        """Whether answers of both kinds were scored."""
        return bool(self.right_right + self.right_wrong and self.wrong_right + self.wrong_wrong)

    @property
    def sensitivity(self) -> float | None:
        """Se; None where no right answer was scored."""
        n = self.right_right + self.right_wrong
        return self.right_right / n if n else None

    @property
    def specificity(self) -> float | None:
        """Sp; None where no wrong answer was scored."""
        n = self.wrong_right + self.wrong_wrong
        return self.wrong_wrong / n if n else None

    def plus(self, other: Confusion) -> Confusion:
        """Both sets of answers together."""
        return Confusion(
            **{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        )


def confusion(truth: Sequence[bool | None], said: Sequence[bool | None]) -> Confusion:
    """Counted from verdicts on the same answers; where the truth is not known, an answer is left out."""
    names = {
        (True, True): "right_right",
        (True, False): "right_wrong",
        (False, True): "wrong_right",
        (False, False): "wrong_wrong",
    }
    counts = dict.fromkeys((*names.values(), "unscored"), 0)
    for real, word in zip(truth, said, strict=True):
        if real is not None:
            counts["unscored" if word is None else names[real, word]] += 1
    return Confusion(**counts)


class Calibration(BaseModel):
    """A judge's confusion, per direction and per "direction/category".

    Attributes:
        judge: its name; node: as a recipe has it; settings: what its verdicts depend on.
        truth: the judge that counted as the truth.
        source: where the answers come from, in words.
        cells: "generation" and "generation/reasoning" -> confusion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    judge: str
    node: dict[str, Any]
    settings: dict[str, Any]
    truth: str
    source: str
    cells: dict[str, Confusion]

    def of(self, direction: str, category: str) -> tuple[Confusion, bool]:
        """The confusion to use, and whether it is the category's own.

        A category without answers of both kinds takes its direction's.
        """
        own = self.cells.get(f"{direction}/{category}")
        if own is not None and own.whole:
            return own, True
        return self.cells.get(direction, Confusion()), False

    def save(self, file: Path) -> Path:
        """Write it, atomically."""
        write_text(file, self.model_dump_json(indent=1))
        return file

    @staticmethod
    def load(file: Path) -> Calibration:
        """Read it.

        Raises:
            UserError: the file cannot be read, or is no calibration.
        """
        try:
            return Calibration.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--calibration: cannot read {file} ({error.strerror}); make one first") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(
                f"--calibration: {file} is no calibration ({str(error).splitlines()[0]}); make one with "
                "'gapeval-lab judge calibrate'"
            ) from None


@dataclass(frozen=True)
class Rates:
    """Se and Sp with their intervals; None where no answer of that kind was scored."""

    sensitivity: Estimate | None
    specificity: Estimate | None
    confusion: Confusion


def rates(found: Confusion, *, seed: int = 0, name: str = "") -> Rates:
    """Sensitivity and specificity."""
    rng = stream(seed, "calibration", name)
    se, sp = _draw(found, rng)
    return Rates(
        None if found.sensitivity is None else estimate(found.sensitivity, se),
        None if found.specificity is None else estimate(found.specificity, sp),
        found,
    )


@dataclass(frozen=True)
class Corrected:
    """A rate or a shift as the judge gives it, and corrected.

    Attributes:
        raw: with the judge taken at its word.
        value: corrected; None where the judge tells nothing, `note` says why.
        n: items.
    """

    raw: float
    value: Estimate | None
    n: int
    note: str = ""


def corrected_rate(right: int, n: int, found: Confusion, *, seed: int = 0, name: str = "") -> Corrected:
    """The true share of right answers.

    Args:
        right: items that the judge calls right, of `n` that it scored.
        found: its confusion.
        seed, name: of the resampling.

    Raises:
        ValueError: no items.
    """
    if not 0 <= right <= n or not n:
        raise ValueError(f"{right} of {n} items")
    raw = right / n
    if note := _useless(found):
        return Corrected(raw, None, n, note)
    rng = stream(seed, "corrected", name)
    power, rest = _power(found)
    value = float(np.clip((raw - rest) / power, 0, 1))
    q = rng.beta(right + 0.5, n - right + 0.5, REPLICATES)
    se, sp = _draw(found, rng)
    kept = se + sp - 1 > LEAST_POWER
    draws = np.clip((q + sp - 1)[kept] / (se + sp - 1)[kept], 0, 1)
    return Corrected(raw, estimate(value, draws), n, _doubt(kept))


def corrected_shift(
    pairs: Sequence[tuple[bool, bool]], found: Confusion, *, seed: int = 0, name: str = ""
) -> Corrected:
    """After minus before, of the same items.

    Args:
        pairs: (before, after) as the judge says, of items that it scored in both states.
        found: its confusion, the same in both states.
        seed, name: of the resampling.

    Raises:
        ValueError: no items.
    """
    if not pairs:
        raise ValueError("no items")
    cells = np.bincount([2 * before + after for before, after in pairs], minlength=4)
    raw = float(cells[1] - cells[2]) / len(pairs)
    if note := _useless(found):
        return Corrected(raw, None, len(pairs), note)
    if not cells[1] and not cells[2]:  # nothing moved: as everywhere, that is exactly 0
        return Corrected(raw, Estimate(0.0, 0.0, 0.0), len(pairs))
    rng = stream(seed, "corrected-shift", name)
    shares = rng.dirichlet(cells + 0.5, REPLICATES)
    se, sp = _draw(found, rng)
    kept = se + sp - 1 > LEAST_POWER
    draws = np.clip((shares[:, 1] - shares[:, 2])[kept] / (se + sp - 1)[kept], -1, 1)
    value = float(np.clip(raw / _power(found)[0], -1, 1))
    return Corrected(raw, estimate(value, draws), len(pairs), _doubt(kept))


def _power(found: Confusion) -> tuple[float, float]:
    """Se + Sp - 1, and 1 - Sp."""
    se, sp = found.sensitivity or 0.0, found.specificity or 0.0
    return se + sp - 1, 1 - sp


def _useless(found: Confusion) -> str:
    """Why nothing can be corrected; empty where it can."""
    if not found.whole:
        return "the calibration lacks scored answers that are right, or ones that are wrong"
    power = _power(found)[0]
    if power <= LEAST_POWER:
        told = f"{power:.2f}".replace("-", "−")
        return f"the judge tells right from wrong hardly better than a coin (Se + Sp − 1 = {told})"
    return ""


def _doubt(kept: NDArray[np.bool_]) -> str:
    lost = 1 - float(kept.mean())
    return f"in {100 * lost:.0f} % of the resamples the judge tells nothing" if lost > 0.01 else ""


def _draw(found: Confusion, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Se and Sp, (replicates,) each."""
    se = rng.beta(found.right_right + 0.5, found.right_wrong + 0.5, REPLICATES)
    sp = rng.beta(found.wrong_wrong + 0.5, found.wrong_right + 0.5, REPLICATES)
    return se, sp
