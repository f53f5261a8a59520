"""When each direction learns: crossings, lags, and points that are measured once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from test_run import ScriptedBenchmark, fact

from gapeval_lab.emergence import Recorder, crossing, emergence, fact_probes, measure
from gapeval_lab.items import Item, Prompt, Response
from gapeval_lab.outcome import EmergencePoint
from gapeval_lab.recipe import Curve
from gapeval_lab.testing import ScriptedJudge, ScriptedUMM


def points(text: list[float | None], image: list[float | None]) -> list[EmergencePoint]:
    return [
        EmergencePoint(step=5 * i, text=t, image=g) for i, (t, g) in enumerate(zip(text, image, strict=True))
    ]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.0, 0.4, 0.6, 1.0], 7.5),
        ([0.0, 0.5], 5.0),
        ([0.7, 1.0], 0.0),
        ([0.0, 0.4], None),
        ([0.0, None, 1.0], 5.0),
        ([None, None], None),
        ([0.0, 0.6, 0.2, 0.8], 25 / 6),  # the first time counts
    ],
)
def test_crossing_is_the_first_time_on_straight_lines(
    shares: list[float | None], expected: float | None
) -> None:
    found = crossing([5 * i for i in range(len(shares))], shares, 0.5)
    assert found == (None if expected is None else pytest.approx(expected))


def test_lag_is_image_minus_text_and_none_where_a_side_never_learned() -> None:
    found = emergence(points([0.0, 1.0, 1.0], [0.0, 0.0, 0.8]))
    assert found.crossings["text"] == {"50": 2.5, "90": 4.5}
    assert found.crossings["image"]["50"] == pytest.approx(8.125)
    assert found.crossings["image"]["90"] is None
    assert found.lag == {"50": pytest.approx(5.625), "90": None}


def scripted(right: list[bool]) -> tuple[ScriptedUMM, ScriptedJudge]:
    umm = ScriptedUMM(lambda prompt, seed: "new" if right[0] else "old", lambda *_: Image.new("RGB", (1, 1)))

    def rule(item: Item, response: Response) -> bool:
        return response.text == item.reference_text if response.text else not right[0]

    return umm, ScriptedJudge(rule)


def test_a_point_holds_the_facts_and_the_subset() -> None:
    umm, judge = scripted([True])
    items = ScriptedBenchmark().items()
    point = measure(umm, 3, facts=fact_probes([fact()]), items=items, judge=judge, seed=0)
    assert (point.step, point.text, point.image) == (3, 1.0, 0.0)
    assert (point.understanding, point.generation) == (1.0, 0.0)
    assert set(point.categories) == {"a", "b"}
    assert point.gap is not None and point.gap > 0.5
    alone = measure(umm, 3, facts=fact_probes([fact()]), items=[], judge=judge, seed=0)
    assert alone.gap is None and alone.categories == {}


class Bench:
    """What a recorder reads of a bench."""

    def __init__(self, umm: ScriptedUMM, judge: ScriptedJudge) -> None:
        self.umm, self.judge = umm, judge
        self.items = ScriptedBenchmark().items()


def stage(kind: str) -> Any:
    """What a recorder reads of a stage."""
    return SimpleNamespace(facts=(fact(), replace(fact(), id="g")), intervention=SimpleNamespace(kind=kind))


def test_facts_written_one_after_the_other_have_their_own_reliability_and_locality(tmp_path: Path) -> None:
    right = [False]
    umm, judge = scripted(right)
    bench: Any = Bench(umm, judge)
    recorder = Recorder(bench, stage("edit"), Curve(at=(0, 1, 2)), tmp_path / "points.json", seed=0)
    recorder.watch(0)
    right[0] = True  # every answer changes, the neighbours' among them
    for written in (1, 2):
        recorder.watch(written)
    found = recorder.result()
    assert found is not None and (found.unit, found.lag) == ("facts", {})
    assert [point.reliability.get("text") for point in found.points] == [None, 1.0, 1.0]
    assert [point.locality.get("text") for point in found.points] == [None, 0.0, 0.0]
    assert found.points[0].locality == {}


def test_points_are_measured_once_even_after_a_kill(tmp_path: Path) -> None:
    right = [False]
    umm, judge = scripted(right)
    bench: Any = Bench(umm, judge)
    file = tmp_path / "emergence.json"
    first = Recorder(bench, stage("inject"), Curve(every=2, items=4), file, seed=0)
    for updates in range(4):
        first.watch(updates)
    asked = sum(umm.calls.values())
    assert asked == 2 * 2 * (4 + 4)  # two points, two directions, four probes and four items
    right[0] = True
    again = Recorder(bench, stage("inject"), Curve(every=2, items=4), file, seed=0)
    for updates in range(5):
        again.watch(updates)
    assert sum(umm.calls.values()) == asked + 16
    found = again.result()
    assert found is not None
    assert [(point.step, point.text) for point in found.points] == [(0, 0.0), (2, 0.0), (4, 1.0)]


def test_chosen_updates() -> None:
    assert [n for n in range(12) if Curve().due(n)] == [0, 5, 10]
    assert [n for n in range(12) if Curve(every=4).due(n)] == [0, 4, 8]
    assert [n for n in range(12) if Curve(at=(0, 3, 4)).due(n)] == [0, 3, 4]
    with pytest.raises(ValueError, match="every and at are both given; set one of them to null"):
        Curve(at=(0, 3, 4), every=3)


def test_probes_are_the_edit_and_its_rewordings() -> None:
    assert [item.id for item in fact_probes([fact()])] == ["f.edit.0", "f.reworded.0"]
    assert all(isinstance(item.understand, Prompt) for item in fact_probes([fact()]))
