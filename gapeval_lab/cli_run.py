"""Running recipes for the commands `edit` and `eval`: plan, run, track, print. Heavy imports inside."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gapeval_lab.cli_common import Bars, loading, short, wide_console
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text

if TYPE_CHECKING:
    from gapeval_lab.outcome import Outcome
    from gapeval_lab.recipe import LoadedRecipe
    from gapeval_lab.shards_hands import Engine

WIDTH = 130  # columns, where there is no terminal to ask


def execute(
    load: Callable[[], Sequence["LoadedRecipe"]],
    *,
    out: Path | None,
    json_file: Path | None,
    processes: int,
    engine: "Engine",
) -> list["Outcome"]:
    """Run recipes one after the other, track them, print what came out of each.

    Args:
        load: gives the recipes.
        out, json_file: where the results go.
        processes, engine: who answers prompts; see shards.py.
    """
    for place in (out, json_file):
        _check_writable(place)
    console, began = wide_console(WIDTH), time.monotonic()
    from gapeval_lab.shards import crew
    from gapeval_lab.tracking_process import beside
    from gapeval_lab.tracking_store import Store

    store, done = Store.open(), []
    say = partial(console.print, soft_wrap=True, style="yellow", markup=False)
    with beside(store) as tracker:
        for loaded in load():
            with crew(loaded.recipe.model, processes, engine=engine, say=console.print) as helpers:
                with loading(console):
                    from gapeval_lab.bench import load_bench
                    from gapeval_lab.report import draw_outcome
                    from gapeval_lab.tracked_run import tracked_run

                    bench = load_bench(loaded)
                with Bars(console) as bars:
                    run = tracked_run(
                        bench,
                        store=store,
                        on_progress=bars.update,
                        out=out,
                        helpers=helpers,
                        say=say,
                        track=tracker.track,
                    )
            done.append(run.outcome)
            if json_file:
                write_text(json_file, run.outcome.model_dump_json(indent=1))
            console.print()
            console.print(draw_outcome(run.outcome))
            later = "see it in MLflow with: gapeval-lab ui"
            if not run.run_id:
                later = "not in MLflow yet: gapeval-lab sync"
            console.print(f"[dim]result in {short(run.place)}; {later}[/dim]", soft_wrap=True)
            console.print(f"[dim]{time.monotonic() - began:.1f} s in all[/dim]")
            began = time.monotonic()
    return done


def print_plan(loaded: "LoadedRecipe") -> None:
    """What a run would do; loads the benchmark and the facts, not the model."""
    from gapeval_lab.bench import chosen_items, stages_of

    recipe = loaded.recipe
    benchmark = recipe.build("benchmark")
    items, stages = chosen_items(recipe, benchmark), stages_of(recipe, benchmark)
    counts: dict[str, int] = {}
    for item in items:
        counts[item.category] = counts.get(item.category, 0) + 1
    print(f"{recipe.name}: {loaded.source}")
    print(f"  items      {len(items)}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    phases = 1
    for stage, node in zip(stages, recipe.interventions, strict=True):
        print(f"  facts      {len(stage.facts)}: " + ", ".join(fact.id for fact in stage.facts))
        print(f"  intervene  {node.use} {node.settings}")
        phases += 1
    if stages:
        phases += recipe.controls.identity + recipe.controls.placebo
    if reasoning := recipe.evaluation.reasoning:
        asked = f"{len(reasoning.questions)} question{'s' if len(reasoning.questions) > 1 else ''}"
        print(f"  write      {asked} about each fact, then draw: {', '.join(reasoning.draw)}")
    for name, way in recipe.evaluation.protocols.items():
        print(f"  ask        also by {name}: {way.use}")
    prompts = sum(len(item.directions) for item in items)
    print(f"  measure    {phases} times, {prompts} prompts each")
    print("nothing was done (--dry-run)")


def _check_writable(place: Path | None) -> None:
    """Fail before the work, not after it."""
    if place is None:
        return
    parent = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    if place.parent.exists() and not place.parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out/--json: {place} cannot be written; choose another place")
