"""One whole run of a recipe inside an MLflow run, kept where outcomes are kept.

The Outcome is on disk before MLflow hears of it; after a kill the same call goes on where it stopped.
Where MLflow cannot be reached, the run goes on, and `sync` logs it later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gapeval_lab.bench import Bench
from gapeval_lab.evaluate import Helpers
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.run_page import write_report
from gapeval_lab.recording import targets
from gapeval_lab.run import OnProgress, home_of, run
from gapeval_lab.summaries import summary_of
from gapeval_lab.tracking import Store, experiment_name, run_name
from gapeval_lab.tracking_marker import Marker
from gapeval_lab.tracking_patient import Say, Track, patient_track
from gapeval_lab.tracking_values import first_tags
from gapeval_lab.work_folder import archive, working_folder

LOGGING = "log to MLflow"


@dataclass(frozen=True)
class Parent:
    """The search that a run belongs to: its run, its experiment, and what this run is called there."""

    run_id: str
    experiment: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Tracked:
    """A finished run: its record, its MLflow run (None where it is not logged whole), and its folder."""

    outcome: Outcome
    run_id: str | None
    place: Path


def tracked_run(
    bench: Bench,
    *,
    store: Store,
    on_progress: OnProgress,
    out: Path | None = None,
    parent: Parent | None = None,
    helpers: Helpers | None = None,
    say: Say | None = None,
    track: Track | None = None,
) -> Tracked:
    """Run a recipe, log it, move its folder to where it stays.

    Args:
        bench: from `load_bench`.
        store: checked, or prepared to do without it.
        on_progress: told how far each phase is, and the logging.
        out: the folder that takes the result's; by default `mlruns/outcomes`.
        parent: the search that it belongs to, if any.
        helpers: see `run`.
        say: told where MLflow cannot be reached.
        track: opens the run in the store, by default in this process.

    Raises:
        UserError: this very recipe is running already, or a place cannot be written.
    """
    with working_folder(store.folder, bench.key) as work:
        outcome, run_id = _logged(
            bench,
            store=store,
            work=work,
            on_progress=on_progress,
            parent=parent,
            helpers=helpers,
            say=say,
            track=track or partial(patient_track, store),
        )
        place = archive(work, (out or store.folder / "outcomes") / outcome.run_id)
        summary_of(place)  # written now, so that reading many runs is quick
    return Tracked(outcome, run_id, place)


def _logged(
    bench: Bench,
    *,
    store: Store,
    work: Path,
    on_progress: OnProgress,
    parent: Parent | None,
    helpers: Helpers | None,
    say: Say | None,
    track: Track,
) -> tuple[Outcome, str | None]:
    marker = Marker.read(work)
    whole = marker.whole_in(store)
    if whole is not None:  # killed between logging and moving the result to its place
        return Outcome.load(work), whole
    marker.key = bench.key
    name = run_name(bench.loaded.resolved, targets=targets(bench), direction=bench.direction)
    tags = first_tags(
        bench.loaded.resolved,
        kind=bench.kind,
        targets=targets(bench),
        direction=bench.direction,
        umm=bench.name,
    )
    tags |= parent.tags if parent else {}
    if bench.reproduces is not None:
        name, tags = f"{name} again", tags | {"gapeval.reproduces": bench.reproduces}
    with track(
        parent.name if parent else name,
        say=say,
        experiment=parent.experiment if parent else experiment_name(bench.name),
        key=bench.key,
        parent_id=parent.run_id if parent else None,
        tags=tags,
    ) as live:
        ahead = live.ahead

        def progress(phase: str, done: int, total: int) -> None:
            live.hear()
            on_progress(phase, done, total)

        outcome = run(
            bench,
            home=home_of(bench, work, store.folder),
            work=work,
            on_stage=live.stage,
            on_progress=progress,
            on_known=None if ahead is None else lambda known: ahead(known, work),
            helpers=helpers,
        )
        on_progress(LOGGING, 0, 1)
        given = parent.name if parent else name if bench.reproduces else None
        live.log(outcome, work, name=given)
        report = None if outcome.kind == "trial" else write_report(outcome, work)
        if live.finish(report) and live.run_id:
            marker.is_whole(store, live.run_id)
            marker.write(work)
        on_progress(LOGGING, 1, 1)
    if live.lost is not None:
        marker.is_open(store, live.run_id)
        marker.write(work)
        return outcome, None
    return outcome, live.run_id
