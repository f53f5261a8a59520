"""Trains an embedded UMM: a tiny Janus or a tiny Emu3 that lives in tinyworld. Seeded and resumable.

    python scripts/train_embedded.py --out gapeval_lab/models/embedded
    python scripts/train_embedded.py --family emu3 --work build/embedded_emu3 \\
        --out gapeval_lab/models/embedded_emu3

Stages: the picture tokenizer (a VQ model whose codes are the world's patches), the eyes where the family has
any, then everything else together, on text answers, picture questions, drawings and picture edits; last a
late stage with more counting, in which two operations are taught that were not before (`LATE`). Every
step's data come from (seed, step) alone (`embedded_data.py`), so a run that is killed goes on from its last
checkpoint and ends with the same weights. Progress goes to `<work>/log.jsonl`.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from embedded_data import IGNORE, Batch, Data, Mixture, random_scene, to_pixels
from embedded_families import Family, build
from torch import Tensor, nn


# ----------------------------------------------------------------------------------- picture tokenizer
def spread_codebook(codes: int, width: int, steps: int = 300) -> Tensor:
    """Unit-norm rows pushed apart from each other."""
    rows = nn.Parameter(torch.randn(codes, width))
    optimiser = torch.optim.Adam([rows], lr=0.05)
    for _ in range(steps):
        unit = F.normalize(rows, dim=1)
        loss = torch.logsumexp(8 * (unit @ unit.T - 2 * torch.eye(codes)), dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return F.normalize(rows.detach(), dim=1)


def train_tokenizer(family: Family, *, seed: int, steps: int, log: Any) -> None:
    """Teach the VQ encoder each patch's code and the decoder each code's patch."""
    vq = family.model.model.vqmodel
    vq.quantize.embedding.weight.data.copy_(spread_codebook(family.count, vq.config.embed_dim))
    vq.quantize.embedding.weight.requires_grad_(False)
    trained = [parameter for parameter in vq.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    book = vq.quantize.embedding.weight
    for step in range(steps):
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = 3e-3 * warm * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        rng = np.random.default_rng([seed, 1, step])
        scenes = [random_scene(rng) for _ in range(12)]
        images = to_pixels(scenes)
        truth = torch.tensor([family.codes.of(scene) for scene in scenes])
        latent = family.latents(images)
        logits = 16 * F.normalize(latent, dim=-1) @ book.T
        # The quantizer compares by distance, so the latents' length matters too.
        length = (latent.norm(dim=-1) - 1).square().mean()
        weight = torch.where(truth == 0, 0.1, 1.0).flatten()  # most patches are background
        losses = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none")
        code_loss = (losses * weight).sum() / weight.sum() + 0.1 * length
        # The things count more than the background around them, and far misses more than near ones.
        miss = family.decode(truth) - images
        thing = torch.where((images < 1).any(dim=1, keepdim=True), 3.0, 1.0)
        pixel_loss = ((miss.abs() + 2 * miss.square()) * thing).mean()
        optimiser.zero_grad()
        (code_loss + pixel_loss).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            right = (logits.flatten(1, 2).argmax(-1) == truth)[truth != 0].float().mean()
            log("tokenizer", step, codes=code_loss.item(), pixels=pixel_loss.item(), accuracy=right.item())
    # What is left of them would count in the clipping of all that follows, but not after a resumption.
    optimiser.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------ eyes
def train_eyes(family: Family, *, seed: int, steps: int, log: Any) -> None:
    """Teach the vision tower and its aligner to tell patches apart: what stands for its pre-training."""
    probe = nn.Linear(family.model.config.text_config.hidden_size, family.count)
    trained = [*family.eye_parameters(), *probe.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        rng = np.random.default_rng([seed, 3, step])
        scenes = [random_scene(rng) for _ in range(32)]
        truth = torch.tensor([family.codes.of(scene) for scene in scenes])
        logits = probe(family.eyes(to_pixels(scenes)))
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(-1) == truth).float().mean()
            log("eyes", step, loss=loss.item(), accuracy=right.item())


# ------------------------------------------------------------------------------------------- the trunk
def forward_loss(family: Family, batch: Batch) -> tuple[Tensor, Tensor]:
    """Weighted mean loss over the batch's targets, and the share of targets (background left out) that
    were the likeliest token."""
    targets = batch.drawn if batch.draws else batch.words
    where = targets != IGNORE
    logits, truth, weight = family.logits(batch, where), targets[where], batch.weights[where]
    losses = F.cross_entropy(logits, truth, reduction="none")
    right = (logits.argmax(-1) == truth).float()
    told = right[truth != 0].mean() if batch.draws else right.mean()
    return (losses * weight).sum() / weight.sum(), told


class Muon(torch.optim.Optimizer):
    """Muon (orthogonalised momentum), with all matrices of one shape orthogonalised together in float32.

    torch's own works in bfloat16 and matrix by matrix, which costs ten times as much on a CPU that
    has no bfloat16 arithmetic. Constants and the match to AdamW's update size as in torch.optim.Muon.
    """

    def __init__(self, params: list[nn.Parameter], *, lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for members in shapes.values():
                updates = []
                for parameter in members:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
                size = 0.2 * math.sqrt(max(members[0].shape))
                for parameter, update in zip(members, orthogonalised(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Near-orthogonal versions of (count, rows, columns) matrices: five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimisers(model: Any, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the trunk's matrices, AdamW on everything else but the frozen picture tokenizer."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if name.startswith("model.vqmodel."):
            parameter.requires_grad_(False)
        elif ".layers." in name and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


WEIGHTS = {"text": 1.0, "seen": 2.0, "drawn": 2.0, "edited": 3.0}


@dataclass(frozen=True)
class Stage:
    """How long, on what mixture, and how fast the trunk is trained."""

    name: str
    steps: int
    mixture: Mixture
    muon_lr: float
    adam_lr: float


def train(family: Family, data: Data, stage: Stage, args: argparse.Namespace, log: Any) -> None:
    """Train everything but the picture tokenizer; checkpoints every `--every` steps."""
    work, model = args.work, family.model
    chosen = optimisers(model, stage.muon_lr, stage.adam_lr)
    base = [[group["lr"] for group in optimiser.param_groups] for optimiser in chosen]
    start, checkpoint = 0, work / f"{stage.name}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
    model.train()
    began = time.monotonic()
    for step in range(start, stage.steps):
        warm = min(1.0, (step + 1) / 40)
        scale = warm * (0.5 * (1 + math.cos(math.pi * step / stage.steps)) * 0.98 + 0.02)
        for optimiser, rates in zip(chosen, base, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimiser.zero_grad(set_to_none=True)
        report = {}
        for kind, batch in data.step(step, stage.mixture):
            loss, right = forward_loss(family, batch)
            (WEIGHTS[kind] * loss).backward()
            report[kind], report[f"{kind}_right"] = loss.item(), right.item()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        for optimiser in chosen:
            optimiser.step()
        if step % 25 == 0 or step == stage.steps - 1:
            pace = (time.monotonic() - began) / (step - start + 1)
            log(stage.name, step, seconds_per_step=pace, **report)
        if (step + 1) % args.every == 0 or step == stage.steps - 1:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in chosen],
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            if args.snapshots:
                kept = work / "snapshots" / f"{stage.name}-{step + 1:06d}.pt"
                kept.parent.mkdir(exist_ok=True)
                torch.save({"step": step + 1, "model": model.state_dict()}, kept)
    model.eval()


def main() -> None:
    """Parse, train both stages, save in Hugging Face format."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=("janus", "emu3"), default="janus")
    parser.add_argument(
        "--patch", type=int, choices=(8, 4), default=8, help="pixels of a code's side, of an emu3"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/embedded"), help="checkpoints and log")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tokenizer-steps", type=int, default=2500)
    parser.add_argument("--eyes-steps", type=int, default=250)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--mixture", type=int, nargs=4, default=(24, 44, 24, 36))
    parser.add_argument("--late-steps", type=int, default=400)
    parser.add_argument("--late-mixture", type=int, nargs=4, default=(16, 60, 20, 26))
    parser.add_argument(
        "--late-share", type=float, default=0.5, help="of the learning rates, in the late stage"
    )
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--drop", type=float, default=0.05, help="share of drawings without their condition")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument(
        "--snapshots", action="store_true", help="keep each checkpoint's weights, for emergence_embedded.py"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)

    def log(stage: str, step: int, **values: float) -> None:
        values["minutes"] = (time.monotonic() - began) / 60  # of this process: a resumed run starts anew
        line = json.dumps({"stage": stage, "step": step, **{k: round(v, 5) for k, v in values.items()}})
        with (args.work / "log.jsonl").open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    family = build(args.family, args.patch)
    model, processor = family.model, family.processor
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")
    stage = args.work / "tokenizer.pt"
    if stage.exists():
        model.model.vqmodel.load_state_dict(torch.load(stage, weights_only=True))
    else:
        train_tokenizer(family, seed=args.seed, steps=args.tokenizer_steps, log=log)
        torch.save(model.model.vqmodel.state_dict(), stage.with_suffix(".tmp"))
        os.replace(stage.with_suffix(".tmp"), stage)
    torch.manual_seed(args.seed + 1)
    if family.eye_parameters() and not (args.work / "trunk.pt").exists():
        train_eyes(family, seed=args.seed, steps=args.eyes_steps, log=log)
    rows = family.rows()
    first = Stage("trunk", args.steps, Mixture(*args.mixture), args.muon_lr, args.adam_lr)
    train(family, Data(rows, args.seed, args.drop), first, args, log)
    last = Stage(
        "late",
        args.late_steps,
        Mixture(*args.late_mixture),
        args.late_share * args.muon_lr,
        args.late_share * args.adam_lr,
    )
    train(family, Data(rows, args.seed, args.drop, late=True), last, args, log)
    log("end", 0)
    model.to(torch.float16).save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
