"""Edit quality on hand-made evaluations: every number is checked against one counted by hand."""

import numpy as np
import pytest
from PIL import Image

from gapeval_lab.evaluate import Evaluation
from gapeval_lab.items import Direction, Fact, Item, Prompt, Response, Verdict
from gapeval_lab.quality import ProbeState, edit_quality, probes, wilson

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION


def make_fact(name: str) -> Fact:
    def probe(role: str, index: int = 0) -> Item:
        return Item(f"{name}.{role}.{index}", "c", "s", Prompt("t"), Prompt("d"), ("x",))

    return Fact(
        id=name,
        subject=name,
        relation="colour",
        target_true="a",
        target_new="b",
        edit=probe("edit"),
        reworded=tuple(probe("reworded", i) for i in range(3)),
        neighbours=tuple(probe("neighbours", i) for i in range(2)),
        derived=(probe("derived"),),
    )


FACTS = [make_fact("one"), make_fact("two")]


def state(
    right: dict[tuple[str, Direction], bool | None],
    *,
    texts: dict[str, str] | None = None,
    shade: dict[str, int] | None = None,
    logprobs: dict[str, float] | None = None,
) -> ProbeState:
    """A state in which everything is wrong but what `right` says; answers are "same" but for `texts`."""
    responses, verdicts = {}, {}
    for item in probes(FACTS):
        image = Image.new("RGB", (2, 2), ((shade or {}).get(item.id, 0),) * 3)
        text = (texts or {}).get(item.id, "same")
        responses[item.id, TEXT] = Response(item.id, TEXT, text=text)
        responses[item.id, IMAGE] = Response(item.id, IMAGE, picture=image)
        for direction in Direction:
            correct = right.get((item.id, direction), False)
            verdicts[item.id, direction] = Verdict(item.id, direction, correct)
    evaluation = Evaluation(tuple(probes(FACTS)), responses, verdicts)
    return ProbeState(evaluation, {"text": logprobs} if logprobs else {})


def test_every_measure_is_what_one_counts() -> None:
    before = state({}, logprobs={"one": -4.0, "two": -2.0})
    after = state(
        {
            ("one.edit.0", TEXT): True,
            ("two.edit.0", TEXT): True,
            ("one.edit.0", IMAGE): True,
            ("one.reworded.0", TEXT): True,
            ("one.reworded.1", TEXT): True,
            ("one.reworded.2", TEXT): True,
            ("two.reworded.0", TEXT): True,
            ("one.neighbours.0", IMAGE): True,
            ("two.derived.0", IMAGE): True,
        },
        texts={"two.neighbours.1": "other"},
        shade={"one.neighbours.0": 255},
        logprobs={"one": -1.0, "two": 0.0},
    )
    quality = edit_quality(FACTS, before, after, edited="text", seed=0)
    assert quality.reliability["text"].after.value == 1.0
    assert quality.reliability["image"].after.value == 0.5
    assert quality.generalisation["text"].after.value == pytest.approx((1 + 1 / 3) / 2)
    assert quality.locality["text"].after.value == 0.75
    assert quality.locality["image"].after.value == 0.75
    assert quality.locality["text"].before.value == 1.0
    assert quality.portability["image"].after.value == 0.5
    assert quality.locality_pixel_distance == pytest.approx(1 / 4)
    assert quality.target_logprob["text"].before.value == -3.0
    assert quality.target_logprob["text"].after.value == -0.5
    assert "image" not in quality.target_logprob
    # text gains: one (1 + 3)/4, two (1 + 1)/4; image gains: one 1/4, two 0
    assert quality.transfer_ratio is not None
    assert quality.transfer_ratio.value == pytest.approx((0.25 / 2) / (1.5 / 2))
    assert quality.facts[0].reliability == {"text": 1.0, "image": 1.0}
    assert quality.facts[1].locality == {"text": 0.5, "image": 1.0}
    assert quality.generalisation["text"].n == 6


def test_pictures_of_another_size_are_compared_at_the_first_ones() -> None:
    before, after = state({}), state({})
    for name, size, level in (("one.neighbours.0", (4, 6), 255), ("two.neighbours.1", (1, 1), 51)):
        picture = Image.new("RGB", size, (level,) * 3)
        after.evaluation.responses[name, IMAGE] = Response(name, IMAGE, picture=picture)
    quality = edit_quality(FACTS, before, after, edited="text", seed=0)
    assert quality.locality_pixel_distance == pytest.approx((1 + 0.2) / 4)


def test_an_edit_that_did_nothing_has_no_transfer_ratio() -> None:
    quality = edit_quality(FACTS, state({}), state({}), edited="text", seed=0)
    assert quality.transfer_ratio is None
    assert "holds 0" in quality.transfer_note
    assert quality.locality["image"].after.value == 1.0
    assert quality.locality_pixel_distance == 0.0


def test_editing_both_sides_leaves_no_side_to_transfer_to() -> None:
    quality = edit_quality(FACTS, state({}), state({}), edited="both", seed=0)
    assert quality.transfer_ratio is None and "both" in quality.transfer_note


def test_what_was_not_scored_counts_nowhere() -> None:
    hidden = {(item.id, IMAGE): None for item in probes(FACTS)}
    quality = edit_quality(FACTS, state(hidden), state(hidden), edited="text", seed=0)
    assert "image" not in quality.reliability and "text" in quality.reliability
    assert quality.facts[0].reliability["image"] is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(8, 8, 0.676, 1.0), (0, 8, 0.0, 0.324), (5, 10, 0.237, 0.763)]
)
def test_wilson_against_tabled_values(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_wilson_covers() -> None:
    rng = np.random.default_rng(0)
    inside = [(found := wilson(rng.binomial(20, 0.8) / 20, 20)).low <= 0.8 <= found.high for _ in range(4000)]
    assert 0.93 <= np.mean(inside) <= 0.98


def test_the_interval_of_the_transfer_ratio_is_a_number_where_few_facts_were_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3 of 8: of 2.3 % of the draws no fact was learned, and 0 / 0 is no ratio."""
    facts = [make_fact(f"f{n}") for n in range(8)]
    monkeypatch.setitem(globals(), "FACTS", facts)
    learned = {(f"f{n}.edit.0", side): True for n in range(3) for side in Direction}
    ratio = edit_quality(facts, state({}), state(learned), edited="text", seed=0).transfer_ratio
    assert ratio is not None and (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
