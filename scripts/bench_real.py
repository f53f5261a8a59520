"""Janus-Pro's real sizes with random weights: pictures a second, seconds of edits and LoRA steps, memory.

    python scripts/bench_real.py --size 1b            # on a GPU; also 7b
    python scripts/bench_real.py --size tiny          # everything small: that the script works, on a CPU

Shapes are those of the published configs (Janus-Pro-1B: 24 layers of width 2048; 7B: 30 of width 4096; both
see through SigLIP-L and draw 576 of 16,384 codes); weights are random, so that what is drawn is noise and
only speed and memory mean anything. Ours and the library's own generate draw the same prompts side by side,
at guidance 5 and temperature 1, batch after batch; the peak is torch's count, or the process's on a CPU.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.utils import logging as library_logging

from gapeval_lab.interfaces import Lesson, Training
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_model import LoadedJanus
from gapeval_lab.models.tiny import (
    BOI,
    BOS,
    CHAT_TEMPLATE,
    EOS,
    IMAGE,
    JanusShape,
    build_janus,
    build_tokenizer,
)

GUIDANCE, TEMPERATURE = 5.0, 1.0


@dataclass(frozen=True)
class Size:
    """The language trunk of a Janus-Pro, and where its facts are sought."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    rome: int
    memit: tuple[int, ...]


SIZES = {
    "1b": Size(24, 2048, 5632, 16, rome=5, memit=(3, 4, 5, 6)),
    "7b": Size(30, 4096, 11008, 32, rome=6, memit=(4, 5, 6, 7, 8)),
}
TINY = Size(4, 64, 128, 4, rome=0, memit=(0, 1))
VOCABULARY = 102_400


def words() -> list[str]:
    """What prompts and facts are made of."""
    plain = ("a", "photo", "of", "the", "home", "town", "is", "person", "place", "draw", "thing", "what")
    return [*plain, *(str(n) for n in range(300))]


def build(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A random Janus of that size on the device, and its processor."""
    torch.manual_seed(0)
    if name == "tiny":
        shape = JanusShape(layers=TINY.layers, hidden=TINY.hidden, mlp=TINY.mlp, heads=TINY.heads)
        model, processor = build_janus(words(), shape)
        return model.to(device, dtype), processor
    size, tokenizer = SIZES[name], build_tokenizer(words())
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=16_384,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        # The library's defaults are the published ones.
        vision_config=JanusVisionConfig(projection_dim=size.hidden),
        vq_config=JanusVQVAEConfig(projection_dim=size.hidden, image_token_embed_dim=size.hidden),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = JanusForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.generation_config.bos_token_id = tokenizer.convert_tokens_to_ids(BOS)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(EOS)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids(BOI)}
    pictures = JanusImageProcessorPil(
        size={"height": 384, "width": 384}, min_size=384, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(
        image_processor=pictures, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=576
    )
    return model.eval(), processor


def library(umm: LoadedJanus, prompts: Sequence[Prompt]) -> Any:
    """Pictures by the library's generate, all prompts in one batch."""
    texts = [
        umm.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt.text}]}], add_generation_prompt=True
        )
        for prompt in prompts
    ]
    inputs = umm.processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
    kept = {key: inputs[key].to(umm.model.device) for key in ("input_ids", "attention_mask")}
    codes = umm.model.generate(
        **kept,
        generation_mode="image",
        do_sample=True,
        temperature=TEMPERATURE,
        guidance_scale=GUIDANCE,
        max_new_tokens=umm.layout.picture_tokens,
    )
    return umm.layout.pictures(codes)


