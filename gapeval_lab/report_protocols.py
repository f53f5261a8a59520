"""Tables of protocols: facts drawn from what was written, and the benchmark asked in other ways."""

from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.samples import SIDES
from gapeval_lab.outcome import QUALITIES, EditQuality, Outcome, ProtocolState
from gapeval_lab.report_cells import Row, percent, spread


def protocol_data(quality: EditQuality) -> list[Row]:
    """Facts drawn directly and from what the model wrote first, side by side in each measure."""
    rows = []
    for name in QUALITIES:
        for protocol in quality.protocols:
            cell, over = protocol.cells.get(name), protocol.over_direct.get(name)
            if cell is not None:
                shares = (str(cell.n), percent(cell.before), percent(cell.after))
                rows.append(Row(f"{name}/{protocol.name}", (*shares, spread(over) if over else "")))
    return rows


PROTOCOL_COLUMNS = ("probes", "before", "after", "after, over direct")


def protocol_note(quality: EditQuality) -> str:
    """What the table of protocols leaves open; empty where there is nothing to say."""
    said = []
    if not any(protocol.cells for protocol in quality.protocols):
        said.append("no drawing was scored")
    said += [
        f"{protocol.name}: nothing written for {protocol.unwritten} drawings after, so asked for directly"
        for protocol in quality.protocols
        if protocol.unwritten
    ]
    return "; ".join(said)


def item_protocol_data(outcome: Outcome) -> list[Row]:
    """The benchmark by each protocol, as the model is in the end."""
    rows = []
    for protocol in outcome.protocols:
        now = protocol.after or protocol.before
        label = protocol.name if protocol.k == 1 else f"{protocol.name}, mean of {protocol.k}"
        items = f"{protocol.n}" + (f" (+{protocol.unscored} unscored)" if protocol.unscored else "")
        rows.append(Row(label, (items, *_state(now), *_gaps(protocol.shift.get("gap"), now))))
        if now.passed:
            passed = [_share(now.passed.get(side)) for side in ("understanding", "generation")]
            rows.append(Row(f"{protocol.name}, pass@{protocol.k}", (items, *passed, "", "", "")))
        if now.agreement:
            agreed = [_share(now.agreement.get(side)) for side in ("understanding", "generation")]
            rows.append(Row(f"{protocol.name}, agrees with the judge", ("", *agreed, "", "", "")))
    return rows


ITEM_PROTOCOL_COLUMNS = ("items", "understanding", "generation", "gap", "gap, over direct", "gap shift")


def item_protocol_note(outcome: Outcome) -> str:
    """What could not be asked in the way of a protocol; empty where there is nothing to say."""
    states = [(protocol.name, protocol.after or protocol.before) for protocol in outcome.protocols]
    return "; ".join(
        f"{name}: {state.alone} prompts had nothing to build on and were asked directly"
        for name, state in states
        if state.alone
    )


def _state(state: ProtocolState) -> tuple[str, str, str]:
    if state.gap is not None:
        return _share(state.understanding), _share(state.generation), spread(state.gap, sign=False)
    # Without a gap the difference to the direct way is told beside each side.
    shares = []
    for side in SIDES:
        over = state.over_direct.get(side)
        shares.append(_share(getattr(state, side)) + (f", {spread(over)} over direct" if over else ""))
    return shares[0], shares[1], "n/a"


def _gaps(shift: Estimate | None, state: ProtocolState) -> tuple[str, str]:
    over = state.over_direct.get("gap")
    return spread(over) if over else "", spread(shift) if shift else "n/a"


def _share(estimate: Estimate | None) -> str:
    return "n/a" if estimate is None else percent(estimate)
