"""Cross-modal edit quality: what became of each fact, told and drawn apart.

Works on evaluations of the facts' probes before and after; knows no model but through log-probabilities
handed in. Every share is a mean of per-fact shares; its interval is Wilson's with n = number of facts,
since the probes of one fact are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.evaluate import Evaluation
from gapeval_lab.gap.records import Estimate
from gapeval_lab.items import Direction, Fact, Item, opened
from gapeval_lab.outcome import QUALITIES, EditQuality, FactQuality, ProtocolQuality, QualityCell
from gapeval_lab.reasoning import Reasoned
from gapeval_lab.sections import DIRECT

Side = Literal["text", "image"]
SIDES: dict[Side, Direction] = {"text": Direction.UNDERSTANDING, "image": Direction.GENERATION}
Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
REPLICATES = 10_000


@dataclass(frozen=True)
class ProbeState:
    """Everything measured on the facts in one state of the model.

    logprobs: per side, per fact id: log-probability of the target in nats, teacher-forced; a side is
    missing where the model or the benchmark has no picture for it.
    reasoned: what was written and drawn from it, where the recipe asks for that.
    """

    evaluation: Evaluation
    logprobs: Mapping[Side, Mapping[str, float]]
    reasoned: Reasoned | None = None


def probes(facts: Sequence[Fact]) -> list[Item]:
    """Every probe of every fact, in order."""
    return [item for fact in facts for item in (fact.edit, *fact.reworded, *fact.neighbours, *fact.derived)]


def edit_quality(
    facts: Sequence[Fact], before: ProbeState, after: ProbeState, *, edited: str, seed: int
) -> EditQuality:
    """All measures of METRICS section 3.

    Args:
        facts: as given to the intervention.
        before, after: of the same probes, asked with the same seeds.
        edited: the side that the intervention was given: "text", "image" or "both".
        seed: of the bootstrap.
    """
    kinds: dict[str, dict[Side, QualityCell]] = {}
    shares: dict[tuple[str, Side, str], list[float | None]] = {}
    for kind in ("reliability", "generalisation", "portability"):
        kinds[kind] = {}
        for side in SIDES:
            for state, name in ((before, "before"), (after, "after")):
                shares[kind, side, name] = [
                    _passed(_of(fact, kind), side, state.evaluation) for fact in facts
                ]
            cell = _cell(
                shares[kind, side, "before"],
                shares[kind, side, "after"],
                sum(len(_of(fact, kind)) for fact in facts),
            )
            if cell is not None:
                kinds[kind][side] = cell
    kinds["locality"] = {}
    for side in SIDES:
        left = [kept(fact.neighbours, side, before.evaluation, after.evaluation) for fact in facts]
        shares["locality", side, "after"] = left
        whole: list[float | None] = [None if share is None else 1.0 for share in left]
        cell = _cell(whole, left, sum(len(fact.neighbours) for fact in facts))
        if cell is not None:
            kinds["locality"][side] = cell
    ratio, note = _transfer(facts, before, after, edited=edited, seed=seed)

    def told_and_drawn(kind: str, index: int) -> dict[Side, float | None]:
        return {side: shares[kind, side, "after"][index] for side in SIDES}

    return EditQuality(
        reliability=kinds["reliability"],
        generalisation=kinds["generalisation"],
        locality=kinds["locality"],
        portability=kinds["portability"],
        target_logprob=_logprobs(facts, before, after, seed=seed),
        locality_pixel_distance=_pixel_distance(facts, before, after),
        transfer_ratio=ratio,
        transfer_note=note,
        protocols=_protocols(facts, before, after, seed=seed),
        facts=[
            FactQuality(
                id=fact.id,
                subject=fact.subject,
                relation=fact.relation,
                target_true=fact.target_true,
                target_new=fact.target_new,
                reliability=told_and_drawn("reliability", i),
                generalisation=told_and_drawn("generalisation", i),
                locality=told_and_drawn("locality", i),
                portability=told_and_drawn("portability", i),
                logprob_before={side: before.logprobs.get(side, {}).get(fact.id) for side in SIDES},
                logprob_after={side: after.logprobs.get(side, {}).get(fact.id) for side in SIDES},
            )
            for i, fact in enumerate(facts)
        ],
    )


def held(facts: Sequence[Fact], state: ProbeState) -> dict[Side, float | None]:
    """Share of the facts' own and reworded questions that are right, a mean of per-fact shares."""
    found: dict[Side, float | None] = {}
    for side in SIDES:
        shares = [_passed((fact.edit, *fact.reworded), side, state.evaluation) for fact in facts]
        known = [share for share in shares if share is not None]
        found[side] = float(np.mean(known)) if known else None
    return found