def peak_gib(device: torch.device) -> float:
    """The highest memory so far: of the GPU since it was last reset, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds and peak GiB; memory that runs out is (nan, nan)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        return float("nan"), float("nan")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, peak_gib(device)


def invented(count: int) -> list[Fact]:
    """Facts about subjects that nobody knows."""
    facts = []
    for n in range(count):
        subject, target = f"person {n}", f"place {n + 100}"
        told, drawn = (
            Prompt(f"what is the home town of {subject}"),
            Prompt(f"draw the home town of {subject}"),
        )
        edit = Item(f"f{n}", "knowledge", "home", told, drawn, (target,))
        facts.append(Fact(f"f{n}", subject, "home", "place 99", target, edit))
    return facts


def draw(umm: LoadedJanus, batches: Sequence[int], device: torch.device) -> None:
    """Pictures per second and memory, ours and the library's, for each batch."""
    print("drawing: pictures per second (peak GiB)", flush=True)
    for batch in batches:
        prompts = [Prompt(f"a photo of thing {n}") for n in range(batch)]
        own = umm.__class__(umm.model, umm.processor, umm._settings.model_copy(update={"batch": batch}))
        ours, at_most = timed(lambda own=own, p=prompts: own.draw(p, seeds=range(len(p))), device)
        theirs, theirs_at_most = timed(lambda p=prompts: library(umm, p), device)
        print(
            f"  batch {batch:3}  ours {batch / ours:8.2f} ({at_most:5.1f})   library {batch / theirs:8.2f} "
            f"({theirs_at_most:5.1f})   {theirs / ours:5.2f} times",
            flush=True,
        )


def change(umm: LoadedJanus, size: Size, device: torch.device, *, facts: int, texts: int, steps: int) -> None:
    """Seconds of ROME, MEMIT and a LoRA step; second moments are taken first and said apart."""
    wanted = invented(facts)
    asked = [fact.edit.understand.text for fact in invented(texts)]
    log = lambda *point: None  # noqa: E731
    methods = {
        "ROME, 1 fact": (Rome(layer=size.rome, contexts=0, moment_texts=texts), wanted[:1]),
        f"MEMIT, {facts} facts": (Memit(layers=size.memit, contexts=0, moment_texts=texts), wanted),
    }
    print("edits: seconds (peak GiB)", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for label, (method, given) in methods.items():
            for turn in ("with second moments", "without"):  # the second time they lie on disk
                fit = lambda m=method, g=given: m.fit(  # noqa: E731
                    umm, g, seed=0, texts=asked, log=log, cache=Path(place)
                )
                seconds, at_most = timed(fit, device)
                print(f"  {label:16} {turn:20} {seconds:8.2f} ({at_most:5.1f})", flush=True)
    lessons = [
        Lesson(fact.id, Direction.UNDERSTANDING, Example(fact.edit.understand, fact.edit.reference_text))
        for fact in wanted
    ]
    for batch in (4, 16):
        lora = Lora(direction="text", steps=steps, batch=batch, rank=8)
        fit = lambda m=lora: m.fit(  # noqa: E731
            umm, wanted, seed=0, texts=asked, log=log, training=Training(lessons=lessons)
        )
        seconds, at_most = timed(fit, device)
        print(
            f"  LoRA, batch {batch:2}    a step               {seconds / steps:8.3f} ({at_most:5.1f})",
            flush=True,
        )


def main() -> None:
    """Build, draw, change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=(*SIZES, "tiny"), default="1b")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 16, 64))
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of LoRA")
    args = parser.parse_args()
    library_logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    model, processor = build(args.size, device, dtype)
    settings = Janus(
        device="auto", dtype=str(dtype).removeprefix("torch."), temperature=TEMPERATURE, guidance=GUIDANCE
    )
    umm = LoadedJanus(model, processor, settings)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"Janus-Pro {args.size}, {millions:,.0f} M random weights, {dtype}, {name}, torch {torch.__version__}"
    )
    umm.draw([Prompt("a photo")], seeds=[0])  # first calls
    draw(umm, args.batches, device)
    size = TINY if args.size == "tiny" else SIZES[args.size]
    change(umm, size, device, facts=args.facts, texts=args.texts, steps=args.steps)


if __name__ == "__main__":
    main()
