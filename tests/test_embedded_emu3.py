"""The second embedded UMM: it knows its world in both directions, and can be edited by the same recipe."""

from pathlib import Path

import pytest

from gapeval_lab.bench import load_bench
from gapeval_lab.recipe import load
from gapeval_lab.run import run
from gapeval_lab.work_folder import working_folder


@pytest.mark.parametrize("recipe", ["rome_world_knowledge"])
def test_it_is_measured_and_edited_like_the_first_one(recipe: str, tmp_path: Path) -> None:
    few = ["evaluation.items=48", "evaluation.official=false", "facts.count=2", "controls.placebo=false"]
    few += ["intervention.moment_texts=200"]
    bench = load_bench(load(recipe, ["model={config: embedded_emu3}", *few]))
    assert bench.name == "emu3/embedded"
    with working_folder(tmp_path, bench.key) as work:
        outcome = run(bench, home=tmp_path, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
    before = outcome.before.gap
    assert before.understanding is not None and before.understanding.value > 0.6
    assert before.generation is not None and before.generation.value > 0.55
    assert outcome.quality is not None and outcome.reverted
    for side in ("text", "image"):
        target = outcome.quality.target_logprob[side]
        assert target.after.value > target.before.value + 1
    assert outcome.quality.reliability["text"].after.value == 1.0
    assert outcome.identity_shift is not None and outcome.identity_shift.changed_items == 0
