"""Batched evaluation against the library's own generate, one prompt at a time.

    python scripts/bench_evaluation.py --weights embedded --items 100

Both sides hold the same checkpoint and are asked the same tinyworld items, greedily and with the same
guidance: every text question, and the drawing prompts without a picture (the library's drawing
ignores pictures in prompts and fails at guidance 1). Prints times, their ratio, and how many answers,
pictures and verdicts are the same. `--weights random` builds a model of the embedded one's size with
random weights.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as library_logging

from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.items import Direction, Item, Prompt, Response, image_digest
from gapeval_lab.judges.exact import Exact
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_model import LoadedJanus


def random_checkpoint(folder: Path, items: Sequence[Item]) -> None:
    from gapeval_lab.models.tiny import JanusShape, build_janus

    torch.manual_seed(0)
    words = {
        word for item in items for text in (item.understand.text, item.generate.text) for word in text.split()
    }
    shape = JanusShape(layers=8, hidden=96, mlp=384, heads=4, vision_layers=2, vision_hidden=64, codes=200)
    model, processor = build_janus(sorted(words), shape)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many of the items, evenly from all of them."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


def library_inputs(umm: LoadedJanus, prompt: Prompt, mode: str) -> dict[str, Any]:
    parts = [*({"type": "image"} for _ in prompt.images), {"type": "text", "text": prompt.text}]
    text = umm.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = umm.processor(
        text=[text], images=list(prompt.images) or None, generation_mode=mode, return_tensors="pt"
    )
    kept = ("input_ids", "attention_mask", "pixel_values")
    return {key: inputs[key].to(umm.model.device) for key in kept if key in inputs}


def library_answer(umm: LoadedJanus, prompt: Prompt, limit: int) -> str:
    inputs = library_inputs(umm, prompt, "text")
    tokens = umm.model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0]
    return umm.layout.decode(tokens[inputs["input_ids"].shape[1] :].tolist())


def library_drawing(umm: LoadedJanus, prompt: Prompt, guidance: float) -> Any:
    inputs = library_inputs(umm, prompt, "image")
    codes = umm.model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=guidance)
    return umm.layout.pictures(codes)[0]


@dataclass(frozen=True)
class Timed:
    """Answers, with the wall and processor seconds they took (the latter for busy machines)."""

    answers: list[Any]
    wall: float
    cpu: float


def timed(work: Callable[[], list[Any]]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    answers = work()
    return Timed(answers, time.perf_counter() - wall, time.process_time() - cpu)


def verdicts(items: Sequence[Item], answers: Sequence[Any], direction: Direction) -> list[bool | None]:
    told = direction is Direction.UNDERSTANDING
    responses = [
        Response(item.id, direction, text=answer if told else None, picture=None if told else answer)
        for item, answer in zip(items, answers, strict=True)
    ]
    return [verdict.correct for verdict in Exact()(list(zip(items, responses, strict=True)))]


def compare(direction: Direction, items: Sequence[Item], *, ours: Timed, theirs: Timed) -> None:
    def key(answer: Any) -> str:
        return answer if isinstance(answer, str) else image_digest(answer)

    same = sum(key(a) == key(b) for a, b in zip(ours.answers, theirs.answers, strict=True))
    judged, reference = verdicts(items, ours.answers, direction), verdicts(items, theirs.answers, direction)
    agree = sum(a == b for a, b in zip(judged, reference, strict=True))
    number = len(items)
    print(f"{direction}, {number} items")
    print(f"  batched        {ours.wall:8.2f} s wall {ours.cpu:8.2f} s processor")
    print(f"  one at a time  {theirs.wall:8.2f} s wall {theirs.cpu:8.2f} s processor")
    print(f"  ratio          {theirs.wall / ours.wall:8.1f}        {theirs.cpu / ours.cpu:8.1f}")
    print(
        f"  identical {same}/{number}, same verdict {agree}/{number}, right {sum(map(bool, judged))}/{number}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="embedded", help="as in a recipe, or 'random'")
    parser.add_argument("--items", type=int, default=100, help="items per direction")
    parser.add_argument("--guidance", type=float, default=1.5, help="above 1")
    parser.add_argument("--batch", type=int, default=Janus().batch)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.guidance <= 1:
        parser.error("--guidance: the library fails at 1 and below; give more than 1, e.g. 1.5")
    library_logging.set_verbosity_error()  # generate repeats the same advice for every prompt
    library_logging.disable_progress_bar()
    everything = TinyWorld().items()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.weights == "random":
            random_checkpoint(Path(folder), everything)
            arguments.weights = folder
        settings = Janus(
            weights=arguments.weights,
            guidance=arguments.guidance,
            batch=arguments.batch,
            device=arguments.device,
        )
        umm = settings.load()
    asked = spread(everything, arguments.items)
    drawn = spread([item for item in everything if not item.generate.pictures], arguments.items)
    seeds = range(len(drawn))

    # Once unmeasured: the first pass of anything pays for set-up.
    umm.answer([asked[0].understand], seeds=[0])
    library_answer(umm, asked[0].understand, 1)
    print(f"{arguments.weights}: {torch.get_num_threads()} threads on {umm.model.device}, {settings.dtype}")
    compare(
        Direction.UNDERSTANDING,
        asked,
        ours=timed(lambda: umm.answer([item.understand for item in asked], seeds=range(len(asked)))),
        theirs=timed(
            lambda: [library_answer(umm, item.understand, settings.max_new_tokens) for item in asked]
        ),
    )
    compare(
        Direction.GENERATION,
        drawn,
        ours=timed(lambda: list(umm.draw([item.generate for item in drawn], seeds=seeds))),
        theirs=timed(lambda: [library_drawing(umm, item.generate, settings.guidance) for item in drawn]),
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
