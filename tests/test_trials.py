"""Trials on scripted parts: what they ask, cost, log and never see; how they fail, are cut and are tested."""

import json
import math
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from gapeval_lab import registry, trials_run
from gapeval_lab.bench import load_bench
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.interfaces import Lesson
from gapeval_lab.items import Direction, Item, Prompt, Response, Verdict
from gapeval_lab.recipe import LoadedRecipe, resolve
from gapeval_lab.testing import ScriptedIntervention, ScriptedUMM
from gapeval_lab.tracked_run import tracked_run
from gapeval_lab.tracking import experiment_name
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_store import Store
from gapeval_lab.trials import TrialFailed, TrialResult, Trials, open_trials

SIZE = "intervention.size"
UMMS: list[ScriptedUMM] = []
ASKED: list[str] = []


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FakeModel(Strict):
    """Once its weight is over 0.5 it tells what the facts say; over 50 it cannot be asked any more."""

    def load(self) -> ScriptedUMM:
        def tell(prompt: Prompt, seed: int) -> str:
            ASKED.append(prompt.text)
            weight = float(umm.weight[0, 1].detach())
            if weight > 50:
                raise RuntimeError("no token has a probability")
            known = "edit" in prompt.text or "reworded" in prompt.text or prompt.text.endswith("0")
            return "new" if weight > 0.5 and known else "old"

        umm = ScriptedUMM(tell, lambda prompt, seed: Image.new("RGB", (2, 2), (seed % 256, 0, 0)))
        UMMS.append(umm)
        return umm


class FakeBenchmark(Strict):
    """Two categories of 40 items, half of each dev; without marks where that is asked for."""

    marks: bool = True
    name: str = "scripted"
    version: str = "1"
    categories: tuple[str, ...] = ("a", "b")

    def items(self) -> list[Item]:
        return [
            Item(
                f"{c}-{i}", c, "s", Prompt(f"tell {c} {i}"), Prompt(f"draw {c} {i}"), ("new",),
                tags={"split": "dev" if i % 2 else "test"} if self.marks else {},
            )
            for c in self.categories
            for i in range(40)
        ]  # fmt: skip

    def training_texts(self) -> list[str]:
        return ["tell me"]

    def rehearsal(self) -> list[Lesson]:
        return []

    def illustrate(self, target: Mapping[str, Any]) -> Image.Image | None:
        return Image.new("RGB", (2, 2))

    def content_hash(self) -> str:
        return "0"


class FakeJudge(Strict):
    """Texts by match; a drawing is right where its item's number is even."""

    def __call__(self, pairs: list[tuple[Item, Response]]) -> list[Verdict]:
        return [
            Verdict(
                item.id,
                response.direction,
                response.text in item.accepted
                if response.direction is Direction.UNDERSTANDING
                else item.id.endswith(("0", "3", "4", "7")),
            )
            for item, response in pairs
        ]

    def settings(self) -> dict[str, Any]:
        return {}


class FakeEdit(ScriptedIntervention):
    """Adds its size; spoils the weights where that is 7, diverges where it is 8."""

    def fit(self, umm: Any, *rest: Any, **more: Any) -> Any:
        if self.size == 7:
            with torch.no_grad():
                umm.weight[2, 2] += 1
        delta = super().fit(umm, *rest, **more)
        return delta.scaled(math.inf) if self.size == 8 else delta


def lines(splits: Mapping[str, int]) -> str:
    def probe(text: str, accepted: str) -> dict[str, Any]:
        return {"understand": text, "generate": f"draw {text}", "accepted": [accepted], "target": {"t": 1}}

    return "".join(
        json.dumps(
            {
                "id": f"{split}{n}", "subject": "zor", "relation": "colour", "target_true": "old",
                "target_new": "new", "split": split, "category": "a",
                "edit": probe(f"edit zor {split}{n}", "new"),
                "reworded": [probe(f"reworded zor {split}{n}", "new")],
                "neighbours": [probe(f"near {split}{n}", "old")],
                "derived": [probe(f"derived {split}{n}", "new")],
            }
        )
        + "\n"
        for split, number in splits.items()
        for n in range(number)
    )  # fmt: skip


RECIPE = """
name: scripted
about: a recipe of fakes
seed: 0
model: {{use: fake}}
benchmark: {{use: world}}
judge: {{use: judge}}
facts: {{file: {facts}, split: test, count: 2}}
intervention: {{use: edit, size: 0.1}}
evaluation: {{batch: 16, items: 40, official: false, replicates: 50}}
"""

Opened = Callable[..., AbstractContextManager[Trials]]


