"""A stored run, run again from what it stored: its resolved recipe, and its own copies of what it read.

Nothing is taken from disk that an earlier run left there: no responses, no second moments, no verdicts
of a judge. The new outcome is a run of its own; the old one is only read.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapeval_lab import registry
from gapeval_lab.bench import Bench, chosen_items, hash_of_facts, inputs_of, load_bench, stages_of
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.inputs import copies
from gapeval_lab.interfaces import Judge
from gapeval_lab.items import items_digest
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import LoadedRecipe, resolve
from gapeval_lab.reproducing_compare import Comparison, compare
from gapeval_lab.reproducing_differences import (
    Difference,
    circumstances,
    data_differences,
    input_differences,
    model_differences,
    recipe_differences,
)
from gapeval_lab.run import OnProgress, home_of, run
from gapeval_lab.stored_runs import read_outcome
from gapeval_lab.tracked_run import Tracked, tracked_run
from gapeval_lab.tracking import Store, find_run
from gapeval_lab.tracking_patient import Say
from gapeval_lab.work_folder import archive, working_folder


@dataclass(frozen=True)
class Stored:
    """A finished run.

    Attributes:
        folder: where its record lies, and what else is at hand of it.
        outcome: the record.
    """

    folder: Path
    outcome: Outcome


@dataclass(frozen=True)
class Plan:
    """What a repetition takes, before its model is loaded.

    Attributes:
        stored: the run.
        loaded: its recipe, as it was resolved then.
        places: the copies of what it read.
        differences: between then and now.
    """

    stored: Stored
    loaded: LoadedRecipe
    places: Mapping[str, Path]
    differences: tuple[Difference, ...]


def find_stored(ref: str, store: Store) -> Stored:
    """The run that a word means, as `find_run` takes it.

    Raises:
        UserError: there is no such run, or its record cannot be read.
    """
    place = find_run(ref, store, alone=True)
    return Stored(place if place.is_dir() else place.parent, read_outcome(place))


def plan(stored: Stored) -> Plan:
    """What a repetition would take, and what differs from then. Loads the benchmark and the facts alone.

    Raises:
        UserError: the stored recipe does not fit this version, or its data is gone.
    """
    outcome = stored.outcome
    loaded = stored_recipe(outcome)
    places = copies(outcome, stored.folder)
    recipe = loaded.recipe
    benchmark = recipe.build("benchmark")
    items = chosen_items(recipe, benchmark)
    stages = stages_of(recipe, benchmark, places=places)
    facts = [fact for stage in stages for fact in stage.facts]
    differences = (
        *data_differences(outcome, data_hash=items_digest(items), facts_hash=hash_of_facts(facts)),
        *input_differences(outcome, inputs_of(recipe, stages, places=places), places=places),
        *recipe_differences(outcome, loaded.resolved),
        *circumstances(outcome),
    )
    return Plan(stored, loaded, places, differences)


def stored_recipe(outcome: Outcome) -> LoadedRecipe:
    """A run's recipe as it was resolved then: what has become of its file or its configs does not matter.

    Raises:
        UserError: this version does not know a setting of it.
    """
    # The record of a baseline that an edit brought along has no words about itself.
    text = json.dumps({"about": "", **outcome.recipe}, ensure_ascii=False)
    try:
        loaded = resolve(text, source=f"the recipe of {outcome.run_id}")
    except UserError as error:
        made_by = outcome.git_revision or f"gapeval_lab {outcome.versions.get('gapeval_lab', '?')}"
        raise UserError(f"{error}\n  it was run by another version; take that one ({made_by})") from None
    return dataclasses.replace(
        loaded, text=outcome.recipe_text, overrides=tuple(outcome.overrides), source=outcome.run_id
    )


def reproduce(
    chosen: Plan,
    *,
    store: Store,
    on_progress: OnProgress,
    anyway: bool = False,
    out: Path | None = None,
    tracked: bool = True,
    say: Say | None = None,
) -> tuple[Tracked, list[Difference]]:
    """Run it again.

    Args:
        chosen: from `plan`.
        store: where outcomes lie, and, if `tracked`, the checked store of MLflow.
        on_progress: told how far each phase is.
        anyway: go on where data, weights or settings are not those of then.
        out: the folder that takes the result's; by default `mlruns/outcomes`.
        tracked: log it to MLflow; its run's id is empty otherwise.
        say: told where MLflow cannot be reached.

    Returns:
        the new run, and everything that differs from then.

    Raises:
        UserError: it would be another experiment, and `anyway` is not set.
    """
    differences = list(chosen.differences)
    _refuse(chosen, differences, anyway)
    with tempfile.TemporaryDirectory(prefix="gapeval-verdicts-") as verdicts:
        judge = _fresh_judge(chosen.loaded, Path(verdicts))
        bench = load_bench(chosen.loaded, places=chosen.places, judge=judge)
        bench = dataclasses.replace(bench, reproduces=chosen.stored.outcome.run_id)
        differences += model_differences(
            chosen.stored.outcome,
            weights=bench.weights,
            model=bench.umm.settings(),
            judge=bench.judge.settings(),
        )
        _refuse(chosen, differences, anyway)
        if tracked:
            done = tracked_run(bench, store=store, on_progress=on_progress, out=out, say=say)
        else:
            done = _untracked(bench, store=store, on_progress=on_progress, out=out)
    return done, differences


def told(
    stored: Stored, done: Tracked, differences: Sequence[Difference], *, store: Store
) -> tuple[Comparison, dict[str, Any]]:
    """Compare the repetition with the run, and say so in its folder and on its MLflow run.

    Returns:
        the comparison, and all of it as plain values: what `reproduction.json` in the folder holds.
    """
    comparison = compare(stored.outcome, done.outcome, then_folder=stored.folder, now_folder=done.place)
    report = {
        "then": stored.outcome.run_id,
        "now": done.outcome.run_id,
        **comparison.plain(),
        "differences": [dataclasses.asdict(one) for one in differences],
    }
    write_text(done.place / "reproduction.json", json.dumps(report, indent=1))
    if done.run_id:
        store.client.set_tag(done.run_id, "gapeval.reproduced", comparison.verdict[:500])
    return comparison, report


def _untracked(bench: Bench, *, store: Store, on_progress: OnProgress, out: Path | None) -> Tracked:
    with working_folder(store.folder, bench.key) as work:
        home = home_of(bench, work, store.folder)
        outcome = run(bench, home=home, work=work, on_stage=lambda _: None, on_progress=on_progress)
        place = archive(work, (out or store.folder / "outcomes") / outcome.run_id)
    return Tracked(outcome, "", place)


def _refuse(chosen: Plan, differences: list[Difference], anyway: bool) -> None:
    stops = [one for one in differences if one.stops]
    if stops and not anyway:
        lines = [
            f"run: {chosen.stored.outcome.run_id} cannot be repeated as it was",
            *(one.told() for one in stops),
        ]
        raise UserError(
            "\n  ".join([*lines, "bring back what it was run with, or compare all the same with --anyway"])
        )


def _fresh_judge(loaded: LoadedRecipe, verdicts: Path) -> Judge:
    """The recipe's judge, and all judges within it, with another place for the verdicts that they keep."""

    def placed(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: str(verdicts) if key == "cache" else placed(value) for key, value in node.items()}
        return [placed(one) for one in node] if isinstance(node, list | tuple) else node

    node = loaded.recipe.judge.model_dump(mode="json")
    settings = {key: value for key, value in placed(node).items() if key != "use"}
    judge: Judge = registry.build("judges", loaded.recipe.judge.use, settings=settings)
    return judge
