"""The runs of a store by what people call them: MLflow's records joined with the outcomes on disk.

Reads summaries, fetches an outcome where a run was made on another machine, and computes nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.stored_runs import exactly, on_disk
from gapeval_lab.summaries import Summary, summary_of
from gapeval_lab.tracking_find import (
    FINISHED,
    Entry,
    NoSuchRun,
    entries,
    find_entry,
    place_of,
    stored,
    whereabouts,
)
from gapeval_lab.tracking_store import Store, Unreachable
from gapeval_lab.validation import did_you_mean

LEAST_TOLD = 0.5  # share of the edited facts that an edit should make the model tell


@dataclass(frozen=True)
class Run:
    """An entry with its summary; `place` is the folder of its outcome, or the file."""

    entry: Entry
    summary: Summary
    place: Path

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return self.entry.name or self.summary.name


def marks(entry: Entry, summary: Summary) -> list[str]:
    """What speaks against trusting a run's numbers, or against the edit itself."""
    found = []
    if entry.status != FINISHED:
        found.append(entry.status.lower())
    if summary.reverted is False:
        found.append("weights NOT restored")
    told = summary.quality.get("reliability", {}).get("text")
    if told is not None and told.after.value < LEAST_TOLD:
        found.append(f"edit did not take (told {100 * told.after.value:.0f} %)")
    return found


def open_entry(entry: Entry, store: Store, *, remote: bool = True) -> Run | None:
    """An entry with its summary; None where it has no outcome, or one on another machine and not `remote`.

    Raises:
        UserError: its outcome cannot be read.
    """
    # What an edit has logged as its baseline is read from the edit, pictures and all.
    place = entry.folder or place_of(entry, store, remote=remote)
    if place is None:
        return None
    summary = summary_of(place)
    if entry.kind == "baseline" and summary.kind != "baseline":
        summary = _before(summary)
    return Run(entry, summary, place)


def open_all(found: Iterable[Entry], store: Store) -> tuple[list[Run], list[Entry], list[str]]:
    """Those with an outcome on this machine, those without, and what could not be read."""
    runs, others, problems = [], [], []
    for entry in found:
        try:
            run = open_entry(entry, store, remote=False)
        except UserError as error:
            problems.append(str(error))
            others.append(entry)
            continue
        if run is None:
            others.append(entry)
        else:
            runs.append(run)
    return runs, others, problems


def _before(summary: Summary) -> Summary:
    """The model as it is, of an outcome that went on to change it."""
    recipe = {**summary.recipe, "name": "baseline"}
    gone = ("intervention", "then", "facts", "emergence", "controls")
    return summary.model_copy(
        update={
            "kind": "baseline",
            "recipe": {key: value for key, value in recipe.items() if key not in gone},
            "methods": [],
            "target_categories": [],
            "states": {"before": summary.states["before"]},
            "shift": None,
            "placebo_shift": None,
            "quality": {},
            "transfer_ratio": None,
        }
    )


def resolve(refs: Sequence[str], store: Store) -> tuple[list[Run], int]:
    """The runs that are meant, each once, in the order given, and how many repetitions are left out.

    Args:
        refs: what `find_run` takes, or a recipe's name: its newest finished run of each seed, without
            repetitions made by `reproduce`.
        store: where they are.

    Raises:
        UserError: nothing is called so, several runs are, or the run has no outcome.
    """
    try:
        known = entries(store)
    except Unreachable:
        known = stored(store)  # what lies on this disk can be compared without MLflow
    found: dict[str, Run] = {}
    repeated = 0
    for ref in refs:
        runs, left_out = _resolve(ref, known, store)
        repeated += left_out
        for run in runs:
            found.setdefault(f"{run.entry.id}/{run.summary.kind}", run)
    return list(found.values()), repeated


def _resolve(ref: str, known: Sequence[Entry], store: Store) -> tuple[list[Run], int]:
    place = exactly(ref, store.folder)
    if place is None:
        runs, repeated = _of_recipe(ref, known, store)
        if runs:
            return runs, repeated
        place = on_disk(ref, store.folder)
    if place is not None:
        return [_of_path(place, known, store)], 0
    try:
        entry = find_entry(ref, known, store)
    except NoSuchRun:
        recipes = sorted({e.logged.tags.get("recipe", "") for e in known if e.logged} - {""})
        if hint := did_you_mean(ref, recipes):
            raise UserError(f"run: '{ref}' is no finished run and no recipe with one{hint}") from None
        raise
    run = open_entry(entry, store)
    if run is None:
        whereabouts(entry, store)  # says why
        raise AssertionError(entry)
    return [run], 0


def _of_path(place: Path, known: Sequence[Entry], store: Store) -> Run:
    folder = place if place.is_dir() else None
    for entry in known:
        if folder and entry.folder and entry.folder == folder.resolve() and not entry.derived:
            run = open_entry(entry, store)
            if run is not None:
                return run
    summary = summary_of(place)
    started = datetime.datetime.fromisoformat(summary.started).timestamp()
    entry = Entry(summary.run_id, summary.name, FINISHED, summary.kind, started, None, folder)
    return Run(entry, summary, place)


def _of_recipe(name: str, known: Sequence[Entry], store: Store) -> tuple[list[Run], int]:
    """The newest finished run of each seed of a recipe, by seed, no trials; and how many repeat another."""
    newest: dict[int, Run] = {}
    repeated = 0
    for entry in reversed(known):
        recipe = entry.logged.tags.get("recipe") if entry.logged else entry.name
        if recipe != name or entry.status != FINISHED or entry.kind == "trial" or entry.derived:
            continue
        if entry.reproduces:
            repeated += 1
            continue
        seed = entry.logged.params.get("seed") if entry.logged else None
        if seed is not None and seed.lstrip("-").isdigit() and int(seed) in newest:
            continue
        run = open_entry(entry, store)
        if run is None or run.summary.kind == "trial":
            continue
        if run.summary.reproduces:
            repeated += 1
        else:
            newest.setdefault(run.summary.seed, run)
    return [newest[seed] for seed in sorted(newest)], repeated