@pytest.fixture(autouse=True)
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"models": {"fake": "FakeModel"}, "benchmarks": {"world": "FakeBenchmark"}}
    table |= {"judges": {"judge": "FakeJudge"}, "interventions": {"edit": "FakeEdit"}}
    found = {
        kind: {name: f"{__name__}:{target}" for name, target in entries.items()}
        for kind, entries in table.items()
    }
    monkeypatch.setattr(registry, "BUILT_IN", found)
    UMMS.clear()
    ASKED.clear()


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., LoadedRecipe]:
    def made(*overrides: str, splits: Mapping[str, int] | None = None) -> LoadedRecipe:
        file = tmp_path / "facts.jsonl"
        file.write_text(lines(splits or {"dev": 3, "test": 2}))
        return resolve(RECIPE.format(facts=file), source="scripted.yaml", overrides=overrides)

    return made


@pytest.fixture
def opened(store: Store, recipe: Callable[..., LoadedRecipe], request: pytest.FixtureRequest) -> Opened:
    """Trials of a study that is called after the test."""

    def enter(*overrides: str, study: str = "", **settings: Any) -> AbstractContextManager[Trials]:
        name = study or f"{request.node.originalname}-{sum(request.node.name.encode())}"
        settings = {"searched": [SIZE], **settings}
        return open_trials(recipe(*overrides), store=store, study=name, **settings)

    return enter


def whole(so_far: Mapping[str, float], step: int) -> bool:
    return False


def go(trials: Trials, size: float = 1.0, *, number: int = 0, **more: Any) -> TrialResult:
    return trials.run({SIZE: size}, number=number, report=more.pop("report", whole), **more)


def run_of(store: Store, run_id: str | None) -> Any:
    return store.client.get_run(run_id)


def test_a_trial_is_a_run_nested_in_the_search(store: Store, opened: Opened) -> None:
    with opened() as trials:
        result = go(trials, retry_of=None)
        run = run_of(store, result.run_id)
        assert run_of(store, trials.parent_id).info.status == "RUNNING"
    assert run.info.status == "FINISHED" and run.info.run_name == "#000 size=1"
    assert run.data.metrics.items() >= result.metrics.items()
    tags = run.data.tags
    wanted = {"kind": "trial", "outcome": "complete", "optuna.trial": "0", "umm": "scripted"}
    assert wanted.items() <= tags.items()
    assert tags["mlflow.parentRunId"] == trials.parent_id and tags["gapeval.baseline_run_id"]
    assert run.data.params[SIZE] == "1.0" and run.data.params["evaluation.split"] == "dev"
    parent = run_of(store, trials.parent_id)
    assert parent.info.status == "FINISHED" and parent.data.tags["kind"] == "search"
    assert torch.equal(UMMS[0].weight, torch.eye(4))
    assert not list((store.folder / "work").glob("trial-*"))


def test_every_metric_is_known_before_any_trial(opened: Opened) -> None:
    with opened(needs={"edit/locality/image": "search.goal"}) as trials:
        assert ASKED == []
        names = trials.metric_names()
        result = go(trials)
    sites = {name for name in result.metrics if name.startswith(("delta_norm", "delta_rank"))}
    assert set(result.metrics) == (names - {"delta_norm/total"}) | sites


def test_a_trial_never_sees_test(store: Store, opened: Opened) -> None:
    """Neither items nor facts, however it is asked; and a later test leaves nothing in it."""
    with opened() as trials:
        result = go(trials)
        seen = set(ASKED)
        before = run_of(store, result.run_id).data
        assert {text for text in seen if "test" in text} == set()
        assert all(int(text.split()[2]) % 2 for text in seen if text.startswith("tell"))
        outcome = trials.parent.outcome(result.run_id)  # type: ignore[attr-defined]
        assert {fact["split"] for fact in outcome.facts} == {"dev"}
        assert {row.tags["split"] for row in outcome.before.rows} == {"dev"}
        tested = trials.test({SIZE: 1.0}, number=0)
        assert set(ASKED) - seen, "the test asks something else"
        after = run_of(store, result.run_id).data
    assert (after.metrics, after.params, after.tags) == (before.metrics, before.params, before.tags)
    assert tested.run_id != result.run_id


