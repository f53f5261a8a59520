"""Second moments of what flows into a linear layer: what it is used to seeing.

C = K K^T / n, uncentred, in float64, over the keys k (columns of K) that the layer takes in while
the model reads questions of the domain; n counts tokens. Kept on disk under a hash of everything
that went in, weights included. Knows nothing of facts.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes
from gapeval_lab.interfaces import Backbone, Drawing, Encoded
from gapeval_lab.interventions.batches import drawing_of
from gapeval_lab.interventions.trace import reading
from gapeval_lab.items import Example

_FORMAT = "second-moment-1"


@dataclass(frozen=True)
class SecondMoment:
    """C of one site.

    Attributes:
        matrix: (width, width), float64, on the CPU.
        tokens: how many keys it is the mean over.
    """

    matrix: Tensor
    tokens: int

    def ridged(self, ridge: float) -> Tensor:
        """C + ridge * mean(diag C) * I, (width, width), float64."""
        scale = self.matrix.diagonal().mean()
        return self.matrix + ridge * scale * torch.eye(len(self.matrix), dtype=torch.float64)

    def solve(self, keys: Tensor, *, ridge: float) -> Tensor:
        """(C + ridge * mean(diag C) * I)^-1 applied to keys: (width,) or (width, n), float64.

        The ridge is relative to the mean of the diagonal, so one number serves every layer. With
        fewer tokens than the width C is singular and a ridge is needed.

        Raises:
            UserError: singular, or holds numbers that are not finite.
        """
        return self.solver(ridge)(keys)

    def solver(self, ridge: float) -> Callable[[Tensor], Tensor]:
        """`solve` for many keys one after the other: factorised once.

        Raises:
            UserError: as `solve`.
        """
        scale, ridged = self.matrix.diagonal().mean(), self.ridged(ridge)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        # Cholesky can pass on rounding alone: a pivot that lost all its digits is as good as none.
        pivots = factor.diagonal() ** 2
        if failed or not torch.isfinite(factor).all() or pivots.min() < 1e-14 * scale:
            raise UserError(
                f"ridge: {ridge} leaves the second moment of {self.tokens} tokens (width "
                f"{len(self.matrix)}) singular; raise ridge, or moment_texts"
            )

        def solve(keys: Tensor) -> Tensor:
            columns = keys.detach().to("cpu", torch.float64)
            solved = torch.cholesky_solve(columns.reshape(len(factor), -1), factor)
            return solved.reshape(columns.shape)

        return solve

    def coarse_solver(self, ridge: float) -> Callable[[Tensor], Tensor]:
        """`solver` in float32, by an inverse, as others do it."""
        inverse = torch.inverse(self.ridged(ridge).float())
        return lambda keys: (inverse @ keys.detach().cpu().float()).double()


def default_cache() -> Path:
    """`$GAPEVAL_LAB_CACHE`, or `~/.cache/gapeval_lab`."""
    place = os.environ.get("GAPEVAL_LAB_CACHE")
    return Path(place).expanduser() if place else Path.home() / ".cache" / "gapeval_lab"


def second_moments(
    backbone: Backbone,
    paths: Sequence[str],
    texts: Sequence[str],
    *,
    limit: int,
    seed: int,
    cache: Path | None = None,
    batch: int = 64,
    drawn: Sequence[Example] = (),
) -> dict[str, SecondMoment]:
    """The second moments of the inputs of modules, from disk where they are there.

    Every token of the rendered questions counts, padding does not. Where there are drawings, every
    token of their prompts and every code counts; both halves then weigh the same. Modules above the
    site do not run.

    Args:
        backbone: the model, as it is now.
        paths: linear modules, from the backbone's root.
        texts: questions of the domain; repetitions count once.
        limit: at most so many of them, drawn with the seed.
        seed: of the draw.
        cache: folder of kept moments; `default_cache()` if None.
        batch: questions per forward pass.
        drawn: drawing prompts with their pictures; at most `limit`, drawn with the seed.

    Raises:
        UserError: no texts, or the cache cannot be written.
    """
    chosen = list(dict.fromkeys(texts))
    if not chosen:
        raise UserError("texts: none were given; second moments need questions of the benchmark's domain")
    if len(chosen) > limit:
        chosen = random.Random(seed).sample(chosen, limit)
    place, weights = cache or default_cache(), fingerprint(backbone.root)
    told = [backbone.encode(chosen[start : start + batch], None) for start in range(0, len(chosen), batch)]
    found = {path: _kept(backbone, path, told, place, weights=weights) for path in paths}
    if not drawn:
        return found
    some = random.Random(seed).sample(drawn, limit) if len(drawn) > limit else list(drawn)
    shown = [drawing_of(backbone, some[start : start + batch]) for start in range(0, len(some), batch)]
    for path, moment in found.items():
        other = _kept(backbone, path, shown, place, weights=weights)
        found[path] = SecondMoment((moment.matrix + other.matrix) / 2, moment.tokens + other.tokens)
    return found


def _kept(
    backbone: Backbone, path: str, batches: Sequence[Encoded | Drawing], cache: Path, *, weights: str
) -> SecondMoment:
    """The moment over some batches, from disk if it is there; `weights` is the model's fingerprint."""
    file = cache / "moments" / f"{_key(backbone, path, batches, weights=weights)}.safetensors"
    if kept := _load(file):
        return kept
    moment = _measure(backbone, path, batches)
    content = {"second_moment": moment.matrix, "tokens": torch.tensor(moment.tokens)}
    write_bytes(file, save(content, metadata={"format": _FORMAT, "site": path}))
    return moment


def _key(backbone: Backbone, path: str, batches: Sequence[Encoded | Drawing], *, weights: str) -> str:
    """Hash of all that C depends on.

    The tokens stand for the texts, their number, the template and the tokenizer. The fingerprint of
    the weights alone does not tell how they are computed with, hence the dtype and the device.
    """
    weight = backbone.root.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    digest = hashlib.sha256()
    for part in (_FORMAT, weights, path, str(weight.dtype), weight.device.type):
        digest.update(part.encode() + b"\x00")
    for one in batches:
        encoded, codes = (one.prompt, [one.codes]) if isinstance(one, Drawing) else (one, [])
        for tensor in (encoded.input_ids, encoded.attention_mask, *codes):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def _load(file: Path) -> SecondMoment | None:
    """A kept moment; None if there is none or the file was damaged by others."""
    try:
        content = load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None
    return SecondMoment(content["second_moment"], int(content["tokens"]))


def _measure(backbone: Backbone, path: str, batches: Sequence[Encoded | Drawing]) -> SecondMoment:
    total: Tensor | None = None
    tokens = 0
    for one in batches:
        with torch.no_grad(), reading(backbone.root, path, side="input", stop=True) as got:
            if not isinstance(one, Drawing):
                backbone.logits(one)
            elif backbone.drawing_loss is not None:
                backbone.drawing_loss(one)
        mask = one.prompt.attention_mask if isinstance(one, Drawing) else one.attention_mask
        # Codes follow the prompt; none of them is padding.
        mask = torch.nn.functional.pad(mask, (0, got.tensor.shape[1] - mask.shape[1]), value=1)
        keys = got.tensor[mask.bool()].double()
        product = keys.T @ keys
        total = product if total is None else total + product
        tokens += len(keys)
    assert total is not None
    return SecondMoment((total / tokens).cpu(), tokens)
