"""The commands about judging: `score`, `judge calibrate` and `labels`. Heavy imports inside."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapeval_lab.cli_common import RUN_HELP, find_run, home, short, wide_console
from gapeval_lab.errors import UserError

if TYPE_CHECKING:
    from gapeval_lab.calibration import Calibration
    from gapeval_lab.interfaces import Judge
    from gapeval_lab.rescoring import Score
    from gapeval_lab.stored_runs import StoredRun

ESTIMATED = {"pairs": "answers", "decided": "decided without asking", "cached": "verdicts that are kept"}
"""What the parts of an estimate are called, where not as they are."""

WIDTH = 150  # columns, where there is no terminal to ask

JudgeOption = Annotated[
    str, typer.Option("--judge", help="A config, a plug-in, or a node as YAML: '{use: panel, ...}'.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A field of the judge; may be repeated."),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
Plain = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}

judge_app = typer.Typer(help="Judges: how one errs.", pretty_exceptions_enable=False, **Plain)  # type: ignore[arg-type]
labels_app = typer.Typer(
    help="Labels by people: laid out, and read back.",
    pretty_exceptions_enable=False,
    **Plain,  # type: ignore[arg-type]
)


def score(
    what: Annotated[
        str, typer.Argument(metavar="FILE|RUN", help=f"A JSON file of rows; or, with --judge: {RUN_HELP}")
    ],
    judge: Annotated[
        str | None, typer.Option("--judge", help="Judge a run's stored answers again with this judge.")
    ] = None,
    set_: SetOption = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Correct the new rates by this file of 'judge calibrate'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what judging would cost, and stop.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result there.")
    ] = None,
) -> None:
    """Gap Scores of a file of rows in the published format, or of a finished run by another judge.

    A file holds {model: [[both, und only, gen only, neither], ...]}: proportions, or counts (then with
    intervals). A run's answers are judged as they are stored; no model is asked.
    """
    if judge is not None:
        _score_run(what, judge, set_ or [], calibration=calibration, dry_run=dry_run, json_file=json_file)
        return
    if set_ or dry_run or calibration:
        raise UserError("score: --set, --calibration and --dry-run are about a judge; give --judge NAME")
    from gapeval_lab.scoring import draw_scores, score_file
    from gapeval_lab.stored_runs import NAME

    if Path(what).is_dir() or Path(what).name == NAME or not Path(what).exists():
        try:
            found = find_run(what)
        except UserError:
            pass  # then it was meant as a file, which says itself that it is not there
        else:
            raise UserError(
                f"score: '{what}' is the run {found.name}; name a judge with --judge NAME, or "
                "print it with 'gapeval-lab show'"
            )
    scores = score_file(Path(what))
    if json_file:
        _write(json_file, json.dumps(scores.as_json(), indent=1))
    wide_console(130).print(draw_scores(scores))


def _score_run(
    ref: str,
    name: str,
    overrides: list[str],
    *,
    calibration: Path | None,
    dry_run: bool,
    json_file: Path | None,
) -> None:
    from gapeval_lab.nested import load_judge
    from gapeval_lab.registry import build
    from gapeval_lab.rescoring import distinct, estimates, rescore
    from gapeval_lab.rescoring_corrected import corrected
    from gapeval_lab.stored_runs import open_run

    called, node = load_judge(name, overrides)
    judge: Judge = build("judges", node.use, settings=node.settings)
    run = open_run(find_run(ref))
    if dry_run:
        pairs = distinct(run)
        print(f"{run.outcome.run_id}: {len(pairs)} different answers in {', '.join(run.phases)}")
        _print_estimates(estimates(judge, pairs))
        print("nothing was done (--dry-run)")
        return
    known = None if calibration is None else _calibration(calibration, judge)
    found = rescore(run, judge, name=called, node=node.model_dump())
    table = [] if known is None else corrected(run, found, known)
    found = replace(found, corrected=[asdict(row) for row in table])
    place = found.save(run.folder)
    if json_file:
        _write(json_file, place.read_text(encoding="utf-8"))
    from gapeval_lab.report_cells import draw_rows
    from gapeval_lab.rescoring_tables import CORRECTED_COLUMNS, corrected_notes, corrected_rows, draw_score

    console = wide_console(WIDTH)
    console.print(draw_score(found, run.outcome))
    if table:
        title = "Corrected by the calibration"
        console.print(draw_rows(title, CORRECTED_COLUMNS, corrected_rows(table)))
        for note in corrected_notes(table):
            print(note)
    logged = _log(run, found, place)
    print(f"written to {short(place)}" + (f" and to the MLflow run {logged}" if logged else ""))


def _print_estimates(found: dict[str, Any]) -> None:
    for key, value in found.items():
        member, _, what = key.rpartition(".")
        label = ESTIMATED.get(what, what.replace("_", " "))
        print(f"  {f'{member}, {label}' if member else label:32} {_told(value, what)}")
    if not found:
        print("  this judge gives no estimate; one that asks no service costs nothing")


def _told(value: Any, what: str) -> str:
    """An estimate in words."""
    if value is None:
        return "unknown: set price_in and price_out (of a million tokens)" if what == "cost" else "unknown"
    digits = ".4g" if what == "cost" else ",.0f"
    ends = [format(end, digits) for end in (value if isinstance(value, list | tuple) else [value])]
    return " to ".join(dict.fromkeys(ends))


def _calibration(file: Path, judge: "Judge") -> "Calibration":
    """The calibration, which must be of this very judge."""
    from gapeval_lab.calibration import Calibration

    known = Calibration.load(file)
    settings = json.loads(json.dumps(judge.settings(), default=str))
    if known.settings != settings:
        raise UserError(
            f"--calibration: {file} is of the judge '{known.judge}' with other settings "
            f"({'; '.join(_apart(known.settings, settings))}); calibrate this one, or judge with that one"
        )
    return known


def _apart(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between a calibrated judge's settings and this one's."""
    sides = {key: [side.get(key, "nothing") for side in (there, here)] for key in [*there, *here]}
    return [f"{key}: {old} there, {new} here" for key, (old, new) in sides.items() if old != new]