def test_the_test_is_a_whole_run_made_once(store: Store, opened: Opened) -> None:
    with opened() as trials:
        go(trials)
        tested = trials.test({SIZE: 1.0}, number=0)
        asked = len(ASKED)
        assert trials.test({SIZE: 1.0}, number=0) == tested and len(ASKED) == asked
        with pytest.raises(ValueError, match="trial 5 .* is not finished"):
            trials.test({SIZE: 1.0}, number=5)
    run = run_of(store, tested.run_id)
    assert run.info.run_name == "test of #000 size=1" and run.data.params["evaluation.split"] == "test"
    assert run.data.tags["mlflow.parentRunId"] == trials.parent_id
    assert {"identity/delta_gap_score", "placebo/gap_score"} <= set(tested.metrics)
    assert run.data.metrics.items() >= tested.metrics.items()
    assert "optuna.trial" not in run.data.tags, "it is no trial"
    # The dev half tells "new" of no item, the test half of one in ten.
    moved = tested.optimism["delta/understanding"]
    assert moved.value == pytest.approx(-0.2) and moved.low < moved.value < moved.high
    assert tested.optimism["edit/reliability/text"].value == 0


def test_parts_come_in_a_fixed_order_and_end_at_the_metrics(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gapeval_lab.trials_parts.SHARD", 16)
    seen: list[tuple[int, dict[str, float]]] = []

    def report(so_far: Mapping[str, float], step: int) -> bool:
        seen.append((step, dict(so_far)))
        return False

    with opened() as trials:
        assert [trials.pairs(name) for name in ("edit/reliability/text", "after/gap_score")] == [1, 2]
        result = go(trials, report=report)
    assert [step for step, _ in seen] == list(range(1 + 3))
    facts, first, *_, last = [so_far for _, so_far in seen]
    assert facts["edit/reliability/text"] == 1.0 and "after/a" not in facts
    assert {"after/a", "after/b", "edit/reliability/text", "cost/seconds"} <= set(first), "every category"
    final = {name: value for name, value in last.items() if not name.startswith("part/")}
    assert final == {name: result.metrics[name] for name in final} and "delta/gap_score" in final
    assert first["part/after/gap_score"] == first["after/gap_score"]
    assert last["part/after/gap_score"] != last["after/gap_score"]
    assert not any(name.startswith("part/") for name in result.metrics)


def test_a_pruned_trial_is_finished_cut_and_apart(store: Store, opened: Opened) -> None:
    with opened() as trials:
        cut = go(trials, report=lambda so_far, step: step == 0)
        late = go(trials, number=1, report=lambda so_far, step: step == 3)
    assert cut.pruned and (cut.asked, cut.planned) == (8, 48)
    assert cut.metrics["edit/reliability/text"] == 1.0 and "after/gap_score" not in cut.metrics
    run = run_of(store, cut.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["outcome"] == "pruned"
    assert run.data.metrics["partial/edit/reliability/text"] == 1.0
    assert "edit/reliability/text" not in run.data.metrics and run.data.params[SIZE] == "1.0"
    assert not late.pruned and late.asked == late.planned, "of the last part there is nothing to save"
    assert torch.equal(UMMS[0].weight, torch.eye(4))


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (8.0, "delta: not finite"),
        ("much", "intervention.size"),
        (100.0, "prompts failed.*no token has a probability"),
    ],
)
def test_a_trial_that_does_not_work_out_is_no_end(
    store: Store, opened: Opened, size: Any, sentence: str
) -> None:
    with opened() as trials:
        with pytest.raises(TrialFailed, match=sentence) as caught:
            go(trials, size)
        assert go(trials, number=1).metrics["edit/reliability/text"] == 1.0
        assert trials.run_of(0) == caught.value.run_id and trials.run_of(9) is None
    run = run_of(store, caught.value.run_id)
    assert run.info.status == "FAILED" and run.data.tags["outcome"] == "failed"
    assert str(caught.value)[:60] in run.data.tags["gapeval.end"]
    assert not list((store.folder / "work").glob("trial-*"))


def test_a_trial_that_spoils_the_weights_stops_everything(store: Store, opened: Opened) -> None:
    with pytest.raises(SafetyError, match="changed by a trial"), opened() as trials:
        go(trials, 7.0)
    assert run_of(store, trials.run_of(0)).info.status == "FAILED"
    assert run_of(store, trials.parent_id).info.status == "FAILED"


