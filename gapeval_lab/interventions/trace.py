"""Hooks that read or change what flows through a module, and leave no trace behind.

Knows modules by their path from a root and the positions of a batch. Knows nothing of facts,
prompts, or which module means what.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Encoded

Side = Literal["input", "output"]


class _Stop(Exception):
    """Ends a forward pass once everything wanted has been seen."""


class Captured:
    """What a hooked module last took in or gave out.

    Attributes:
        value: as the module passed it, a tensor or a tuple that begins with one; None until it ran.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.value: Any = None

    @property
    def tensor(self) -> Tensor:
        """The hidden states of `value`, detached.

        Raises:
            UserError: the module never ran, so the site's template names the wrong module.
        """
        if self.value is None:
            raise UserError(
                f"sites: module '{self.path}' takes no part in the forward pass; mend its template"
            )
        return first_tensor(self.value).detach()


def first_tensor(value: Any) -> Tensor:
    """The hidden states of a module's output: blocks give a tensor or a tuple that begins with it."""
    tensor = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a hooked module gave {type(tensor).__name__}, not a tensor or a tuple of tensors")
    return tensor


def with_first(value: Any, tensor: Tensor) -> Any:
    """`value` with its hidden states replaced; the rest of a tuple is kept."""
    if isinstance(value, (tuple, list)):
        return (tensor, *value[1:])
    return tensor


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        UserError: there is none.
    """
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise UserError(f"sites: this model has no module '{path}'; mend the site's template") from None


def linear_weight(root: nn.Module, path: str, *, field: str = "site") -> nn.Parameter:
    """The weight of a linear layer, (out, in), or transposed where the model stores it so.

    Raises:
        UserError: the module at the path is missing or not linear; `field` is the setting to blame.
    """
    weight = getattr(module_at(root, path), "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise UserError(f"{field}: '{path}' is not a linear layer; choose one such as mlp_down or attn_out")
    return weight


@contextmanager
def reading(root: nn.Module, path: str, *, side: Side, stop: bool = False) -> Iterator[Captured]:
    """Keep what the module at `path` takes in or gives out.

    Args:
        root: the module that paths start from.
        path: the module to listen to.
        side: its input (the first positional tensor, or the first one given by name) or output.
        stop: leave the `with` block right after the module was seen; nothing above it runs.
    """
    got = Captured(path)
    end = _Stop()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        got.value = next(tensors)
        if stop:
            raise end

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        got.value = output
        if stop:
            raise end

    module = module_at(root, path)
    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield got
    except _Stop as raised:
        if raised is not end:  # another reader's, further out
            raise
    finally:
        handle.remove()


@contextmanager
def changing(
    root: nn.Module, path: str, change: Callable[[Tensor], Tensor], *, side: Side = "output"
) -> Iterator[None]:
    """Pass what the module at `path` takes in or gives out through `change` (differentiable).

    An input must be given by position, as blocks and linear layers give it.
    """

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return with_first(output, change(first_tensor(output)))

    module = module_at(root, path)
    if side == "input":
        handle = module.register_forward_pre_hook(before)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaying(root: nn.Module, paths: Sequence[str], output: Any) -> Iterator[None]:
    """Let the modules at `paths` (the lowest blocks, in order) give `output` without computing.

    `output` is what the last of them gave in a recorded pass over the same rows.
    """
    modules = [module_at(root, path) for path in paths]
    # An instance may carry its own forward already (offloading libraries do that).
    own = [module.__dict__.get("forward") for module in modules]

    def give(*args: Any, **kwargs: Any) -> Any:
        return output

    try:
        for module in modules:
            module.__dict__["forward"] = give
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def inputs_at(backbone: Backbone, path: str, encoded: Encoded, positions: Sequence[int]) -> Tensor:
    """The module's input at one position per row: (batch, width), in the model's dtype.

    Nothing above the module is computed.
    """
    with torch.no_grad(), reading(backbone.root, path, side="input", stop=True) as got:
        backbone.logits(encoded)
    return got.tensor[torch.arange(len(positions)), torch.tensor(positions)]


@contextmanager
def left_as_found(root: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; everything as it was outside.

    Restores train mode and requires_grad of every part, and the global random state of Python,
    numpy and torch. Weights are not its business: whoever changes them puts them back.
    """
    modes = [(module, module.training) for module in root.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if on_gpu else []
    try:
        root.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)