def _log(run: "StoredRun", found: "Score", place: Path) -> str | None:
    """The new score in MLflow, where the run is there."""
    from gapeval_lab.tracking_scalars import gap_scalars, rounded
    from gapeval_lab.tracking_scores import log_score
    from gapeval_lab.tracking_store import Store

    before, after = found.phases["before"].gap, found.phases.get("after")
    metrics: dict[str, float | None] = {}
    if before is not None:
        later, shift = after.gap if after else None, found.shifts.get("after")
        metrics |= gap_scalars(before, later, shift, targets=run.outcome.target_categories)
    for phase, part in found.phases.items():
        metrics[f"{phase}/flips"] = len(part.flips)
        for name, one in part.agreement.items():
            metrics[f"{phase}/agreement/{name}"] = one.percent.value if one.percent else None
    return log_score(
        Store.open(), run.outcome, judge=found.judge, digest=found.hash, metrics=rounded(metrics), file=place
    )


@judge_app.callback()
def _judge() -> None:
    """Judges: how one errs."""


@judge_app.command()
def calibrate(
    judge: JudgeOption,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Whose model is asked, about which items.")
    ] = "baseline",
    run: Annotated[
        str | None, typer.Option("--run", help=f"Take a run's stored answers instead of asking. {RUN_HELP}")
    ] = None,
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(help="Of the recipe, ask at most so many items.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file (default: mlruns/calibrations/<judge>-<hash>.json).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what judging would cost, and stop.")
    ] = False,
) -> None:
    """Measure how a judge errs, per direction and category, against the exact judge of tinyworld.

    It is shown the model's answers, right answers and near misses; 'score --calibration FILE' uses the file.
    """
    from gapeval_lab import calibrating
    from gapeval_lab.nested import load_judge
    from gapeval_lab.recipe import load
    from gapeval_lab.registry import build
    from gapeval_lab.rescoring import estimates
    from gapeval_lab.stored_runs import open_run

    called, node = load_judge(judge, set_ or [])
    one: Judge = build("judges", node.use, settings=node.settings)
    seed = 0
    if run is not None:
        if limit is not None:
            raise UserError("--limit: is about the recipe's items; leave it out with --run")
        opened = open_run(find_run(run))
        source, (benchmark, items, pairs) = f"run {opened.outcome.run_id}", calibrating.stored(opened)
    else:
        loaded = load(recipe, [] if limit is None else [f"evaluation.limit={limit}"])
        seed = loaded.recipe.seed
        source, (benchmark, items, pairs) = f"recipe {loaded.recipe.name}", calibrating.asked(loaded)
    made = calibrating.made_up(benchmark, items, seed=seed)
    whole = [*pairs, *made]
    words = f"{source}: {len(pairs)} answers, and {len(made)} right ones and near misses"
    if dry_run:
        print(words)
        _print_estimates(estimates(one, whole))
        print("nothing was judged (--dry-run)")
        return
    found = calibrating.calibrate(one, whole, name=called, node=node.model_dump(), source=words)
    place = found.save(out or home() / "calibrations" / f"{called}-{_short_hash(found.settings)}.json")
    from gapeval_lab.report_cells import draw_rows
    from gapeval_lab.rescoring_tables import RATE_COLUMNS, rate_rows

    wide_console(WIDTH).print(draw_rows(words, RATE_COLUMNS, rate_rows(found)))
    again = shlex.join(["--judge", judge, *(word for one in set_ or [] for word in ("--set", one))])
    print(
        f"written to {short(place)}\n"
        f"use it with: gapeval-lab score RUN {again} --calibration {shlex.quote(short(place))}"
    )


