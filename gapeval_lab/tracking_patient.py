"""A run whose store may go away: what fails there is said once, and the work goes on.

What a run finds is on disk before MLflow hears of it, so nothing is lost: `gapeval-lab sync` logs it later.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking import LeftOpen, LiveRun, track
from gapeval_lab.tracking_stop import sigterm_raises
from gapeval_lab.tracking_store import Store, Unreachable, first_line, shown
from gapeval_lab.tracking_system import system_metrics

Say = Callable[[str], None]
"""Takes a line for the user."""

_log = logging.getLogger(__name__)


def troubles() -> tuple[type[Exception], ...]:
    """What a store's calls raise where it cannot be reached or written."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, Unreachable


def prepare(store: Store) -> None:
    """Check the store before a run, and end the runs in it that lost their owner.

    A server that does not answer is no reason not to run: `patient_track` says so.

    Raises:
        UserError: no run can ever be stored so.
    """
    with contextlib.suppress(Unreachable):
        store.check()
        store.reconcile()


def lost_words(store: Store, why: str) -> str:
    """What the user is told once, where a run is out of its store's reach."""
    return (
        f"warning: MLflow at {shown(store.uri)} cannot be reached or written ({why}). Nothing is lost: the "
        "run goes on and its result is kept on disk; `gapeval-lab sync` logs it later"
    )


class Listener(Protocol):
    """A run that is told what goes on: a `PatientRun`, or one in another process."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id, where the run was begun."""

    @property
    def lost(self) -> str | None:
        """Why nothing more is logged; None while all is well."""

    @property
    def ahead(self) -> Callable[[Outcome, Path], None] | None:
        """As `LiveRun.ahead`, without waiting for it; None where the work would have to wait."""

    def hear(self) -> None:
        """Raise what the store has against the run, if that is only known now (UserError)."""

    def stage(self, name: str) -> None:
        """As `LiveRun.stage`."""

    def log(self, outcome: Outcome, folder: Path, *, name: str | None = None) -> None:
        """As `LiveRun.log`; another process does it meanwhile."""

    def finish(self, report: Path | None) -> bool:
        """Wait for `log`, and bring the report along; False where not all of it could be done."""


class Track(Protocol):
    """Opens a run around a block, as `patient_track` does."""

    def __call__(
        self, name: str, *, say: Say | None = None, **how: Any
    ) -> contextlib.AbstractContextManager[Listener]:
        """A run's block."""


@dataclass
class PatientRun:
    """A run that goes on without its store.

    Attributes:
        store: where it should be.
        say: told once that the store is out of reach.
        live: the run, None where it could not be begun.
        lost: why nothing more is logged; None while all is well.
    """

    store: Store
    say: Say
    live: LiveRun | None = None
    lost: str | None = field(default=None, init=False)
    ahead: None = field(default=None, init=False)

    @property
    def run_id(self) -> str | None:
        """MLflow's id, where the run was begun."""
        return self.live.run_id if self.live else None

    def hear(self) -> None:
        """Nothing: it was heard before the run began."""

    def stage(self, name: str) -> None:
        """As `LiveRun.stage`."""
        self.attempt(lambda live: live.stage(name))

    def log(self, outcome: Outcome, folder: Path, *, name: str | None = None) -> None:
        """As `LiveRun.log`."""
        self.attempt(lambda live: live.log(outcome, folder, name=name))

    def finish(self, report: Path | None) -> bool:
        """Bring the report along; False where not all could be logged."""
        if report is not None:
            self.attempt(lambda live: live.bring(report))
        return self.lost is None

    def lose(self, error: Exception) -> None:
        """Nothing more is logged, and the user hears why."""
        if self.lost is not None:
            return
        self.lost = first_line(error)
        self.say(lost_words(self.store, self.lost))

    def attempt(self, call: Callable[[LiveRun], None]) -> None:
        """Make a call to the run, unless it is lost; one that cannot be made loses it."""
        if self.lost is not None or self.live is None:
            return
        try:
            self.store.ping()
            call(self.live)
        except troubles() as error:
            self.lose(error)


@contextlib.contextmanager
def patient_track(store: Store, name: str, *, say: Say | None = None, **how: Any) -> Iterator[PatientRun]:
    """`track` for a run that can be logged later.

    A run that was lost is left open in the store, so that it can be continued there.

    Args:
        store: from `Store.open`, and `prepare`d.
        name: of the run.
        say: told what goes wrong; by default it is logged as a warning.
        how: as for `track`.
    """
    run, whole = PatientRun(store, say or _log.warning), False
    try:
        with contextlib.ExitStack() as stack:
            try:
                store.ping()
                run.live = stack.enter_context(track(store, name, **how))
                stack.enter_context(system_metrics(store, run.live.run_id))
            except troubles() as error:
                run.lose(error)
                stack.enter_context(sigterm_raises())
            yield run
            whole = True
            if run.lost is not None:
                raise LeftOpen
    except LeftOpen:
        return
    except Exception as error:
        if not whole or not isinstance(error, troubles()):
            raise
        run.lose(error)  # it could not be ended
