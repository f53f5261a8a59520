"""Measures when the embedded UMM learned to tell and when to draw, from its training's snapshots.

    python scripts/train_embedded.py --snapshots --work build/embedded --out ...
    python scripts/emergence_embedded.py --snapshots build/embedded/snapshots --out FOLDER

The probe is the one of a run's emergence curves: what single-entity questions of the benchmark are
told and drawn right, of entities taught in both directions, and the Gap Score of a fixed subset.
Writes emergence.json and emergence.png.
"""

import argparse
import json
from pathlib import Path

import torch
from embedded_families import build

from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.emergence import emergence, measure
from gapeval_lab.evaluate import select
from gapeval_lab.files import write_text
from gapeval_lab.judges.exact import Exact
from gapeval_lab.outcome import EmergencePoint
from gapeval_lab.tracking_figure import draw_emergence, emergence_data


def main() -> None:
    """Measure every snapshot, write the curve and its picture."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=240, help="size of the subset behind the Gap Score")
    parser.add_argument("--family", choices=("janus", "emu3"), default="janus", help="as it was trained")
    parser.add_argument("--patch", type=int, choices=(8, 4), default=8, help="as it was trained")
    args = parser.parse_args()
    family = build(args.family, args.patch)
    model, umm = family.model, family.umm
    everything = TinyWorld().items()
    known = [
        item
        for item in everything
        if item.tags["taught"] == "both" and item.subcategory in ("attribute", "whole_entity")
    ]
    items = select(everything, categories=None, number=args.items, limit=None)
    points: list[EmergencePoint] = []
    for file in sorted(args.snapshots.glob("trunk-*.pt")):
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        model.eval()
        points.append(measure(umm, state["step"], facts=known, items=items, judge=Exact(), seed=0))
        print(points[-1].model_dump_json(), flush=True)
    found = emergence(points)
    write_text(args.out / "emergence.json", json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
    title = "When the embedded UMM learned what it was taught in both directions"
    draw_emergence(emergence_data(found), title=title).savefig(args.out / "emergence.png", dpi=110)
    print(json.dumps({"crossings": found.crossings, "lag": found.lag}))


if __name__ == "__main__":
    main()