def _short_hash(settings: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:10]


@labels_app.command("export")
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="A new folder: the CSV, the pictures, and the page.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many answers, chosen by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
) -> None:
    """Lay a run's answers out for labelling: blind to phase and model, in random order, each answer once."""
    from gapeval_lab.label_export import PAGE, export
    from gapeval_lab.rescoring import distinct
    from gapeval_lab.stored_runs import open_run

    stored = open_run(find_run(run))
    count = export(distinct(stored), out, seed=seed, limit=limit)
    print(f"{count} answers; open {short(out / PAGE)} in a browser, save the CSV, then:")
    print(f"gapeval-lab labels import {run} labels-NAME.csv")


@labels_app.command("import")
def import_(
    run: Run,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What people saved.")],
    out: Annotated[
        Path | None, typer.Option(help="The file (default: labels.csv in the run's folder).")
    ] = None,
) -> None:
    """Check every row of people's files against the run, and write one file that the judge 'human' reads."""
    from gapeval_lab.files import write_text
    from gapeval_lab.labels import answer_hash, label_csv, labels_lost, read_labels
    from gapeval_lab.rescoring import distinct
    from gapeval_lab.stored_runs import open_run

    stored = open_run(find_run(run))
    known: dict[str, set[str]] = {}
    for item, response in distinct(stored):
        known.setdefault(f"{item.id}|{response.direction}", set()).add(answer_hash(item, response) or "")
    labels = read_labels(files, known=known)
    if not labels:
        raise UserError("labels: the files hold no label; fill in 'correct' with yes or no")
    place = out or stored.folder / "labels.csv"
    if lost := labels_lost(place, labels):
        raise UserError(
            f"--out: {place} holds labels by {', '.join(lost)} that these files lack; name it among the "
            "files to keep them, or remove it"
        )
    write_text(place, label_csv(labels))
    people = sorted({label.who for label in labels})
    print(f"{len(labels)} labels by {', '.join(people)}, written to {short(place)}")
    print(f"gapeval-lab score {run} --judge human --set file={short(place)}")


def _write(file: Path, text: str) -> None:
    from gapeval_lab.files import write_text

    write_text(file, text)
