"""What a search finds, against the recipe as it is shipped and against random search of the same cost.

    OMP_NUM_THREADS=1 python scripts/search_compare.py --trials 40 --seeds 3

Every search starts with the recipe as it stands and has the same number of trials, in a store of its own
that all of them share, so that the state before is measured once. Dev is what a search saw; test is what
its best trial gives on facts and items that it did not see, with dev - test and its 95 % interval.
"""

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.recipe import load
from gapeval_lab.search import Plan, run_search, trials_of
from gapeval_lab.search_report import Summary, told
from gapeval_lab.tracking_store import Store


def searched(args: argparse.Namespace, study: str, *overrides: str, trials: int) -> Summary:
    """One study."""
    loaded = load(args.recipe, [*args.overrides, *overrides])
    store = Store.open()
    store.check()
    folder = store.folder / "optuna"
    plan = Plan(loaded, study, None, trials, args.workers, folder, store.locks)
    return run_search(
        plan, functools.partial(trials_of, loaded, study), say=functools.partial(print, flush=True)
    )


def sampler(args: argparse.Namespace, seed: int) -> str:
    """The recipe's own sampler with another seed, as an override's value."""
    section = load(args.recipe, args.overrides).recipe.search
    if section is None:
        raise UserError(f"--recipe: {args.recipe} has no search section; add search: with goal and space")
    return json.dumps({**section.sampler.model_dump(), "seed": seed})


def show(name: str, found: Summary) -> list[str]:
    """The study's best trials, a line per goal."""
    if not found.best:
        return [f"  {name:16} no trial keeps the constraints"]
    lines = []
    for best in found.best:
        for goal, dev in best.dev.items():
            test, gap = best.test.get(goal), best.optimism.get(goal)
            numbers = f"{dev:8.4f} {'' if test is None else f'{test:8.4f}':8}"
            between = "" if gap is None else f"  {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
            lines.append(f"  {name:16} {goal:28} {numbers}{between}  #{best.number} {told(best.overrides)}")
    return lines


def main() -> None:
    """Search, then print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--recipe", default="rome_world_knowledge")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--home", type=Path, help="folder for the store (default: a temporary one)")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for `gapeval-lab search`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["GAPEVAL_LAB_HOME"] = str(args.home or temporary)
        lines = show("as shipped", searched(args, "shipped", trials=1))
        for seed in range(args.seeds):
            own = searched(args, f"own-{seed}", f"search.sampler={sampler(args, seed)}", trials=args.trials)
            blind = f"search.sampler={{use: random, seed: {seed}}}"
            random = searched(args, f"random-{seed}", blind, "search.pruner={use: none}", trials=args.trials)
            lines += [*show(f"searched, seed {seed}", own), *show(f"random, seed {seed}", random)]
    print(f"{args.recipe}, {args.trials} trials each: dev, test, dev - test")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
