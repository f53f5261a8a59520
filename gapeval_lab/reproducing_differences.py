"""What is not as it was when a run was made: data, weights, settings, code, versions, machine.

Some differences make it another experiment and stop it; the others are named as possible causes of what
came out otherwise.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gapeval_lab.errors import UserError
from gapeval_lab.inputs import Source, source_of
from gapeval_lab.outcome import Outcome
from gapeval_lab.provenance import code_hash, git_diff, git_revision, machine, versions
from gapeval_lab.recipe import flatten, resolve

Kind = Literal["data", "weights", "model", "judge", "recipe", "code", "versions", "machine"]

SHOWN = 12
"""Letters of a hash that are shown."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was.

    Attributes:
        kind: what it belongs to.
        what: its name.
        then, now: both values, as text.
        stops: whether it makes another experiment of it.
        note: what follows from it.
    """

    kind: Kind
    what: str
    then: str
    now: str
    stops: bool = False
    note: str = ""

    def told(self) -> str:
        """In one line."""
        return f"{self.kind}: {self.what}: {self.then} then, {self.now} now" + (
            f"; {self.note}" if self.note else ""
        )


def data_differences(outcome: Outcome, *, data_hash: str, facts_hash: str | None) -> Iterator[Difference]:
    """Items and facts, by their content."""
    for what, then, now in (
        (f"the {len(outcome.before.rows)} items", outcome.data_hash, data_hash),
        (f"the {len(outcome.facts)} facts", outcome.facts_hash, facts_hash),
    ):
        if then != now:
            yield Difference("data", what, _short(then), _short(now), stops=True)


def input_differences(
    outcome: Outcome, now: Sequence[Source], *, places: Mapping[str, Path]
) -> Iterator[Difference]:
    """Files that the run read. `now` is what a repetition reads: a copy, where there is one."""
    read = {source.name: source.sha256 for source in now}
    for one in outcome.inputs:
        if read.get(one.name) != one.sha256:
            where = f"the copy of {one.name}" if one.name in places else one.name
            yield Difference("data", where, _short(one.sha256), _short(read.get(one.name)), stops=True)
        elif one.name in places and (present := _present(outcome, one.name)) != one.sha256:
            note = "the copy that the run kept is taken"
            there = "gone" if present is None else _short(present)
            yield Difference("data", one.name, _short(one.sha256), there, note=note)


def recipe_differences(outcome: Outcome, taken: Mapping[str, Any]) -> Iterator[Difference]:
    """What the recipe's text would give today, and settings that there were none of then.

    Args:
        outcome: the run.
        taken: the stored recipe, resolved again.
    """
    then, again = flatten({"about": "", **outcome.recipe}), flatten(taken)
    for path in again.keys() - then.keys():
        if not _below(path, then):
            yield Difference(
                "recipe", path, "unknown", _value(again[path]), note="a new setting; its default is taken"
            )
    if not outcome.recipe_text:
        return
    try:
        today = flatten(
            resolve(outcome.recipe_text, source="the recipe's text", overrides=outcome.overrides).resolved
        )
    except UserError as error:
        reason = " ".join(str(error).split())[:200]
        yield Difference(
            "recipe", "its text", "valid", f"not valid ({reason})", note="the stored settings are taken"
        )
        return
    for path in sorted(then):
        if (path not in today or then[path] != today[path]) and not _below(path, today):
            note = "a default or config that changed; the stored value is taken"
            now = _value(today[path]) if path in today else "none"
            yield Difference("recipe", path, _value(then[path]), now, note=note)


def model_differences(
    outcome: Outcome, *, weights: str, model: Mapping[str, Any], judge: Mapping[str, Any]
) -> Iterator[Difference]:
    """The loaded model's weights and settings, and the judge's, as far as the run stored them."""
    if outcome.weights_fingerprint != weights:
        yield Difference(
            "weights", outcome.umm, _short(outcome.weights_fingerprint), _short(weights), stops=True
        )
    stored: tuple[tuple[Kind, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("model", outcome.model_settings, model),
        ("judge", outcome.judge_settings, judge),
    )
    for kind, then, now in stored:
        if not then:
            continue
        old, new = flatten(_plain(then)), flatten(_plain(now))
        for path in sorted(old.keys() | new.keys()):
            was, now_is = old.get(path), new.get(path)
            if was != now_is:  # another device is another machine, not another experiment
                stops = path.split(".")[-1] != "device"
                yield Difference(kind, path, _value(was), _value(now_is), stops=stops)


def circumstances(outcome: Outcome) -> Iterator[Difference]:
    """Code, versions and machine. What the run did not store is not compared."""
    if outcome.code_hash != code_hash():
        if outcome.code_hash is not None:
            yield Difference("code", "source files", _short(outcome.code_hash), _short(code_hash()))
        if (outcome.git_revision, outcome.git_diff) != (git_revision(), git_diff()):
            yield Difference(
                "code",
                "git revision",
                _revision(outcome.git_revision, outcome.git_diff),
                _revision(git_revision(), git_diff()),
            )
    stored: tuple[tuple[Kind, Mapping[str, str], Mapping[str, str]], ...] = (
        ("versions", outcome.versions, versions()),
        ("machine", outcome.machine, machine()),
    )
    for kind, then, now in stored:
        for name, value in then.items():
            if now.get(name) != value:
                yield Difference(kind, name, value, now.get(name, "none"))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds it: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _present(outcome: Outcome, name: str) -> str | None:
    """The hash of what lies now where a run's facts came from; None where there is nothing."""
    steps = [outcome.recipe.get("facts"), *(step.get("facts") for step in outcome.recipe.get("then") or ())]
    pictures = any(name == node.get("pictures") for node in steps if node)
    try:
        return source_of(name, pictures=pictures).sha256
    except UserError:
        return None


def _below(path: str, flat: Mapping[str, Any]) -> bool:
    """Whether a path leads into, or holds, what stands in the other under another depth."""
    return path not in flat and any(
        other.startswith(f"{path}.") or path.startswith(f"{other}.") for other in flat
    )


def _revision(revision: str | None, diff: str | None) -> str:
    if revision is None:
        return "none"
    clean = revision.removesuffix("+dirty")[:SHOWN]
    return (
        f"{clean} with changes {_short(diff)}" if diff else clean + ("+dirty" if "+dirty" in revision else "")
    )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:SHOWN]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