def _of(fact: Fact, kind: str) -> tuple[Item, ...]:
    return {
        "reliability": (fact.edit,),
        "generalisation": fact.reworded,
        "locality": fact.neighbours,
        "portability": fact.derived,
    }[kind]


def _passed(items: Sequence[Item], side: Side, evaluation: Evaluation) -> float | None:
    """Share of the scored probes that are right; None where none was scored."""
    scored = [evaluation.correct(item, SIDES[side]) for item in items]
    known = [correct for correct in scored if correct is not None]
    return sum(known) / len(known) if known else None


def kept(items: Sequence[Item], side: Side, before: Evaluation, after: Evaluation) -> float | None:
    """Share of the neighbours left alone: the same answer in text, the same verdict on the picture."""
    same = []
    for item in items:
        key = (item.id, SIDES[side])
        one, two = before.responses.get(key), after.responses.get(key)
        was, now = before.correct(item, SIDES[side]), after.correct(item, SIDES[side])
        if one is None or two is None or was is None or now is None:
            continue
        same.append(one.text == two.text if side == "text" else was == now)
    return sum(same) / len(same) if same else None


def _pixel_distance(facts: Sequence[Fact], before: ProbeState, after: ProbeState) -> float | None:
    """Mean absolute difference of the neighbours' pictures, as a share of the full range.

    Where the two sizes differ, the later picture is first brought to the size of the earlier one.
    """
    distances = []
    for fact in facts:
        for item in fact.neighbours:
            key = (item.id, Direction.GENERATION)
            one, two = before.evaluation.responses.get(key), after.evaluation.responses.get(key)
            if one is None or two is None or one.picture is None or two.picture is None:
                continue
            was, now = (opened(picture).convert("RGB") for picture in (one.picture, two.picture))
            now = now if now.size == was.size else now.resize(was.size)
            difference = np.abs(np.asarray(was, dtype=float) - np.asarray(now, dtype=float))
            distances.append(float(difference.mean() / 255))
    return float(np.mean(distances)) if distances else None


