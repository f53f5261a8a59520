"""The runs of a store by what people call them: MLflow's records joined with the outcomes on disk.

Reads summaries, fetches an outcome where a run was made on another machine, and computes nothing.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.stored_runs import LAST, find_run
from gapeval_lab.summaries import Summary, summary_of
from gapeval_lab.tracking_read import Logged, fetch, local_artifacts, read_runs
from gapeval_lab.tracking_store import Store
from gapeval_lab.validation import did_you_mean

FINISHED = "FINISHED"
OUTCOME = "outcome.json"
LEAST_TOLD = 0.5  # share of the edited facts that an edit should make the model tell
TAGS = (
    *("kind", "method", "target", "direction", "umm", "recipe", "verdict"),
    *("gapeval.outcome", "gapeval.fingerprint", "gapeval.key", "gapeval.end"),
)
PARAMS = ("seed", "data_hash", "weights_fingerprint", "recipe_hash", "benchmark.", "judge.")
ENDS = ("gap_score", "understanding", "generation")
METRICS = (
    *(f"{end}/{name}" for end in ("delta", "low", "high") for name in ENDS),
    *("before/gap_score", "after/gap_score", "delta/on_target", "delta/off_target"),
    *("understanding/overall", "generation/overall", "before/understanding", "before/generation"),
    *("edit/reliability/text", "edit/reliability/image", "placebo/delta_gap_score"),
)
_MLFLOW_ID = re.compile(r"[0-9a-f]{6,32}")


@dataclass(frozen=True)
class Entry:
    """A run of the store.

    Attributes:
        id: ours; MLflow's where there is no outcome yet.
        name: what MLflow calls it; the recipe's name where MLflow does not know the run.
        started: seconds since 1970.
        logged: as it stands in MLflow, if it does.
        folder: where its outcome lies on this disk, if it does.
    """

    id: str
    name: str
    status: str
    kind: str
    started: float
    logged: Logged | None
    folder: Path | None

    @property
    def derived(self) -> bool:
        """A baseline that an edit has logged beside itself: it bears the edit's id."""
        tags = self.logged.tags if self.logged else {}
        return tags.get("gapeval.key", "").startswith("baseline-")


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


def entries(store: Store, *, where: str | None = None, metrics: Iterable[str] = METRICS) -> list[Entry]:
    """Every run, oldest first; with a filter only those in MLflow that it matches.

    Raises:
        UserError: the filter is none, or the store cannot be read.
    """
    logged = read_runs(store, where=where, tags=TAGS, params=PARAMS, metrics=tuple(metrics))
    folders = {path.parent.name: path.parent for path in store.folder.glob(f"outcomes/*/{OUTCOME}")}
    found, claimed = [], set()
    for one in logged:
        kind, ours = one.tags.get("kind", ""), one.tags.get("gapeval.outcome", "")
        entry = Entry(
            id=ours or one.run_id,
            name=one.name,
            status=one.status,
            kind=kind,
            started=one.started / 1000,
            logged=one,
            folder=folders.get(ours),
        )
        found.append(entry)
        if not entry.derived:
            claimed.add(ours)
    if where is None:
        found += [_of_folder(folder) for ours, folder in folders.items() if ours not in claimed]
    return sorted(found, key=lambda entry: (entry.started, entry.id))


def _of_folder(folder: Path) -> Entry:
    """An outcome of which MLflow knows nothing."""
    name, _, rest = folder.name.rpartition("-20")
    try:
        when = datetime.datetime.strptime(f"20{rest}".split("-")[0], "%Y%m%dT%H%M%S")
        started = when.replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        name, started = folder.name, (folder / OUTCOME).stat().st_mtime
    return Entry(folder.name, name, FINISHED, "", started, None, folder)


def open_entry(entry: Entry, store: Store, *, remote: bool = True) -> Run | None:
    """An entry with its summary; None where it has no outcome, or one on another machine and not `remote`.

    Raises:
        UserError: its outcome cannot be read.
    """
    place = entry.folder
    if place is None and entry.logged is not None:
        folder = local_artifacts(entry.logged)
        place = folder if folder is not None and (folder / OUTCOME).is_file() else None
        if place is None and remote and entry.status == FINISHED:
            kept = store.folder / "fetched" / entry.logged.run_id
            there = (kept / OUTCOME).is_file() or fetch(store, entry.logged, OUTCOME, kept) is not None
            place = kept if there else None
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


