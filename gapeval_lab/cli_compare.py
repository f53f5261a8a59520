"""The commands `compare`, `leaderboard` and `ls runs`: parse, call, print. Heavy imports inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapeval_lab.cli_common import RUN_HELP, short, wide_console
from gapeval_lab.errors import UserError

if TYPE_CHECKING:
    from gapeval_lab.comparing_runs import Run
    from gapeval_lab.tracking_find import Entry
    from gapeval_lab.tracking_store import Store

WIDTH = 150  # columns, where there is no terminal to ask
NEITHER = 3  # sorts after all

Where = Annotated[
    str | None,
    typer.Option(metavar="FILTER", help="Only what a filter of MLflow's matches: \"tags.method = 'rome'\"."),
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page there.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all numbers there.")]


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help=f"{RUN_HELP} Or a recipe: all of its seeds."),
    ] = None,
    where: Where = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare the others with this one (default: the first).")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="More than twelve runs, too; takes its time.")] = False,
    html: Html = None,
    json_file: Json = None,
) -> None:
    """Put runs side by side, and test each against one of them on the items that both were asked."""
    from gapeval_lab.comparing import MOST, compare
    from gapeval_lab.comparing_runs import resolve
    from gapeval_lab.comparing_tables import draw
    from gapeval_lab.tracking_store import Store

    if not runs and not where:
        raise UserError("compare: name runs or recipes, or choose them by --where; see 'gapeval-lab ls runs'")
    store = Store.open()
    chosen, repeated = resolve(runs or [], store)
    left_out = 0
    if where:
        matched, left_out = _matching(store, where, most=None if all_ else MOST, but=chosen)
        chosen += matched
    reference = 0
    if baseline is not None:
        found, _ = resolve([baseline], store)
        if len(found) > 1:
            raise UserError(f"--baseline: '{baseline}' is {len(found)} runs; give one's id")
        ids = [(run.entry.id, run.summary.kind) for run in chosen]
        mine = (found[0].entry.id, found[0].summary.kind)
        if mine not in ids:
            chosen, ids = [found[0], *chosen], [mine, *ids]
        reference = ids.index(mine)
    if len(chosen) < 2:
        raise UserError(f"compare: {_one(chosen)}; two runs at least are compared")
    if len(chosen) > MOST + 1 and not all_:
        left_out, chosen = left_out + len(chosen) - MOST - 1, _best(chosen, reference, MOST)
        reference = 0
    comparison = compare(chosen, reference=reference, left_out=left_out, repeated=repeated)
    console = wide_console(WIDTH)
    console.print(draw(comparison))
    if json_file:
        _write(json_file, comparison.model_dump_json(indent=1))
    if html:
        from gapeval_lab.pages.comparison import comparison_page

        _write(html, comparison_page(comparison, chosen))
        console.print(f"[dim]page in {short(html)}[/dim]", soft_wrap=True)


def leaderboard(
    where: Where = None,
    sort: Annotated[
        str,
        typer.Option(metavar="METRIC", help="Rank by it; 'METRIC desc' or '… asc' says which end is best."),
    ] = "delta/gap_score",
    kind: Annotated[
        str | None, typer.Option(help="Only edit, inject, trial or baseline (default: all but trials).")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Print so many of each list; 0 prints all.")] = 30,
    html: Html = None,
    json_file: Json = None,
) -> None:
    """Rank the interventions and the models of a store, with what the data cannot tell apart."""
    from gapeval_lab.leaderboard import leaderboard
    from gapeval_lab.leaderboard_tables import draw
    from gapeval_lab.tracking_store import Store

    board = leaderboard(Store.open(), where=where, sort=sort, kind=kind)
    console = wide_console(WIDTH)
    console.print(draw(board, top=top or None))
    if json_file:
        _write(json_file, board.model_dump_json(indent=1))
    if html:
        from gapeval_lab.pages.leaderboard import leaderboard_page

        _write(html, leaderboard_page(board))
        console.print(f"[dim]page in {short(html)}[/dim]", soft_wrap=True)


def list_runs(*, quiet: bool) -> None:
    """Every run but trials, newest last; names alone where `quiet`."""
    from gapeval_lab.leaderboard_list import draw_list, listed
    from gapeval_lab.tracking_store import Store

    store = Store.open()
    if quiet:
        for path in sorted((store.folder / "outcomes").glob("*/outcome.json")):
            print(path.parent.name)
        return
    found = listed(store)
    if not found.lines:
        print(f"no runs yet in {store.folder}")
        return
    wide_console(WIDTH).print(draw_list(found))


def _matching(store: "Store", where: str, *, most: int | None, but: "list[Run]") -> "tuple[list[Run], int]":
    """The best of the finished runs that a filter matches, and how many more there are."""
    from gapeval_lab.comparing_runs import open_entry
    from gapeval_lab.tracking_find import FINISHED, entries

    known = {run.entry.logged.run_id for run in but if run.entry.logged}
    found = [entry for entry in entries(store, where=where) if entry.logged]
    finished = [e for e in found if e.status == FINISHED and e.logged and e.logged.run_id not in known]
    if not finished and not but:
        unfinished = f" ({len(found)} that did not finish)" if found else ""
        raise UserError(f"--where: no finished run matches{unfinished}; see 'gapeval-lab ls runs'")
    finished.sort(key=_goodness)
    runs: list[Run] = []
    lost = 0
    for entry in finished:
        if most is not None and len(runs) == most:
            break
        run = open_entry(entry, store)
        if run is None:
            lost += 1
        else:
            runs.append(run)
    if lost and not runs and not but:
        raise UserError(
            f"--where: none of {lost} matching runs has its outcome on this disk or in MLflow; run "
            "'gapeval-lab leaderboard', which needs none"
        )
    return runs, len(finished) - len(runs)


def _goodness(entry: "Entry") -> tuple[int, float]:
    metrics = entry.logged.metrics if entry.logged else {}
    for place, name in enumerate(("delta/gap_score", "before/gap_score")):
        if name in metrics:
            return place, metrics[name]
    return NEITHER, 0.0


def _best(chosen: "list[Run]", reference: int, most: int) -> "list[Run]":
    """The reference, then the best of the others."""

    def goodness(run: "Run") -> tuple[int, float]:
        shift = run.summary.shift.gap if run.summary.shift else None
        gap = run.summary.last.gap.gap
        return (0, shift.value) if shift else (1, gap.value) if gap else (NEITHER, 0.0)

    others = [run for place, run in enumerate(chosen) if place != reference]
    return [chosen[reference], *sorted(others, key=goodness)[:most]]


def _one(chosen: "list[Run]") -> str:
    return f"only {chosen[0].entry.id} is named" if chosen else "no run is named"


def _write(file: Path, text: str) -> None:
    from gapeval_lab.files import write_text

    write_text(file, text)