def wilson(share: float, n: int) -> Estimate:
    """A share of n > 0 with its 95 % Wilson score interval (Wilson 1927)."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # Rounding may put a bound of 0 or 1 on the wrong side of the share itself.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Estimate(share, float(low), float(high))


def _cell(before: Sequence[float | None], after: Sequence[float | None], n: int) -> QualityCell | None:
    """The mean share before and after; None where nothing was scored (a side that the model lacks)."""
    known = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not known:
        return None
    was, now = (wilson(float(np.mean(shares)), len(known)) for shares in zip(*known, strict=True))
    return QualityCell(before=was, after=now, n=n)


def _logprobs(
    facts: Sequence[Fact], before: ProbeState, after: ProbeState, *, seed: int
) -> dict[Side, QualityCell]:
    """Mean log-probability of the targets per side, with bootstrap intervals over facts."""
    cells: dict[Side, QualityCell] = {}
    for side in SIDES:
        was, now = before.logprobs.get(side, {}), after.logprobs.get(side, {})
        known = [fact.id for fact in facts if fact.id in was and fact.id in now]
        if known:
            drawn = np.random.default_rng([seed, 3]).integers(len(known), size=(REPLICATES, len(known)))
            states = [_bootstrapped(np.array([state[i] for i in known]), drawn) for state in (was, now)]
            cells[side] = QualityCell(before=states[0], after=states[1], n=len(known))
    return cells


def _bootstrapped(values: NDArray[np.float64], drawn: NDArray[np.int64]) -> Estimate:
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def drawn_by(state: ProbeState) -> dict[str, Evaluation]:
    """Protocol -> the pictures of one state, the direct ones first; empty where there is only that."""
    return {} if state.reasoned is None else {DIRECT: state.evaluation, **state.reasoned.drawn}


def _protocols(
    facts: Sequence[Fact], before: ProbeState, after: ProbeState, *, seed: int
) -> list[ProtocolQuality]:
    """Drawing directly and from what was written, side by side on the probes that were written about."""
    if before.reasoned is None or after.reasoned is None:
        return []
    about = before.reasoned.written.keys() & after.reasoned.written.keys()
    asked = {
        name: [[item for item in _of(fact, name) if item.id in about] for fact in facts] for name in QUALITIES
    }
    ids = {item.id for of_facts in asked.values() for items in of_facts for item in items}
    found: list[ProtocolQuality] = []
    direct: dict[str, list[float | None]] = {}
    was, now = drawn_by(before), drawn_by(after)
    for protocol in now:
        cells, over = {}, {}
        for name in QUALITIES:
            first, later = _drawn_shares(name, asked[name], was[protocol], now[protocol])
            if protocol == DIRECT:  # it comes first
                direct[name] = later
            cell = _cell(first, later, sum(map(len, asked[name])))
            if cell is not None:
                cells[name] = cell
                paired = None if protocol == DIRECT else _difference(later, direct[name], seed=seed)
                if paired is not None:
                    over[name] = paired
        written = ids if protocol == DIRECT else after.reasoned.prompts[protocol].keys()
        found.append(
            ProtocolQuality(name=protocol, cells=cells, over_direct=over, unwritten=len(ids - written))
        )
    return found


def _drawn_shares(
    measure: str, asked: Sequence[Sequence[Item]], was: Evaluation, now: Evaluation
) -> tuple[list[float | None], list[float | None]]:
    """Per fact: the share of its drawings that pass, before and after; for locality, that stayed."""
    if measure == "locality":
        left = [kept(items, "image", was, now) for items in asked]
        return [None if share is None else 1.0 for share in left], left
    first, later = ([_passed(items, "image", state) for items in asked] for state in (was, now))
    return first, later


def _difference(
    shares: Sequence[float | None], base: Sequence[float | None], *, seed: int
) -> Estimate | None:
    """Mean difference of per-fact shares, with a bootstrap interval over facts; None without a pair."""
    pairs = [s - b for s, b in zip(shares, base, strict=True) if s is not None and b is not None]
    if not pairs:
        return None
    drawn = np.random.default_rng([seed, 5]).integers(len(pairs), size=(REPLICATES, len(pairs)))
    return _bootstrapped(np.array(pairs), drawn)


def _transfer(
    facts: Sequence[Fact], before: ProbeState, after: ProbeState, *, edited: str, seed: int
) -> tuple[Estimate | None, str]:
    """Gain on the side that was not edited over the gain on the side that was; bootstrap over facts."""
    if edited == "both":
        return None, "both sides were edited"
    given: Side = "text" if edited == "text" else "image"
    other: Side = "image" if given == "text" else "text"
    gains: dict[Side, list[float]] = {given: [], other: []}
    for fact in facts:
        changes = {}
        for side in (given, other):
            was = _passed((fact.edit, *fact.reworded), side, before.evaluation)
            now = _passed((fact.edit, *fact.reworded), side, after.evaluation)
            if was is not None and now is not None:
                changes[side] = now - was
        if len(changes) == 2:
            for side, change in changes.items():
                gains[side].append(change)
    if not gains[given]:
        return None, "no fact was scored on both sides"
    upper, lower = np.array(gains[other]), np.array(gains[given])
    rng = np.random.default_rng([seed, 4])
    drawn = rng.integers(len(upper), size=(REPLICATES, len(upper)))
    below = lower[drawn].mean(axis=1)
    if np.quantile(below, 0.025) <= 0:
        return None, f"undefined: the interval of the gain in {given} holds 0"
    gained = below > 0  # of few facts, some draws hold none that was learned: no ratio there
    low, high = np.quantile(upper[drawn].mean(axis=1)[gained] / below[gained], [0.025, 0.975])
    return Estimate(float(upper.mean() / lower.mean()), float(low), float(high)), ""
