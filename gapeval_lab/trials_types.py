"""What a search and its trials say to each other."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Estimate
from gapeval_lab.recipe import LoadedRecipe
from gapeval_lab.validation import did_you_mean

Report = Callable[[Mapping[str, float], int], bool]
"""`report(metrics_so_far, step)`: called after each measured part; True means: stop here (pruned).

Names are those of the final metrics, estimated on what was measured so far; with `part/` before them they
are of the part measured last alone, which is what pairs trials part by part. A trial's last part is never
cut: nothing would be saved.
"""


class TrialFailed(UserError):
    """One trial's settings did not work out; the search goes on. Its MLflow run is FAILED and says why."""

    def __init__(self, message: str, run_id: str) -> None:
        """What happened, in which MLflow run."""
        super().__init__(message)
        self.run_id = run_id


def check_metrics(needs: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    """Whether every metric that is named will be there.

    Args:
        needs: the field that names a metric, and the metric.
        known: the metrics of a trial.

    Raises:
        UserError: one that will not, with the closest name.
    """
    for key, name in needs:
        if name not in known:
            hint = did_you_mean(name, known) or f" (there are: {', '.join(sorted(known))})"
            raise UserError(f"{key}: no trial of this recipe logs '{name}'{hint}")


@dataclass(frozen=True)
class TrialResult:
    """What one trial gave.

    Attributes:
        metrics: named as in MLflow, of dev alone; of a pruned trial, estimates on what was measured.
        run_id: of its MLflow run.
        pruned: whether it was stopped on the way.
        asked, planned: items and probes measured, and those that a whole trial measures.
        seconds: per phase. `fit` and `after` are what a trial costs; the rest is overhead.
    """

    metrics: dict[str, float]
    run_id: str | None
    pruned: bool
    asked: int
    planned: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class TestResult:
    """A chosen trial on facts and items that no trial saw.

    Attributes:
        metrics: named as in MLflow, of test.
        run_id: of its MLflow run.
        optimism: metric -> dev minus test.
    """

    metrics: dict[str, float]
    run_id: str
    optimism: dict[str, Estimate]


class Trials(Protocol):
    """What a search asks of trials."""

    parent_id: str
    notes: tuple[str, ...]

    def metric_names(self) -> frozenset[str]:
        """Every metric that a trial logs; known before any trial."""
        ...

    def pairs(self, metric: str) -> int:
        """In how many parts of a trial a metric is measured, without its last part, which is never cut."""
        ...

    def recipe_of(self, overrides: Mapping[str, Any]) -> LoadedRecipe:
        """The recipe of a trial: running it gives the trial's numbers."""
        ...

    def run(
        self, overrides: Mapping[str, Any], *, number: int, report: Report, retry_of: int | None = None
    ) -> TrialResult:
        """One trial.

        Raises:
            TrialFailed: the overrides, the fit or the changed model did not work out.
        """
        ...

    def past(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """Overrides and metrics of past runs outside this search that are trials in all but name."""
        ...

    def test(self, overrides: Mapping[str, Any], *, number: int) -> TestResult:
        """A finished trial run whole on test facts and items, once; later calls give the same result."""
        ...

    def run_of(self, number: int) -> str | None:
        """The MLflow run of a trial, whatever became of it."""
        ...

    def lost(self, run_id: str) -> None:
        """The worker of this trial died: end its MLflow run as FAILED."""
        ...

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure in the parent run."""
        ...

    def artifact(self, path: Path) -> None:
        """Keep a file in the parent run."""
        ...

    def tell(self, metrics: Mapping[str, float], *, note: str | None = None) -> None:
        """Metrics and description of the parent run."""
        ...
