"""EasyEdit as an engine: its own code computes the change of weights, on this laboratory's terms.

EasyEdit (Wang et al. 2023, arXiv 2308.07269, github.com/zjunlp/EasyEdit) is run from its own files, with
the few replacements that easyedit_source.py lists. Everything around its mathematics is ours:

    contexts     those of the native methods (request.py), instead of ones it would generate
    moments      C of the benchmark's questions (moments.py), instead of ones it would download texts for
    tokens       the adapter's own, in the model's own template (easyedit_view.py)
    orientation  stated by the model's table; it guesses from a matrix's shape, in vain if that is square
    printing     in a text file of the run; losses are read out of it

Where its methods differ from the papers, the native ones can be told to differ likewise (compat.py).
Teaches through text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gapeval_lab.delta import WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Backbone, Log, Training
from gapeval_lab.interventions.easyedit_methods import METHODS, Name, edited, hyperparameters
from gapeval_lab.interventions.easyedit_run import (
    changes,
    hand_over,
    journal_in,
    process_as_found,
    weights_as_found,
)
from gapeval_lab.interventions.easyedit_source import Engine, find_source, opened
from gapeval_lab.interventions.easyedit_view import (
    Asking,
    EngineModel,
    EngineTokenizer,
    split_at_subject,
    vocabulary_of,
)
from gapeval_lab.interventions.moments import second_moments
from gapeval_lab.interventions.request import value_request
from gapeval_lab.interventions.trace import left_as_found, linear_weight
from gapeval_lab.items import Fact

_KL_PROMPT = "{} is a"  # written into EasyEdit's code

_OWN = (
    *("v_lr", "v_num_grad_steps", "v_weight_decay", "clamp_norm_factor", "kl_factor"),
    *("mom2_adjustment", "mom2_update_weight", "mom2_dtype"),
    *("lr", "num_steps", "weight_decay", "norm_constraint"),
)
"""Settings that are hyperparameters of EasyEdit under the same names."""


class EasyEdit(BaseModel):
    """EasyEdit's settings. What is None is taken from `hparams`, else from the method's defaults.

    Attributes:
        method: its name in EasyEdit. The package has ROME, MEMIT and FT; a checkout has all.
        layer, layers: the layer or layers to edit, one of the two.
        site: name of the linear site to edit; None: what `hparams` names, else mlp_down.
        hparams: EasyEdit's own hyperparameters: a file in its format, or a mapping. A file's content
            becomes part of the recipe.
        root: folder of a checkout; None: the one that GAPEVAL_EASYEDIT names, else the package.
        v_lr, v_num_grad_steps, v_weight_decay, clamp_norm_factor, kl_factor: of the search for values;
            EasyEdit makes one update less than it has steps.
        mom2_adjustment, mom2_update_weight, mom2_dtype: whether ROME uses C, the weight of C in the
            methods of MEMIT's family, and the precision in which C is inverted.
        lr, num_steps, weight_decay, norm_constraint: of FT.
        contexts: how many times each question is also asked behind another text.
        context_words: length of such a text, in words.
        moment_texts: questions behind C, at most.
        ridge: added to C's diagonal, as a share of its mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Literal["edit"]] = "edit"
    direction: ClassVar[Literal["text"]] = "text"

    method: Name
    layer: int | None = Field(default=None, ge=0)
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    site: str | None = None
    hparams: dict[str, Any] = Field(default_factory=dict)
    root: str | None = None
    v_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    v_num_grad_steps: int | None = Field(default=None, ge=1)
    v_weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    clamp_norm_factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    kl_factor: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    mom2_adjustment: bool | None = None
    mom2_update_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    mom2_dtype: Literal["float32", "float64"] | None = None
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    num_steps: int | None = Field(default=None, ge=1)
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    norm_constraint: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    contexts: int = Field(default=5, ge=0)
    context_words: int = Field(default=10, ge=1)
    moment_texts: int = Field(default=1000, ge=1)
    ridge: float = Field(default=1e-2, ge=0, allow_inf_nan=False)

    @field_validator("hparams", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """A file's content instead of its path; numbers that YAML takes for texts (5e-1) as numbers."""
        if isinstance(given, str):
            try:
                content = yaml.safe_load(Path(given).expanduser().read_text(encoding="utf-8"))
            except (OSError, UnicodeError, yaml.YAMLError) as error:
                reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
                raise ValueError(
                    f"cannot read '{given}' ({reason}); give one of EasyEdit's files, or a mapping"
                ) from None
            if not isinstance(content, dict):
                raise ValueError(
                    f"'{given}' holds no mapping of names to values; give one of EasyEdit's files"
                )
            given = content
        return {key: _number(value) for key, value in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.layer is not None and self.layers is not None:
            raise ValueError("layer and layers are both given; leave one out")
        return self

    @property
    def needs_texts(self) -> bool:
        """MEMIT and its kin read second moments in any case; ROME only where a hyperparameter says so."""
        return METHODS[self.method].spread

    def check(self, umm: UMM) -> None:
        """Refuse a model or an EasyEdit that the settings do not fit; reads EasyEdit's modules once.

        Raises:
            UserError: EasyEdit is not there, has no such method or hyperparameter, or the model has no
                such layer or module.
        """
        backbone = umm.backbone()
        with (
            journal_in(None, _unheard) as journal,
            left_as_found(backbone.root),
            process_as_found(journal, seed=0),
            opened(find_source(self.root), journal.say) as engine,
        ):
            self._hyperparameters(engine, backbone)

    def fit(
        self,
        umm: UMM,
        facts: Sequence[Fact],
        *,
        seed: int,
        texts: Sequence[str],
        log: Log,
        cache: Path | None = None,
        training: Training | None = None,
    ) -> WeightDelta:
        """Write the facts with EasyEdit's code; see `Intervention.fit`.

        Logs `loss/<fact id>` where the method seeks a value per fact, and all losses in a row as
        `train/loss`, with the three digits that EasyEdit prints.

        Args:
            umm: the model; unchanged on return.
            facts: what to write. Only `edit.understand`, `subject` and `target_new` are read.
            seed: of the contexts, of the choice of texts, and of whatever EasyEdit draws.
            texts: questions of the domain.
            log: takes the curves.
            cache: where second moments are kept; `moments.default_cache()` if None.
            training: its folder gets what EasyEdit prints.

        Raises:
            UserError: as `check`, a fact does not fit this model, or EasyEdit failed.
        """
        if not facts:
            raise UserError("facts: none were given; EasyEdit needs at least one")
        backbone, method = umm.backbone(), METHODS[self.method]
        with (
            journal_in(training.folder if training else None, log) as journal,
            left_as_found(backbone.root),
            process_as_found(journal, seed=seed),
            opened(find_source(self.root), journal.say) as engine,
            torch.enable_grad(),
        ):
            hparams = self._hyperparameters(engine, backbone)
            engine.module(method.main)
            journal.say(f"{engine.source.name}, modules {engine.digest()[:16]}\n{hparams}\n")
            moments = {}
            # MEMIT and its kin read C whatever mom2_adjustment says.
            if method.statistics is not None and (method.spread or hparams.mom2_adjustment):
                moments = second_moments(
                    backbone, list(edited(hparams)), texts, limit=self.moment_texts, seed=seed, cache=cache
                )
            first = (facts[0].edit.understand.text, _KL_PROMPT.format(facts[0].subject))
            model = EngineModel(backbone, vocabulary=vocabulary_of(backbone, first))
            hand_over(engine, method, hparams, model, moments=moments, ridge=self.ridge, sites=backbone.sites)
            done = WeightDelta.zero()
            for group in [[fact] for fact in facts] if method.one_by_one else [list(facts)]:
                templates = ("{}",) if method.whole else self._templates(group, texts, seed)
                tokenizer = EngineTokenizer(
                    backbone,
                    [_asking(fact, templates, located=not method.whole) for fact in group],
                    whole=method.whole,
                )
                journal.begin([] if method.whole else [fact.id for fact in group])
                # Fitted on exactly what the composed delta will make of the weights, rounding included.
                with done.applied(backbone.root), weights_as_found(backbone.root, edited(hparams)):
                    change = changes(
                        engine,
                        method,
                        hparams,
                        model,
                        tokenizer=tokenizer,
                        requests=[_request(fact, whole=method.whole) for fact in group],
                        templates=templates,
                        journal=journal,
                        sites=backbone.sites,
                    )
                done = done.then(change)
        return done

    def _hyperparameters(self, engine: Engine, backbone: Backbone) -> Any:
        """EasyEdit's dataclass, filled in."""
        found = hyperparameters(
            self.method,
            engine,
            backbone,
            layers=(self.layer,) if self.layer is not None else self.layers,
            site=self.site,
            own={name: value for name in _OWN if (value := getattr(self, name)) is not None},
            given=self.hparams,
            moment_texts=self.moment_texts,
        )
        for path in edited(found):
            if (dtype := linear_weight(backbone.root, path).dtype) != torch.float32:
                raise UserError(
                    f"model.dtype: EasyEdit's changes are off by some percent in {dtype}, if it runs at all; "
                    "load the model with dtype: float32"
                )
        return found

    def _templates(self, facts: Sequence[Fact], texts: Sequence[str], seed: int) -> tuple[str, ...]:
        """Contexts with a place for the question, as the native methods draw them for the first fact.

        Several facts of one call share them, so a text that names any of their subjects is never one.
        """
        allowed = [
            text
            for text in texts
            if not any(fact.subject in text for fact in facts) and "{" not in text and "}" not in text
        ]
        drawn = value_request(
            facts[0],
            allowed,
            seed=seed,
            contexts=self.contexts,
            context_words=self.context_words,
            essence=(),
        ).contexts
        return tuple(context.removesuffix(drawn[0]) + "{}" for context in drawn)


def _asking(fact: Fact, templates: Sequence[str], *, located: bool) -> Asking:
    question, subject = fact.edit.understand.text, fact.subject.strip()
    return Asking(
        fact_id=fact.id,
        subject=subject,
        target=fact.target_new,
        questions=tuple(template.format(question) for template in templates),
        bare=(_KL_PROMPT.format(subject),) if located else (),
    )


def _request(fact: Fact, *, whole: bool) -> dict[str, str]:
    """A fact as EasyEdit takes it."""
    question, subject = fact.edit.understand.text, fact.subject.strip()
    before, behind = split_at_subject(question, subject, fact_id=fact.id)
    return {
        "case_id": fact.id,
        "prompt": question if whole else f"{before}{{}}{behind}",
        "subject": subject,
        "target_new": fact.target_new,
    }


def _number(value: Any) -> Any:
    """A text that is a number, as the number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _unheard(name: str, value: float, step: int) -> None:
    """A log that nobody reads."""