def resolve(refs: Sequence[str], store: Store) -> list[Run]:
    """The runs that are meant, each once, in the order given.

    Args:
        refs: an outcome's folder or file, "last", an id of ours or of MLflow or how it begins, a run's name
            in MLflow, or a recipe's name (its newest finished run of each seed).
        store: where they are.

    Raises:
        UserError: nothing is called so, several runs are, or the run has no outcome.
    """
    known = entries(store)
    found: dict[str, Run] = {}
    for ref in refs:
        for run in _resolve(ref, known, store):
            found.setdefault(f"{run.entry.id}/{run.summary.kind}", run)
    return list(found.values())


def _resolve(ref: str, known: Sequence[Entry], store: Store) -> list[Run]:
    place = Path(ref).expanduser()
    if place.is_file() or (place / OUTCOME).is_file():
        return [_of_path(place, known, store)]
    if ref == LAST:
        return [_of_path(find_run(LAST, store.folder), known, store)]
    own = [entry for entry in known if entry.id == ref and not entry.derived]
    if own:
        return [_opened(own[-1], store)]
    if found := _of_recipe(ref, known, store):
        return found
    for matching in (
        [e for e in known if e.logged and e.logged.run_id == ref],
        [e for e in known if e.name == ref and e.status == FINISHED and e.logged],
        [e for e in known if e.id.startswith(ref) and not e.derived],
        [e for e in known if e.logged and _MLFLOW_ID.fullmatch(ref) and e.logged.run_id.startswith(ref)],
    ):
        if len(matching) > 1:
            shown = ", ".join(entry.id for entry in matching[-4:])
            raise UserError(
                f"run: '{ref}' is {len(matching)} runs (the newest: {shown}); give one's id, or its recipe"
            )
        if matching:
            return [_opened(matching[0], store)]
    recipes = {entry.logged.tags.get("recipe", "") for entry in known if entry.logged}
    names = sorted(filter(None, {*recipes, *(e.id for e in known), *(e.name for e in known)}))
    raise UserError(
        f"run: nothing in {store.folder} is called '{ref}'{did_you_mean(ref, names)}; see 'gapeval-lab ls "
        "runs', or give an outcome's folder"
    )


def _of_path(place: Path, known: Sequence[Entry], store: Store) -> Run:
    folder = place if place.is_dir() else place.parent
    for entry in known:
        if entry.folder is not None and entry.folder == folder.resolve() and not entry.derived:
            return _opened(entry, store)
    summary = summary_of(place)
    started = datetime.datetime.fromisoformat(summary.started).timestamp()
    entry = Entry(summary.run_id, summary.name, FINISHED, summary.kind, started, None, folder)
    return Run(entry, summary, place)


def _of_recipe(name: str, known: Sequence[Entry], store: Store) -> list[Run]:
    """The newest finished run of each seed of a recipe, by seed; no trials."""
    newest: dict[int, Run] = {}
    for entry in reversed(known):
        recipe = entry.logged.tags.get("recipe") if entry.logged else entry.name
        if recipe != name or entry.status != FINISHED or entry.kind == "trial" or entry.derived:
            continue
        seed = entry.logged.params.get("seed") if entry.logged else None
        if seed is not None and seed.lstrip("-").isdigit() and int(seed) in newest:
            continue
        run = open_entry(entry, store)
        if run is not None and run.summary.kind != "trial":
            newest.setdefault(run.summary.seed, run)
    return [newest[seed] for seed in sorted(newest)]


def _opened(entry: Entry, store: Store) -> Run:
    run = open_entry(entry, store)
    if run is None:
        raise UserError(
            f"run: '{entry.id}' ({entry.status.lower()}) has no outcome, neither on this disk nor in MLflow; "
            "name a finished run"
        )
    return run
