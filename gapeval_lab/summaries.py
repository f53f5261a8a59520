"""An outcome without its texts and pictures: numbers, settings and verdicts, for whoever reads many runs.

`summary.json` lies beside `outcome.json` and is made from it alone: a hundredth of its size, and made again
whenever the outcome is another file than the one it was made of. It can be deleted at any time.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.gap.records import Estimate, GapReport, ShiftReport
from gapeval_lab.gap.table import ItemVerdict
from gapeval_lab.outcome import QUALITIES, ItemRow, Outcome, Phase, PhaseResult, QualityCell, Record

NAME = "summary.json"
VERSION = 2
DIGEST = 8  # letters of an item's hash
_LETTERS = {True: "1", False: "0", None: "-"}
_VERDICTS = {letter: verdict for verdict, letter in _LETTERS.items()}
_NOT_SETTINGS = ("about", "search")  # what a recipe says, and what a search of it would vary

Side = Literal["text", "image"]


class State(Record):
    """One phase: its report, and each item's verdicts as '1', '0' or '-' (not scored)."""

    gap: GapReport
    told: str
    drawn: str


class Summary(Record):
    """What is compared between runs.

    Attributes:
        made_of: size and time (ns) of the outcome's file; (0, 0) where there is none.
        reproduces: the id of the run that it repeats.
        methods: every intervention's name, in order.
        items, category_of, digests: the items' ids, their place in `categories`, and 8 letters of a hash of
            what each asks, one after the other.
    """

    version: int = VERSION
    made_of: tuple[int, int] = (0, 0)
    run_id: str
    kind: Literal["baseline", "edit", "inject", "trial"]
    recipe: dict[str, Any]
    recipe_hash: str
    methods: list[str]
    target_categories: list[str]
    direction: Literal["text", "image", "both"]
    umm: str
    seed: int
    started: str
    versions: dict[str, str]
    git_revision: str | None
    data_hash: str
    facts_hash: str | None
    weights_fingerprint: str
    reverted: bool | None
    items: list[str]
    categories: list[str]
    category_of: list[int]
    digests: str
    states: dict[Phase, State]
    shift: ShiftReport | None
    placebo_shift: ShiftReport | None
    quality: dict[str, dict[Side, QualityCell]]
    transfer_ratio: Estimate | None
    transfer_note: str
    reproduces: str | None = None

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name", ""))

    @property
    def last(self) -> State:
        """After the intervention; of a run without one, as the model is."""
        return self.states.get("after", self.states["before"])

    def verdicts(self, phase: Phase, keys: Iterable[tuple[str, str]] | None = None) -> list[ItemVerdict]:
        """A phase's verdicts: of all items in their order, or of those with the given keys, in theirs."""
        state = self.states[phase]
        places: Iterable[int] = range(len(self.items))
        if keys is not None:
            known = {key: place for place, key in enumerate(self.keys())}
            places = [known[key] for key in keys]
        return [
            ItemVerdict(
                self.categories[self.category_of[i]], _VERDICTS[state.told[i]], _VERDICTS[state.drawn[i]]
            )
            for i in places
        ]

    def keys(self) -> list[tuple[str, str]]:
        """(id, hash of what is asked) of every item: items are the same where both are."""
        starts = range(0, len(self.digests), DIGEST)
        return [(item, self.digests[at : at + DIGEST]) for item, at in zip(self.items, starts, strict=True)]


def summarise(outcome: Outcome, *, made_of: tuple[int, int] = (0, 0)) -> Summary:
    """The summary of an outcome."""
    rows = outcome.before.rows
    categories = list(dict.fromkeys(row.category for row in rows))
    phases: dict[Phase, PhaseResult | None] = {
        "before": outcome.before,
        "after": outcome.after,
        "placebo": outcome.placebo,
    }
    quality, recipe = outcome.quality, outcome.recipe
    nodes = [recipe.get("intervention"), *(recipe.get("then") or ())]
    return Summary(
        made_of=made_of,
        run_id=outcome.run_id,
        kind=outcome.kind,
        recipe={key: value for key, value in recipe.items() if key not in _NOT_SETTINGS},
        recipe_hash=outcome.recipe_hash,
        methods=[str(node.get("use")) for node in nodes if isinstance(node, dict)],
        target_categories=outcome.target_categories,
        direction=outcome.direction,
        umm=outcome.umm,
        seed=outcome.seed,
        started=outcome.started,
        versions=outcome.versions,
        git_revision=outcome.git_revision,
        data_hash=outcome.data_hash,
        facts_hash=outcome.facts_hash,
        weights_fingerprint=outcome.weights_fingerprint,
        reverted=outcome.reverted,
        items=[row.id for row in rows],
        categories=categories,
        category_of=[categories.index(row.category) for row in rows],
        digests="".join(_digest(row) for row in rows),
        states={
            phase: State(
                gap=result.gap,
                told="".join(_LETTERS[row.understanding] for row in result.rows),
                drawn="".join(_LETTERS[row.generation] for row in result.rows),
            )
            for phase, result in phases.items()
            if result is not None
        },
        shift=outcome.shift,
        placebo_shift=outcome.placebo_shift,
        quality={name: getattr(quality, name) for name in QUALITIES} if quality else {},
        transfer_ratio=quality.transfer_ratio if quality else None,
        transfer_note=quality.transfer_note if quality else "",
        reproduces=outcome.reproduces,
    )


def summary_of(place: Path) -> Summary:
    """The summary of the outcome in a folder (or of a file); written beside the outcome where that can be.

    Raises:
        UserError: the outcome cannot be read.
    """
    file = place / "outcome.json" if place.is_dir() else place
    kept = file.with_name(NAME) if file.name == "outcome.json" else None
    try:
        found = file.stat()
        stamp = (found.st_size, found.st_mtime_ns)
        if kept is not None and (known := _read(kept)) is not None and known.made_of == stamp:
            return known
        outcome = Outcome.load(file)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"run: {file} cannot be read ({reason}); name another run") from None
    summary = summarise(outcome, made_of=stamp)
    if kept is not None:
        with contextlib.suppress(UserError):  # in somebody else's folder it is made again next time
            write_text(kept, summary.model_dump_json())
    return summary


def _read(file: Path) -> Summary | None:
    try:
        found = Summary.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.version == VERSION else None


def _digest(row: ItemRow) -> str:
    asked = json.dumps([row.category, row.question, row.draw_prompt, row.reference])
    return hashlib.sha256(asked.encode()).hexdigest()[:DIGEST]
