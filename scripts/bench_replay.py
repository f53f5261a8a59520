"""Reader, replay, evaluation and a trivial judge on many items: pace, and how memory grows.

    python scripts/bench_replay.py --items 10000

Makes the items in a temporary folder, in GapEval's layout: a problem, a reference and an answer, each a
PNG of `--side` pixels, and a text. Measures in fresh processes, with a tenth of the items and with all of
them, with responses in a store as runs have them. Prints items per second and the peak of resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gapeval_lab.benchmarks.gapeval import GapEval
from gapeval_lab.evaluate import ResponseStore, evaluate, store_key
from gapeval_lab.items import Direction
from gapeval_lab.models.replay import Replay
from gapeval_lab.testing import ScriptedJudge

MODEL = "elsewhere"
MISSING = 100  # one answer in so many is not there


def make(root: Path, number: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for n in range(1, number + 1):
        folder = root / f"data_{n}"
        for place in ("image", "ref", MODEL):
            (folder / place).mkdir(parents=True)
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / place / "1.png", compress_level=1)
        keys = {
            "category": "rule_based",
            "und_prompt": f"tell {n}",
            "gen_prompt": f"draw {n}",
            "reference": "yes",
        }
        (folder / "prompt.json").write_text(json.dumps(keys))
        if n % MISSING:
            (folder / MODEL / "text.json").write_text(json.dumps({"output_text": "yes " * 100 + str(n)}))


def peak() -> float:
    """Peak of this process's resident memory, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(root: Path) -> dict[str, float]:
    """One pass in this process; the peak before it is that of the libraries."""
    base, began, cpu = peak(), time.monotonic(), time.process_time()
    items = GapEval(root=str(root)).items()
    read = time.monotonic()
    umm = Replay(root=str(root), model=MODEL).load()
    loaded = time.monotonic()
    judge = ScriptedJudge(lambda item, response: None if response.error else True)
    with tempfile.TemporaryDirectory() as place:
        store = ResponseStore(Path(place) / store_key(umm, weights=umm.identity(), seed=0))
        result = evaluate(umm, items, judge=judge, seed=0, store=store)
    done = time.monotonic()
    scored = sum(verdict.correct is not None for verdict in result.verdicts.values())
    expected = 2 * len(items) - len(items) // MISSING
    if scored != expected or umm.directions != frozenset(Direction):
        raise SystemExit(f"{scored} verdicts, expected {expected}")
    return {
        "items": len(items),
        "read": read - began,
        "load": loaded - read,
        "evaluate": done - loaded,
        "processor": time.process_time() - cpu,
        "base_mib": base,
        "peak_mib": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    results = []
    for number in (max(1, given.items // 10), given.items):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), number, given.side)
            words = [sys.executable, __file__, "--measure", folder]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        one = json.loads(done.stdout)
        results.append(one)
        total = one["read"] + one["load"] + one["evaluate"]
        spent = ", ".join(f"{name} {one[name]:.1f} s" for name in ("read", "load", "evaluate", "processor"))
        print(f"{number:6} items: {spent}; {number / total:.0f} items/s")
        print(f"        memory {one['base_mib']:.0f} MiB before, {one['peak_mib']:.0f} at its peak")
    growth = results[1]["peak_mib"] - results[0]["peak_mib"]
    more = results[1]["items"] - results[0]["items"]
    pictures = 3 * more * given.side**2 * 3 / 2**20
    print(f"growth of the peak: {growth:.0f} MiB, {growth * 1024 / more:.1f} KiB per item")
    print(f"(the pictures of these items, decoded, are {pictures:.0f} MiB)")


if __name__ == "__main__":
    main()