def test_ctrl_c_fails_the_trial_and_the_search_can_go_on(store: Store, opened: Opened) -> None:
    def stop(so_far: Mapping[str, float], step: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened() as trials:
        go(trials, report=stop)
    assert run_of(store, trials.run_of(0)).info.status == "FAILED"
    assert run_of(store, trials.parent_id).info.status == "KILLED"
    with opened() as again:
        assert again.parent_id == trials.parent_id
        retried = go(again, number=1, retry_of=0)
    assert run_of(store, retried.run_id).data.tags["gapeval.retry_of"] == "0"
    assert run_of(store, trials.parent_id).info.status == "FINISHED"


def test_before_is_asked_once_for_all_workers(store: Store, opened: Opened) -> None:
    with opened("seed=5") as one:
        go(one)
        asked = len(ASKED)
        assert asked == 2 * 48, "before and after, in text"
        go(one, number=1)
        assert len(ASKED) == 3 * 48
    with opened("seed=5") as other:
        go(other, number=2)
        assert len(ASKED) == 4 * 48
    runs = store.client.search_runs(
        [store.experiment(experiment_name("scripted"))], "params.seed = '5' and tags.kind = 'baseline'"
    )
    assert len(runs) == 1


def test_the_parent_lives_as_long_as_a_worker(store: Store, opened: Opened) -> None:
    with opened() as one:
        with opened() as two:
            assert one.parent_id == two.parent_id
            assert store.reconcile() == []
        assert store.reconcile() == []
        assert run_of(store, one.parent_id).info.status == "RUNNING"
        with pytest.raises(UserError, match="search of another recipe"), opened("seed=1"):
            pass
    assert run_of(store, one.parent_id).info.status == "FINISHED"


def test_the_run_of_a_dead_worker_is_failed(store: Store, opened: Opened) -> None:
    """As a kill -9 leaves it: RUNNING, with a lock that nobody holds."""

    def orphan(trials: Trials, number: int) -> str:
        tags = {"kind": "trial", "optuna.trial": str(number), "mlflow.parentRunId": trials.parent_id}
        experiment = store.experiment(experiment_name("scripted", searches=True))
        made = store.client.create_run(experiment, tags=tags, run_name="x").info.run_id
        store.client.set_tag(made, "gapeval.lock", str(store.lock_path(made)))
        store.client.set_tag(made, "gapeval.host", socket.gethostname())
        store.lock_path(made).touch()
        (store.folder / "work" / f"trial-{made}").mkdir(parents=True)
        return str(made)

    with opened() as trials:
        found, told = orphan(trials, 0), orphan(trials, 1)
        trials.lost(told)
        assert store.reconcile() == [found]
        live: list[str] = []

        def report(so_far: Mapping[str, float], step: int) -> bool:
            live.append(str(trials.run_of(2)))
            with pytest.raises(ValueError, match="still running"):
                trials.lost(live[0])
            return False

        go(trials, number=2, report=report)
    with opened():  # the next worker sweeps what the dead one left
        assert not list((store.folder / "work").glob("trial-*"))
    for run_id in (found, told):
        assert run_of(store, run_id).info.status == "FAILED"
    assert run_of(store, live[0]).info.status == "FINISHED"


def test_a_goal_keeps_what_it_needs(opened: Opened) -> None:
    with opened() as trials:
        lean = trials.recipe_of({SIZE: 1.0}).recipe
    assert not lean.controls.placebo and not lean.controls.identity and lean.search is None
    with opened(
        study="needs", needs={"placebo/gap_score": "search.goal", "low/understanding": "search.goal"}
    ) as trials:
        kept = trials.recipe_of({SIZE: 1.0}).recipe
        result = go(trials)
    assert kept.controls.placebo and not kept.controls.identity and kept.evaluation.replicates == 50
    assert {"placebo/gap_score", "low/understanding"} <= set(result.metrics)
    with pytest.raises(
        UserError,
        match="no trial of this recipe logs 'edit/relibility/text'; did you mean 'edit/reliability/text'",
    ):
        opened(study="typo", needs={"edit/relibility/text": "search.goal.edit/relibility/text"}).__enter__()


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({"searched": ["evaluation.items"]}, (), r"search\.space\.evaluation\.items: trials may change"),
        ({"searched": ["facts.split"]}, (), r"search\.space\.facts\.split: trials may change the interv"),
        ({}, ("intervention=null",), "has no intervention to search over"),
        ({}, ("facts.format=zsre",), r"facts\.format: 'zsre' files have no dev and test facts"),
        ({"study": "no/name"}, (), "'no/name' cannot be a name"),
    ],
)
def test_what_cannot_be_searched_is_one_message(
    opened: Opened, settings: dict[str, Any], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message), opened(*overrides, **settings):
        pass
    assert ASKED == []


def test_a_number_that_is_given_again_is_tested_again(opened: Opened) -> None:
    """A study begun anew under its old name counts from 0; what tested the old trial 0 is not its test."""
    with opened() as trials:
        go(trials, 1.0)
        old = trials.test({SIZE: 1.0}, number=0)
    with opened() as trials:
        go(trials, 2.0)
        new = trials.test({SIZE: 2.0}, number=0)
    assert new.run_id != old.run_id


