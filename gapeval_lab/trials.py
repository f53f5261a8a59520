"""Trials of a search: runs of one recipe with overrides, lean, on dev alone, each an MLflow run.

Knows how a trial is run, told and tested; refuses to know how the next one is chosen. The model is loaded
once, the state before is measured once and found again by every worker, so that a trial costs its fit and
its measurement after it.

    with open_trials(loaded, store=store, study="wk", searched=["intervention.lr"], needs=goals) as trials:
        result = trials.run({"intervention.lr": 0.3}, number=0, report=lambda so_far, step: False)
        tested = trials.test({"intervention.lr": 0.3}, number=0)
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping

from gapeval_lab.bench import Bench, hash_of_facts, load_bench
from gapeval_lab.recipe import LoadedRecipe, flatten
from gapeval_lab.run import OnProgress
from gapeval_lab.splits import marked
from gapeval_lab.tracking import Store, experiment_name
from gapeval_lab.tracking_study import study_run
from gapeval_lab.trials_recipe import check_recipe, recipe_of_trial
from gapeval_lab.trials_types import Report, TestResult, TrialFailed, TrialResult, Trials, check_metrics

__all__ = ["Report", "TestResult", "TrialFailed", "TrialResult", "Trials", "open_trials"]


@contextlib.contextmanager
def open_trials(
    loaded: LoadedRecipe,
    *,
    store: Store,
    study: str,
    searched: Collection[str],
    needs: Mapping[str, str] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[Trials]:
    """A worker's access to the trials of a study; loads the model, finds or makes the parent run.

    Args:
        loaded: the searched recipe, with the user's overrides.
        store: checked.
        study: the search's name.
        searched: dotted paths that trials change.
        needs: metrics that goals and constraints name -> the field that names each.
        on_progress: told how far each phase of a trial is.

    Raises:
        UserError: the recipe cannot be searched honestly, a metric is none of a trial's, or the study is
            another recipe's. Nothing was measured then.
    """
    from gapeval_lab.trials_metrics import metric_names
    from gapeval_lab.trials_run import RecipeTrials

    needs = needs or {}
    check_recipe(loaded, searched)
    bench = load_bench(recipe_of_trial(loaded, {}, needs=needs))
    known = metric_names(bench)
    check_metrics([(key, name) for name, key in needs.items()], known)
    notes = _notes(bench)
    with study_run(
        store,
        study,
        experiment=experiment_name(bench.name, searches=True),
        key=_key(loaded, bench, searched),
        params={
            "recipe": bench.loaded.recipe.name,
            "searched": json.dumps(sorted(searched)),
            "umm": bench.name,
            "seed": str(bench.loaded.recipe.seed),
            "data_hash": bench.data_hash,
            "weights_fingerprint": bench.weights,
        },
        note="\n\n".join((f"**Search `{study}`**: trials of `{bench.loaded.recipe.name}`", *notes)),
    ) as parent:
        yield RecipeTrials(
            loaded,
            bench,
            parent,
            searched=searched,
            needs=needs,
            names=known,
            notes=notes,
            on_progress=on_progress,
        )


def _key(loaded: LoadedRecipe, bench: Bench, searched: Collection[str]) -> str:
    """Hash of everything that makes two searches the same, goals and sampler left aside."""
    flat = {
        path: value
        for path, value in flatten(loaded.resolved).items()
        if path not in searched and path.split(".")[0] not in ("about", "search")
    }
    facts = [hash_of_facts(bench.facts), bench.read]
    parts = [sorted(searched), flat, bench.weights, bench.data_hash, facts]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _notes(bench: Bench) -> tuple[str, ...]:
    """What a reader of the search has to know."""
    seen = "Trials see facts and items of the dev half alone; the best is tested once on the test half."
    if not marked(bench.benchmark.items()):
        seen += " The benchmark marks no halves: a hash of each item's id decides."
    lean = (
        "Trials have no controls, published estimator, wide bootstrap, pictures and stored weights unless a "
        "goal needs them; each one's recipe says so, and running it gives the trial's numbers."
    )
    return seen, lean
