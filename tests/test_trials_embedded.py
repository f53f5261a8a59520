"""A trial on the embedded model: its recipe, run by itself, gives its numbers."""

from pathlib import Path

import pytest

from gapeval_lab.bench import load_bench
from gapeval_lab.delta import fingerprint
from gapeval_lab.recipe import load
from gapeval_lab.run import run
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_store import Store
from gapeval_lab.trials import open_trials
from gapeval_lab.work_folder import working_folder

SMALL = ("evaluation.items=32", "facts.count=1", "intervention.steps=8", "intervention.moment_texts=200")
LEFT_OUT = ("time/", "cost/", "memory/", "audit/", "detectable/")  # the last two: trials have none


def test_a_trials_recipe_run_by_itself_gives_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store.open(tmp_path / "search")
    store.check()
    given = {"intervention.lr": 0.35, "intervention.layer": 1}
    loaded = load("rome_world_knowledge", SMALL)
    with open_trials(loaded, store=store, study="embedded", searched=list(given)) as trials:
        result = trials.run(given, number=0, report=lambda so_far, step: False)
        own = trials.recipe_of(given)
        address = trials.parent.outcome(result.run_id).delta_address  # type: ignore[attr-defined]
    again = load("rome_world_knowledge", own.overrides)  # as `edit` reads its command line
    assert again.hash == own.hash
    bench = load_bench(again)
    with working_folder(store.folder, bench.key) as work:
        outcome = run(
            bench, home=store.folder, work=work, on_stage=lambda _: None, on_progress=lambda *_: None
        )

    def numbers(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not name.startswith(LEFT_OUT)}

    assert numbers(scalars(outcome)) == numbers(result.metrics)
    assert len(numbers(result.metrics)) > 40 and outcome.delta_address == address
    assert fingerprint(bench.umm.backbone().root) == bench.weights
