"""Sections of a run's page about what has steps: training, learning, several interventions in turn."""

from gapeval_lab.outcome import Emergence
from gapeval_lab.pages.figures import Curves, draw_curves
from gapeval_lab.pages.metric_names import Keys
from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.parts import Beside, Block, Drawing, Line, Section, Table, Words
from gapeval_lab.pages.run_gap import arrow
from gapeval_lab.pages.svg import inline
from gapeval_lab.report import NONE
from gapeval_lab.report_cells import signed
from gapeval_lab.tracking_figure import emergence_data
from gapeval_lab.tracking_values import curves

SIDES = {"text": "told", "image": "drawn"}
MOST_FITS = 6  # figures of what interventions logged


def course(numbers: Numbers) -> Section | None:
    """Curves, and what the facts still hold after each intervention."""
    outcome = numbers.outcome
    blocks: list[Block] = []
    for name, emergence in outcome.trainings().items():
        number = name.partition("/")[2]
        at: Keys = ("stages", int(number) - 1, "emergence") if number else ("emergence",)
        blocks += _learned(numbers, emergence, at, f", intervention {number}" if number else "")
    if outcome.stages:
        blocks += [_kept(numbers), _stages(numbers)]
    fits: list[Block] = [
        Drawing(
            inline(draw_curves(_fit(name, points)), name=f"fig-fit-{place}"),
            name.removeprefix("train/").replace("_", " "),
            f"The curve of {name.removeprefix('train/')} while the intervention was computed.",
        )
        for place, (name, points) in enumerate(_fits(numbers).items())
        if place < MOST_FITS
    ]
    if fits:
        blocks.append(Beside(fits))
    return Section("course", "On the way", "Curves", blocks) if blocks else None


def _fits(numbers: Numbers) -> dict[str, list[tuple[int, float]]]:
    """What the intervention logged, as MLflow has it: means over facts."""
    found = curves(numbers.outcome)
    return {name: points for name, points in found.items() if name.startswith("train/") and len(points) > 1}


def _fit(name: str, points: list[tuple[int, float]]) -> Curves:
    what = name.removeprefix("train/").replace("_", " ")
    steps = [step for step, _ in points]
    return Curves(steps, {what: [value for _, value in points]}, xlabel="step", ylabel=what)


def _learned(numbers: Numbers, found: Emergence, at: Keys, later: str) -> list[Block]:
    """The curve of a training, then its points or its crossings."""
    data = emergence_data(found)
    one_by_one = found.unit == "facts"
    lines = {name: values for name, (_, _, values) in data.lines.items()}
    figure = draw_curves(
        Curves(
            data.steps,
            lines,
            xlabel="facts written" if one_by_one else "updates",
            ylabel="share" if one_by_one else "share right, all wordings",
            levels=() if one_by_one else (0.5, 0.9),
            spread_out=one_by_one,
        )
    )
    title = "Facts written one after the other" if one_by_one else "When the facts were learned"
    name = "fig-" + "-".join(str(key) for key in at)
    alt = f"{title}: {', '.join(lines)}. The numbers stand in the table below."
    drawing = Drawing(inline(figure, name=name), title + later, alt)
    if one_by_one:
        table = [
            Line(
                joined("after ", numbers.count(*at, "points", place, "step")),
                (
                    *(
                        numbers.percent(*at, "points", place, measure, side)
                        for measure in ("reliability", "locality")
                        for side in SIDES
                    ),
                    numbers.one(*at, "points", place, "gap"),
                ),
            )
            for place in range(len(found.points))
        ]
        columns = [f"{measure}, {side}" for measure in ("reliability", "locality") for side in SIDES.values()]
        how = "Of the facts written so far: how many hold, and how many neighbours are unchanged."
        return [drawing, Table(title + later, [*columns, "gap of a subset"], table, how=how)]
    last = len(found.points) - 1
    levels = list(dict.fromkeys(level for crossed in found.crossings.values() for level in crossed))
    table = []
    for side, words in SIDES.items():
        steps: list[Words] = [_crossed(numbers, *at, "crossings", side, level) for level in levels]
        table.append(Line(words, (*steps, numbers.percent(*at, "points", last, side))))
    lags = [numbers.one(*at, "lag", level, write=signed) for level in levels]
    table.append(Line("drawn after told", (*lags, "")))
    columns = [f"{level} % after" for level in levels]
    how = "Updates until so many of the facts' questions were right. Positive: told before drawn."
    crossings = Table("Updates to learn" + later, [*columns, "in the end"], table, how=how)
    return [Beside([drawing, crossings])]


def _crossed(numbers: Numbers, *at: str | int) -> Words:
    return "never" if numbers.at(*at) is None else numbers.one(*at, write=lambda step: f"{step:.1f}")


def _kept(numbers: Numbers) -> Table:
    """Share of each fact set that is right in each state, told and drawn."""
    outcome = numbers.outcome
    rows: list[tuple[str, Keys]] = [("before", ("kept_before",))]
    for place, stage in enumerate(outcome.stages):
        rows.append((f"after {place + 1}: {stage.method}, {stage.direction}", ("stages", place, "kept")))
    lines = []
    for words, at in rows:
        found = [(*at, number, side) for number in range(len(outcome.stages)) for side in SIDES]
        shades = tuple(0.6 * (numbers.at(*keys) or 0.0) for keys in found)
        lines.append(Line(words, tuple(numbers.percent(*keys) for keys in found), shades=shades))
    columns = [f"facts {n}, {side}" for n in range(1, len(outcome.stages) + 1) for side in SIDES.values()]
    how = "Share of a set's questions that are right in each state; darker: more. A later drop is forgetting."
    return Table("What each fact set still holds", columns, lines, how=how, corner="state")


def _stages(numbers: Numbers) -> Table:
    lines = []
    for place, stage in enumerate(numbers.outcome.stages):
        at = ("stages", place)
        cells: list[Words] = [
            numbers.count(*at, "facts"),
            numbers.spread(*at, "gap", "gap", sign=False),
            *(numbers.spread(*at, "shift", what) for what in ("gap", "understanding", "generation")),
        ]
        for measure in ("reliability", "locality"):
            for side in SIDES:
                where = ("quality", measure, side)
                shares = [numbers.percent(*at, *where, state, "value") for state in ("before", "after")]
                cells.append(NONE if numbers.at(*at, *where) is None else arrow(*shares))
        lines.append(Line(f"{place + 1}: {stage.method}, {stage.direction}", tuple(cells)))
    columns = ["facts", "gap [95 %]", "gap, shift", "told, shift", "drawn, shift"]
    columns += [f"{measure}, {side}" for measure in ("reliability", "locality") for side in SIDES.values()]
    how = (
        "Shifts are since before everything; reliability and locality are of the stage's own facts, "
        "since the stage before."
    )
    return Table("One intervention after the other", columns, lines, how=how, corner="intervention")
