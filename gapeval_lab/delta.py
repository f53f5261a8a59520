"""What an intervention adds to a model's weights, applied and taken back exact to the bit.

    W         a parameter, any floating dtype
    dW        its term: up @ down with up (rows, rank), down (rank, columns); or dense, W's shape
    W + dW    summed in float32 (in W's own dtype if that is wider), then cast to W's dtype

Taking back copies the saved bits: subtracting dW would not give W again. Knows parameters by their
names from the root module, and nothing of facts, methods or models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from gapeval_lab.delta_file import FORMAT, Origin, metadata, read_head
from gapeval_lab.delta_terms import Dense, LowRank, Term
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes

__all__ = ["Dense", "LowRank", "Term", "WeightDelta", "fingerprint", "placebo"]


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """Parameter name, from the root module -> what is added to it.

    Example:
        delta = WeightDelta({"layers.2.mlp.down_proj.weight": LowRank(up, down)})
        with delta.applied(root):
            ...  # the model holds the edit here, and only here
    """

    terms: Mapping[str, Term]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", MappingProxyType(dict(sorted(self.terms.items()))))

    @staticmethod
    def zero() -> WeightDelta:
        """The delta that touches nothing."""
        return WeightDelta({})

    @property
    def is_zero(self) -> bool:
        """Whether no term can add anything: dense terms are all 0, and so is a factor of low-rank ones."""
        return not any(all(bool(part.any()) for part in term.parts.values()) for term in self.terms.values())

    @property
    def is_finite(self) -> bool:
        """Whether no stored number is NaN or infinite."""
        return not self._not_finite()

    @property
    def digest(self) -> str:
        """The delta's address: SHA-256 over names, kinds, shapes and bits of all terms.

        The same in any process, and for every file that holds this delta.
        """
        result = hashlib.sha256(FORMAT.encode())
        for name, term in self.terms.items():
            for part, tensor in term.parts.items():
                result.update(f"\x00{name}\x00{part}\x00{tuple(tensor.shape)}\x00".encode())
                result.update(_bytes(tensor))
        return result.hexdigest()

    def norms(self) -> dict[str, float]:
        """Parameter -> Frobenius norm of its term."""
        return {name: term.norm() for name, term in self.terms.items()}

    def norm(self) -> float:
        """Frobenius norm over all parameters."""
        return math.hypot(*self.norms().values())

    def scaled(self, factor: float) -> WeightDelta:
        """Every term times `factor`."""
        return WeightDelta({name: term.scaled(factor) for name, term in self.terms.items()})

    def then(self, other: WeightDelta) -> WeightDelta:
        """Both at once: terms of one parameter add up; low-rank ones stay low-rank.

        Summed in float32 and cast once, which in 16-bit weights may differ by a rounding from
        applying one inside the other. Addition: the order changes roundings and the order of the
        factors (so the address), nothing else.

        Raises:
            UserError: two terms of one parameter differ in shape.
        """
        terms = dict(self.terms)
        for name, term in other.terms.items():
            terms[name] = _sum(name, terms[name], term) if name in terms else term
        return WeightDelta(terms)

    @contextmanager
    def applied(self, root: nn.Module) -> Iterator[nn.Module]:
        """The model with the delta, for as long as the block lasts.

        Parameters keep their identity; their bits are copied back on the way out, whatever happened
        inside. Memory: one copy of every touched parameter.

        Raises:
            UserError: a name, shape or dtype does not fit this model, or a number is not finite.
                Nothing was changed then.
        """
        self._require_finite()
        changes = self._fit(root)
        saved = [(name, parameter, _copy(parameter)) for name, parameter, _ in changes]
        try:
            for name, parameter, term in changes:
                _add(name, parameter, term)
            yield root
        finally:
            for _, parameter, before in saved:
                _write(parameter, before)

    def check(self, root: nn.Module) -> None:
        """Refuse a model that this delta does not fit; changes nothing.

        Raises:
            UserError: with every name, shape and dtype that does not fit, or a number is not finite.
        """
        self._require_finite()
        self._fit(root)

    def save(self, path: Path, *, origin: Origin | None = None) -> Path:
        """Write as safetensors, atomically, see `delta_file`; returns the path.

        Args:
            path: the file.
            origin: kept in the file's head.

        Raises:
            UserError: the place cannot be written, or a number is not finite.
        """
        self._require_finite()
        tensors = {
            f"{name}:{part}": tensor
            for name, term in self.terms.items()
            for part, tensor in term.parts.items()
        }
        head = metadata(self.digest, norm=self.norm(), origin=origin or Origin())
        write_bytes(path, to_safetensors(tensors, metadata=head))
        return path

    @staticmethod
    def load(path: Path) -> WeightDelta:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, not a delta, or its content does not have the digest in its head.
        """
        head = read_head(path)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        delta = WeightDelta(_terms(tensors))
        if delta.digest != head.address:
            raise UserError(f"delta: the content of {path} does not match its digest; make it again")
        return delta

    def _not_finite(self) -> list[str]:
        """Names of parameters whose term holds a NaN or an infinity."""
        return [
            name
            for name, term in self.terms.items()
            if not all(bool(part.isfinite().all()) for part in term.parts.values())
        ]

    def _require_finite(self) -> None:
        if broken := self._not_finite():
            raise UserError(
                f"delta: not finite in {', '.join(broken)}; the intervention diverged, "
                "lower its learning rate or clamp its values"
            )

    def _fit(self, root: nn.Module) -> list[tuple[str, nn.Parameter, Term]]:
        """The parameters to change, each once, with their terms.

        Raises:
            UserError: with everything that does not fit.
        """
        problems: list[str] = []
        changes: dict[tuple[object, ...], tuple[str, nn.Parameter, Term]] = {}
        for name, term in self.terms.items():
            parameter = _parameter(root, name)
            if parameter is None:
                problems.append(f"{name}: the model has no such parameter")
            elif tuple(parameter.shape) != term.shape:
                problems.append(f"{name}: the model has {tuple(parameter.shape)}, the delta {term.shape}")
            elif not parameter.is_floating_point() or parameter.is_meta:
                problems.append(f"{name}: {parameter.dtype} on {parameter.device} cannot be added to")
            else:
                first, _, known = changes.setdefault(_place(parameter), (name, parameter, term))
                if known is not term and not _same(known, term):
                    problems.append(f"{name}: is the same tensor as {first}, but with another term")
        if problems:
            raise UserError("delta: does not fit this model:\n  " + "\n  ".join(problems))
        return list(changes.values())


