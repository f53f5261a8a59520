"""One run of EasyEdit's code: what is handed to it, what is taken from it, and what must be as before.

    W         weight of an edited layer, (out, in), or transposed where the model stores it so
    C         second moment of its inputs, (in, in)
    k, r      what a method of factors gives, (in, n) and (out, n): dW = r k^T

Knows EasyEdit's modules and one call of them; knows no settings of ours.
"""

from __future__ import annotations

import logging
import math
import random
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from gapeval_lab.delta import Dense, LowRank, Term, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import ENGINE_LOG, Log, Sites
from gapeval_lab.interventions.easyedit_methods import Method, edited
from gapeval_lab.interventions.easyedit_source import Engine
from gapeval_lab.interventions.easyedit_view import NAMES, EngineModel, EngineTokenizer
from gapeval_lab.interventions.moments import SecondMoment

_LOSS = re.compile(r"(?:Batch )?loss (\S+)")
_NEXT = "Computing right vector"  # what every method that seeks values says before each of them


class Journal:
    """Takes what EasyEdit prints, a whole `print` at a time: into a file, and its losses into the log."""

    def __init__(self, file: TextIO | None, log: Log) -> None:
        self._file, self._log = file, log
        self._waiting: list[str] = []
        self._fact: str | None = None
        self._updates: dict[str, int] = {}
        self._step = 0

    def begin(self, facts: Sequence[str]) -> None:
        """The facts whose values are sought next, in order; none where a method does not go by fact."""
        self._waiting, self._fact = list(facts), None

    def say(self, text: str) -> None:
        """Write a text down, and log the losses in it.

        Raises:
            UserError: a loss that is not a number.
        """
        if self._file is not None:
            self._file.write(text)
        for line in text.splitlines():
            if line.startswith(_NEXT) and self._waiting:
                self._fact = self._waiting.pop(0)
            if match := _LOSS.match(line):
                self._loss(match[1])

    def _loss(self, word: str) -> None:
        try:
            value = float(word)
        except ValueError:
            return
        of = f"of fact '{self._fact}'" if self._fact else "of these facts"
        if not math.isfinite(value):
            raise UserError(f"hparams: the loss {of} became {value}; lower v_lr (or lr) or clamp_norm_factor")
        if self._fact:
            update = self._updates.get(self._fact, 0)
            self._updates[self._fact] = update + 1
            self._log(f"loss/{self._fact}", value, update)
        self._log("train/loss", value, self._step)
        self._step += 1


@contextmanager
def journal_in(folder: Path | None, log: Log) -> Iterator[Journal]:
    """A journal that writes `ENGINE_LOG` in a folder, anew; without a folder it only reads losses."""
    if folder is None:
        yield Journal(None, log)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ENGINE_LOG).open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UserError(f"store: cannot write {folder / ENGINE_LOG} ({error.strerror})") from None
    with file:
        yield Journal(file, log)


@contextmanager
def process_as_found(journal: Journal, *, seed: int) -> Iterator[None]:
    """Random numbers from the seed inside; logging, warnings and the default dtype as before afterwards.

    What is logged under EasyEdit's names, and every warning, goes to the journal. Random state itself
    is `left_as_found`'s to restore.
    """
    root, engine = logging.getLogger(), logging.getLogger("easyeditor")
    kept = (root.level, list(root.handlers), logging.root.manager.disable, engine.propagate)
    dtype = torch.get_default_dtype()
    handler = _Handler(journal)
    engine.addHandler(handler)
    engine.propagate = False
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(record=True) as said:
            yield
        for one in said:
            journal.say(warnings.formatwarning(one.message, one.category, one.filename, one.lineno))
    finally:
        engine.removeHandler(handler)
        torch.set_default_dtype(dtype)
        level, root.handlers[:], disabled, engine.propagate = kept
        root.setLevel(level)
        logging.disable(disabled)