def test_what_breaks_the_state_before_is_no_failure_of_a_trial(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **settings: Any) -> Any:
        raise UserError("GAPEVAL_LAB_HOME: the disk is full")

    monkeypatch.setattr(trials_run, "measure", full)
    with opened() as trials, pytest.raises(UserError, match="the disk is full") as caught:
        go(trials)
    assert not isinstance(caught.value, TrialFailed)


def test_a_study_is_of_these_facts(store: Store, recipe: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    loaded = recipe()
    with open_trials(loaded, store=store, study="facts", searched=[SIZE]):
        pass
    file = tmp_path / "facts.jsonl"
    file.write_text(file.read_text().replace('"near dev0"', '"far dev0"'))
    with (
        pytest.raises(UserError, match="'facts'"),
        open_trials(loaded, store=store, study="facts", searched=[SIZE]),
    ):
        pass


def test_facts_without_a_dev_half_are_refused(store: Store, recipe: Callable[..., LoadedRecipe]) -> None:
    loaded = recipe(splits={"test": 4})
    with (
        pytest.raises(
            UserError, match=r"no split 'dev'; it has test \(4\); a search tries settings on 'dev'"
        ),
        open_trials(loaded, store=store, study="one-half", searched=[SIZE]),
    ):
        pass


def test_a_benchmark_without_marks_is_halved_and_that_is_said(store: Store, opened: Opened) -> None:
    with opened("benchmark.marks=false") as trials:
        assert "a hash of each item's id decides" in trials.notes[0]
        note = run_of(store, trials.parent_id).data.tags["mlflow.note.content"]
        assert trials.notes[0] in note
        go(trials)
        dev = {text for text in ASKED if text.startswith("tell")}
        trials.test({SIZE: 1.0}, number=0)
    test = {text for text in ASKED if text.startswith("tell")} - dev
    assert len(dev) > 20 and len(test) > 20


def test_past_runs_of_the_same_recipe_are_found(
    store: Store, opened: Opened, recipe: Callable[..., LoadedRecipe]
) -> None:
    ordinary = partial(tracked_run, store=store, on_progress=lambda *_: None)
    with opened("seed=8", study="first") as trials:
        result = go(trials, 2.0)
        go(trials, 3.0, number=1, report=lambda so_far, step: True)
        assert trials.past() == [], "its own trials are known to the study"
    dev = ("seed=8", "facts.split=dev", "evaluation.split=dev", "evaluation.replicates=20")
    edit = ordinary(load_bench(recipe(*dev, "intervention.size=4.0")))
    ordinary(load_bench(recipe("seed=8", "intervention.size=5.0")))  # on test: nothing to learn from
    with opened("seed=8", study="second") as trials:
        assert [given for given, _ in trials.past()] == [{SIZE: 2.0}, {SIZE: 4.0}], "the pruned one is not"
        for (_, metrics), wanted in zip(trials.past(), (result.metrics, scalars(edit.outcome)), strict=True):
            assert metrics.items() >= wanted.items()
    with opened("seed=9", study="third") as trials:
        assert trials.past() == []


def test_figures_files_and_numbers_go_to_the_parent(store: Store, opened: Opened, tmp_path: Path) -> None:
    class Figure:
        def savefig(self, place: Path, dpi: int = 0) -> None:
            place.write_text("drawn")

    (tmp_path / "best.yaml").write_text("name: best\n")
    with opened() as trials:
        trials.figure("history", Figure())
        trials.artifact(tmp_path / "best.yaml")
        trials.tell({"edit/reliability/image": 0.5}, note="**Best: #001**")
    listed = {entry.path for entry in store.client.list_artifacts(trials.parent_id)}
    assert listed == {"best.yaml", "figures"}
    run = run_of(store, trials.parent_id)
    assert run.data.metrics == {"edit/reliability/image": 0.5}
    assert run.data.tags["mlflow.note.content"] == "**Best: #001**"


def test_a_run_killed_after_its_logging_is_not_logged_again(
    store: Store, recipe: Callable[..., LoadedRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    loaded = recipe("seed=11")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gapeval_lab.tracked_run.archive", killed)
        tracked_run(load_bench(loaded), store=store, on_progress=lambda *_: None)
    asked = len(ASKED)
    done = tracked_run(load_bench(loaded), store=store, on_progress=lambda *_: None)
    assert len(ASKED) == asked and done.place == store.folder / "outcomes" / done.outcome.run_id
    run = run_of(store, done.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["gapeval.outcome"] == done.outcome.run_id