def _parameter(root: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return root.get_parameter(name)
    except AttributeError:
        return None


def placebo(delta: WeightDelta, *, seed: int) -> WeightDelta:
    """A random delta: per parameter the same kind, shape, number of ranks and Frobenius norm.

    Args:
        delta: what to imitate.
        seed: all randomness comes from it; global random state is left alone.

    The stream belongs to placebos alone: a delta drawn from the same seed is not imitated bit by bit.
    """
    stream = hashlib.blake2b(f"placebo|{seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(stream, "big") >> 1)
    terms: dict[str, Term] = {}
    for name, term in delta.terms.items():
        noise, norm = term.random(generator), term.norm()
        size = noise.norm()
        terms[name] = noise.scaled(norm / size if size else 0.0)
    return WeightDelta(terms)


def fingerprint(root: nn.Module) -> str:
    """BLAKE2b over name, shape, dtype and bits of every parameter and buffer; the same in any process.

    Tied tensors are read once but count under all their names.
    """
    named = {
        **dict(root.named_parameters(remove_duplicate=False)),
        **dict(root.named_buffers(remove_duplicate=False)),
    }
    distinct = {_place(tensor): tensor for tensor in named.values()}
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing large buffers releases the GIL
        hashes = dict(zip(distinct, pool.map(_hash, distinct.values()), strict=True))
    result = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(named.items()):
        head = f"{name}\x00{tuple(tensor.shape)}\x00{tensor.dtype}\x00"
        result.update(head.encode() + hashes[_place(tensor)])
    return result.hexdigest()


def _hash(tensor: Tensor) -> bytes:
    return hashlib.blake2b(_bytes(tensor), digest_size=32).digest()


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's bits in row-major order; works for dtypes that NumPy lacks, such as bfloat16."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor, even where two Parameter objects share the memory."""
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _same(one: Term, other: Term) -> bool:
    """Whether two terms hold the same tensors."""
    return one.parts.keys() == other.parts.keys() and all(
        torch.equal(tensor, other.parts[part]) for part, tensor in one.parts.items()
    )


def _sum(name: str, one: Term, other: Term) -> Term:
    if one.shape != other.shape:
        raise UserError(f"delta: {name}: terms of {one.shape} and {other.shape} cannot be added")
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return LowRank(torch.cat([one.up, other.up], 1), torch.cat([one.down, other.down], 0))
    return Dense(one.dense() + other.dense())


def _terms(tensors: Mapping[str, Tensor]) -> dict[str, Term]:
    """Terms from stored tensors by their keys."""
    terms: dict[str, Term] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        if part == "dense":
            terms[name] = Dense(tensor)
        elif part == "up" and f"{name}:down" in tensors:
            terms[name] = LowRank(tensor, tensors[f"{name}:down"])
    return terms


def _writing(parameter: nn.Parameter) -> AbstractContextManager[object]:
    """A mode in which the parameter may be written: weights made in inference mode need just that."""
    return torch.inference_mode() if parameter.is_inference() else nullcontext()


def _copy(parameter: nn.Parameter) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return parameter.detach().clone(memory_format=torch.preserve_format)


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad(), _writing(parameter):
        parameter.copy_(value)


def _add(name: str, parameter: nn.Parameter, term: Term) -> None:
    """W <- W + dW, summed in float32 (float64 where W is).

    Raises:
        UserError: the sum does not fit the parameter's dtype.
    """
    with torch.no_grad():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        result = (parameter.to(wide) + term.dense(parameter.device)).to(parameter.dtype)
        if bool(parameter.isfinite().all()) and not bool(result.isfinite().all()):
            raise UserError(f"delta: {name} overflows {parameter.dtype}; load the model in a wider dtype")
    _write(parameter, result)