class _Handler(logging.Handler):
    """Writes log records into a journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.say(f"{record.levelname} {record.getMessage()}\n")


@contextmanager
def weights_as_found(root: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """The bits of the modules' weights, and every parameter's gradient, as before afterwards."""
    weights = [root.get_parameter(f"{path}.weight") for path in paths]
    saved = [weight.detach().clone() for weight in weights]
    gradients = [(parameter, parameter.grad) for parameter in root.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, bits in zip(weights, saved, strict=True):
                weight.copy_(bits)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def hand_over(
    engine: Engine,
    method: Method,
    hparams: Any,
    model: EngineModel,
    *,
    moments: Mapping[str, SecondMoment],
    ridge: float,
    sites: Sites,
) -> None:
    """Put into EasyEdit's globals what it would measure, guess or remember otherwise.

    Args:
        engine, method, hparams, model: what will be called.
        moments: path of an edited module -> C.
        ridge: see `SecondMoment.ridged`; a method of the null space gets C as it is.
        sites: tells how weights are stored.

    Raises:
        UserError: C cannot be inverted or leaves no space free, or this version keeps these things elsewhere.
    """
    if method.statistics is not None:
        table, dtype = engine.attribute(*method.statistics), getattr(torch, str(hparams.mom2_dtype))
        for path, moment in moments.items():
            matrix = moment.matrix if method.null_space else moment.ridged(ridge)
            table[NAMES[sites.transposed], path] = _inverse(
                matrix.to(model.device, dtype), path, inverted=method.inverted
            ).float()
    main = engine.module(method.main)
    if method.null_space:
        project = engine.attribute(method.main, "get_project")
        kept_out = torch.stack([project(model, None, layer, hparams) for layer in hparams.layers])
        if not bool(kept_out.any()):
            raise UserError(
                f"hparams.nullspace_threshold: C has no singular value below {hparams.nullspace_threshold}, "
                "so nothing may change; raise it"
            )
        # Its globals: the projections, and the keys of earlier edits, of which there are none.
        main.P, main.P_loaded = kept_out, True
        main.cache_c, main.cache_c_new = torch.zeros_like(kept_out), True
    if method.made is not None:
        engine.attribute(method.main, "upd_matrix_match_shape")
        keep = (method.made == "in_out") == sites.transposed
        main.upd_matrix_match_shape = lambda matrix, shape: _fitting(matrix if keep else matrix.T, shape)


def changes(
    engine: Engine,
    method: Method,
    hparams: Any,
    model: EngineModel,
    *,
    tokenizer: EngineTokenizer,
    requests: Sequence[Mapping[str, str]],
    templates: Sequence[str],
    journal: Journal,
    sites: Sites,
) -> WeightDelta:
    """One call: the change of weights for these requests on the model as it is now.

    Args:
        engine, method, hparams, model, tokenizer, sites: as in `hand_over`.
        requests: EasyEdit's, one per fact.
        templates: contexts, each with one place for the question; the first is that place alone.
        journal: takes the traceback of a failure.

    Raises:
        UserError: EasyEdit failed, or changed other weights than it was told to.
    """
    if method.statistics is not None:
        engine.attribute(method.main, "CONTEXT_TEMPLATES_CACHE")
        several = [[*templates[:1]], *([[*templates[1:]]] if templates[1:] else [])]
        engine.module(method.main).CONTEXT_TEMPLATES_CACHE = several if method.spread else [*templates]
    execute = engine.attribute(method.main, method.execute)
    asked = dict(requests[0]) if method.one_by_one else [dict(request) for request in requests]
    try:
        found = execute(model, tokenizer, asked, hparams)
        terms = {name: _term(method, change, sites) for name, change in found.items()}
    except UserError:
        raise
    except Exception as error:
        journal.say(traceback.format_exc())
        raise UserError(
            f"intervention: EasyEdit failed ({type(error).__name__}: {error}); its traceback is in the run's "
            f"{ENGINE_LOG}"
        ) from error
    if set(terms) != {f"{path}.weight" for path in edited(hparams)}:
        raise UserError(f"intervention: EasyEdit changed {', '.join(terms)}, not what it was told to change")
    delta = WeightDelta(terms)
    if not delta.is_finite:
        raise UserError("hparams: EasyEdit's change is not finite; lower v_lr (or lr), or raise ridge")
    return delta


def _inverse(matrix: Tensor, path: str, *, inverted: bool) -> Tensor:
    if not inverted:
        return matrix
    try:
        return torch.inverse(matrix)
    except RuntimeError:  # torch.linalg.LinAlgError
        raise UserError(f"ridge: the second moment at {path} is singular; raise ridge") from None


def _fitting(matrix: Tensor, shape: torch.Size) -> Tensor:
    if matrix.shape != shape:
        raise ValueError(f"a change of {tuple(matrix.shape)} for a weight of {tuple(shape)}")
    return matrix


def _term(method: Method, change: Any, sites: Sites) -> Term:
    """What the method gave for one weight: factors as they are, unless there are too many to be few."""
    if method.gives == "matrix":
        return Dense(change)
    key, value = (part.detach().cpu().double().reshape(len(part), -1) for part in change)
    up, down = (key, value.T) if sites.transposed else (value, key.T)
    rows, ranks, columns = len(up), up.shape[1], down.shape[1]
    return LowRank(up, down) if ranks * (rows + columns) < rows * columns else Dense(up @ down)
