"""Gap Scores of a file of rows: the published estimator and ours, side by side, as a table or JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.gap.records import Estimate, GapReport, OfficialGap
from gapeval_lab.gap.score import PointGap, gap_report, point_gap
from gapeval_lab.gap.table import read_rows
from gapeval_lab.report_cells import spread

PAPER_ROWS = ("Instruction Following", "Numerical Perception", "World Knowledge", "Reasoning")
_SEED = 0


@dataclass(frozen=True)
class ModelScore:
    """One model of the file. `report` is there only where the file gave counts."""

    rows: tuple[str, ...]
    official: OfficialGap
    point: PointGap
    report: GapReport | None


@dataclass(frozen=True)
class Scores:
    """All models of a file."""

    source: str
    models: Mapping[str, ModelScore]

    def as_json(self) -> dict[str, Any]:
        """Plain values: {model: {official, gap_score, rows: {...}}}."""
        return {name: _plain(model) for name, model in self.models.items()}


def score_file(path: Path) -> Scores:
    """Score every model of a file in the published format.

    Raises:
        UserError: what `read_rows` finds wrong with the file.
    """
    from gapeval_lab.gap.official import official_gap

    models: dict[str, ModelScore] = {}
    for name, rows in read_rows(path).items():
        count = len(rows.proportions)
        labels = PAPER_ROWS if count == len(PAPER_ROWS) else tuple(f"row {i + 1}" for i in range(count))
        shares = dict(zip(labels, rows.proportions, strict=True))
        report = None
        if rows.counts is not None:
            report = gap_report(dict(zip(labels, rows.counts, strict=True)), seed=_SEED, official=False)
        models[name] = ModelScore(labels, official_gap(shares, seed=_SEED), point_gap(rows), report)
    return Scores(str(path), models)


def draw_scores(scores: Scores) -> Group:
    """One table per model, with what has to be known to read it."""
    parts: list[Table | Text] = []
    for name, model in scores.models.items():
        table = Table(title=name, title_justify="left", title_style="bold", header_style="dim", box=None)
        table.add_column("")
        for column in ("published", "Gap Score", "signed gap"):
            table.add_column(column, justify="right")
        for i, label in enumerate(model.rows):
            category = model.report.categories[label] if model.report else None
            table.add_row(
                label,
                f"{model.official.gaps[label]:.3f}",
                spread(category.gap, sign=False) if category else f"{model.point.gaps[i]:.3f}",
                spread(category.signed_gap) if category else f"{model.point.signed_gaps[i]:+.3f}",
            )
        table.add_row(
            "mean",
            f"{model.official.mean:.3f} ± {model.official.band:.3f}",
            spread(model.report.gap, sign=False)
            if model.report and model.report.gap
            else f"{model.point.mean:.3f}",
            "",
            style="bold",
        )
        parts += [table, Text()]
    assumed = any(model.point.n_assumed for model in scores.models.values())
    parts.append(
        Text("published: the paper's fit; ± how far its mean moves when its input moves by 0.000001")
    )
    parts.append(
        Text(
            "Gap Score: ours, closed form, a different estimator; signed gap > 0: tells better than it draws"
        )
    )
    if assumed:
        parts.append(
            Text("proportions carry no n: the Gap Score takes 1000 items per row; give counts for intervals")
        )
    return Group(*parts)


def _plain(model: ModelScore) -> dict[str, Any]:
    rows = {
        label: {
            "published": model.official.gaps[label],
            "gap_score": model.point.gaps[i],
            "signed_gap": model.point.signed_gaps[i],
            "n": model.point.n[i],
            **(_intervals(model.report, label) if model.report else {}),
        }
        for i, label in enumerate(model.rows)
    }
    return {
        "published": {"mean": model.official.mean, "rounding_band": model.official.band},
        "gap_score": {
            "mean": model.point.mean,
            "n_assumed": model.point.n_assumed,
            **(_ends(model.report.gap) if model.report and model.report.gap else {}),
        },
        "rows": rows,
    }


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"low": estimate.low, "high": estimate.high}


def _intervals(report: GapReport, label: str) -> dict[str, float]:
    category = report.categories[label]
    return {"low": category.gap.low, "high": category.gap.high, "by_chance": category.null_gap}
