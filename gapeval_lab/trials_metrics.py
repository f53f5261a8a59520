"""Which metrics a trial will log, known before anything is measured.

They are read off the record of a pretended trial in which everything was wrong and became right: the same
code that makes a real one, so that no list of names can fall behind it.
"""

import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gapeval_lab.bench import Bench
from gapeval_lab.delta import WeightDelta
from gapeval_lab.emergence import emergence
from gapeval_lab.evaluate import Evaluation
from gapeval_lab.fitting import Fitted
from gapeval_lab.items import Direction, Item, Response, Verdict
from gapeval_lab.measuring import Measured
from gapeval_lab.outcome import EmergencePoint
from gapeval_lab.quality import SIDES, ProbeState, probes
from gapeval_lab.recording import Course, record
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.trials_course import PHASES


def metric_names(bench: Bench) -> frozenset[str]:
    """The names; norms of single sites, which only a fit shows, are left out.

    Args:
        bench: of a trial.
    """
    recipe = bench.loaded.recipe
    wrong, right = _pretended(bench, False), _pretended(bench, True)
    points = [EmergencePoint(step=step, text=share, image=share) for step, share in ((0, 0.0), (1, 1.0))]
    fitted = Fitted(WeightDelta.zero(), {}, emergence(points) if recipe.emergence else None, 0.0)
    course = Course(
        datetime.datetime.now(datetime.UTC),
        [wrong, right],
        [fitted] * len(bench.stages),
        placebo=right if recipe.controls.placebo else None,
        identity=right if recipe.controls.identity else None,
    )
    with tempfile.TemporaryDirectory(prefix="gapeval-pretended-") as place:
        outcome = record(bench, course, weights=bench.weights, work=Path(place), trial=True)
    named = outcome.model_copy(update={"seconds": dict.fromkeys(PHASES, 1.0)})
    return frozenset(scalars(named)) | {"delta_norm/total"}


def _pretended(bench: Bench, correct: bool) -> Measured:
    """A state in which everything is right, or everything is wrong."""
    blank = Image.new("RGB", (1, 1))
    directions = [direction for direction in Direction if direction in bench.umm.directions]

    def answered(items: Sequence[Item]) -> Evaluation:
        keys = [(item.id, way) for item in items for way in directions if way in item.directions]
        return Evaluation(
            tuple(items),
            {key: Response(*key, text="", picture=blank) for key in keys},
            {key: Verdict(*key, correct) for key in keys},
        )

    asked = answered([*bench.items, *probes(bench.facts)])
    logs = {
        side: {fact.id: float(correct) for fact in bench.facts}
        for side, direction in SIDES.items()
        if direction in directions
    }
    evaluation = Evaluation(tuple(bench.items), asked.responses, asked.verdicts)
    return Measured(evaluation, ProbeState(asked, logs) if bench.facts else None)
