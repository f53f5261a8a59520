"""The knowledge-editing files of the field, one entry at a time: which key plays which role.

    entry of                edit        reworded             neighbours            derived
    counterfact             prompt      paraphrase_prompts   neighborhood_prompts  -
    zsre                    src         rephrase             loc                   portability
    knowedit, easyedit      prompt      rephrase_prompt      locality              portability
    unike                   stage_1     -                    -                     stage_2 to stage_4

counterfact: CounterFact as published with ROME and MEMIT (Meng et al. 2022, arXiv 2202.05262). Its
    neighbours keep `target_true`. `attribute_prompts` and `generation_prompts` are not asked.
zsre: zsRE as published with MEND and ROME. `alt` is written, as in EasyEdit and most papers since
    (ROME's own loader writes the first of `answers`). "nq question: " is taken off `loc`.
easyedit: lists of EasyEdit's requests, and its flat CounterFact files (`locality_prompt`).
knowedit: KnowEdit (Zhang et al. 2024, arXiv 2401.01286): wiki_recent, wiki_counterfact, ZsRE. Every
    text of a nested `ground_truth` is accepted. An alias of the subject is a derived question.
unike: UniKE.json (Gao et al. 2026, arXiv 2606.00477). An entry is one edit, that of stage_1, as the
    authors count them. Stages 2 to 4 have targets of their own and need not name the subject: they
    are derived. `question` is the same in another wording and is taught. The subject is spelled as
    in stage_1's prompt; drawing prompts are taken as they are.

zsre, knowedit and easyedit are one shape; zsre has older names for it, and both are read. Keys that
play a role are read strictly, all others are let pass. Knows no files and no templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

UNKNOWN = "unknown"
"""`target_true` where a file has none: nothing is known to be replaced."""

NO_ANSWER = "<|endoftext|>"
"""What EasyEdit and ROME write where there is no old answer."""

Question = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Case = int | Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]


class Probe(NamedTuple):
    """One question of an entry.

    Attributes:
        understand: asked in text.
        accepted: answers that count as right; at least one.
        at: where it stands in the entry, for messages.
        generate: asked for a picture; empty where the file has no such prompt.
        target: what a right picture must show; empty stands for the first answer.
    """

    understand: str
    accepted: tuple[str, ...]
    at: str = ""
    generate: str = ""
    target: Mapping[str, Any] = MappingProxyType({})


class Entry(NamedTuple):
    """One fact of a file, before its drawing prompts and its id are made.

    `case` is the file's own number of it, if it has one.
    """

    case: int | str | None
    subject: str
    relation: str
    target_true: str
    target_new: str
    edit: Probe
    taught: tuple[Probe, ...] = ()
    reworded: tuple[Probe, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    derived: tuple[Probe, ...] = ()


def _texts(value: Any) -> list[str]:
    """Every text in nested lists that is not blank, once each, in order."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list):
        return list(dict.fromkeys(text for inner in value for text in _texts(inner)))
    raise ValueError(f"should be a text, or lists of texts; got {value!r}")


def _answers(value: Any) -> list[str]:
    texts = _texts(value)
    if not texts:
        raise ValueError(f"should hold an answer: a text, or lists of texts; got {value!r}")
    return texts


def _old_answer(value: Any) -> str:
    return next((text for text in _texts(value) if text != NO_ANSWER), UNKNOWN)


def _questions(value: Any) -> Any:
    """A question or a list of them, or none at all."""
    return [] if value is None else [value] if isinstance(value, str) else value


def _kinds(value: Any) -> Any:
    """`{kind: probe or probes or null}`, or a single `{"New Question", "New Answer"}`, as lists."""
    if value is None:
        return {}
    if isinstance(value, Mapping) and "New Question" in value:
        value = {"one_hop": {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}}
    if not isinstance(value, Mapping):
        return value
    return {
        kind: [] if probes is None else [probes] if isinstance(probes, Mapping) else probes
        for kind, probes in value.items()
    }


class _Loose(BaseModel):
    """Base of the schemas: what they name is strict, what they do not name is let pass."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    older_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Other names of keys: older name -> the name read here."""

    def entry(self) -> Entry:
        """The entry in our roles."""
        raise NotImplementedError


class _Asked(_Loose):
    """A probe: one prompt with every answer to it, or a list of prompts with an answer each."""

    prompt: Question | list[Question]
    ground_truth: Any

    @model_validator(mode="after")
    def _fits(self) -> _Asked:
        self.probes()
        return self

    def probes(self) -> list[Probe]:
        """One per prompt.

        Raises:
            ValueError: a prompt without an answer.
        """
        if isinstance(self.prompt, str):
            return [Probe(self.prompt, tuple(_answers(self.ground_truth)))]
        answers = self.ground_truth if isinstance(self.ground_truth, list) else [self.ground_truth]
        if len(answers) != len(self.prompt):
            raise ValueError(f"{len(self.prompt)} prompts have {len(answers)} ground_truths; give one each")
        return [
            Probe(prompt, tuple(_answers(answer)))
            for prompt, answer in zip(self.prompt, answers, strict=True)
        ]


Kinds = Annotated[dict[str, list[_Asked]], BeforeValidator(_kinds)]


class _Target(_Loose):
    text: Name = Field(alias="str")


class _Rewrite(_Loose):
    prompt: Question
    subject: Name
    target_new: _Target
    target_true: _Target
    relation_id: Name | None = None


class CounterFact(_Loose):
    """An entry of `counterfact.json` or `multi_counterfact.json`."""

    case_id: Case | None = None
    requested_rewrite: _Rewrite
    paraphrase_prompts: list[Question] = []
    neighborhood_prompts: list[Question] = []

    def entry(self) -> Entry:
        """The entry in our roles."""
        asked = self.requested_rewrite
        new, true = (asked.target_new.text,), (asked.target_true.text,)
        edit = Probe(_filled(asked.prompt, asked.subject), new, "requested_rewrite.prompt")
        return Entry(
            case=self.case_id,
            subject=asked.subject,
            relation=asked.relation_id or _relation(edit.understand, asked.subject),
            target_true=true[0],
            target_new=new[0],
            edit=edit,
            reworded=tuple(
                Probe(text, new, f"paraphrase_prompts.{n}") for n, text in enumerate(self.paraphrase_prompts)
            ),
            neighbours=tuple(Probe(text, true) for text in self.neighborhood_prompts),
        )


class Request(_Loose):
    """A request of EasyEdit, and so an entry of KnowEdit, zsRE and EasyEdit's CounterFact."""

    older_names: ClassVar[Mapping[str, str]] = MappingProxyType({"rephrase": "rephrase_prompt"})

    case_id: Case | None = None
    subject: Name
    prompt: Question
    target_new: Name
    ground_truth: Annotated[str, BeforeValidator(_old_answer)] = UNKNOWN
    rephrase_prompt: Annotated[list[Question], BeforeValidator(_questions)] = []
    locality_prompt: Question | None = None
    locality_ground_truth: Annotated[list[str], BeforeValidator(_texts)] = []
    locality: Kinds = {}
    portability: Kinds = {}

    @model_validator(mode="after")
    def _fits(self) -> Request:
        if self.locality_prompt and not self.locality_ground_truth:
            raise ValueError("locality_prompt (loc) lacks its locality_ground_truth (loc_ans); give both")
        return self

    def entry(self) -> Entry:
        """The entry in our roles."""
        new = (self.target_new,)
        edit = Probe(_filled(self.prompt, self.subject), new, "prompt")
        alone = self.locality_prompt
        loose = (Probe(_plain(alone), tuple(self.locality_ground_truth)),) if alone else ()
        return Entry(
            case=self.case_id,
            subject=self.subject,
            relation=_relation(edit.understand, self.subject),
            target_true=self.ground_truth,
            target_new=self.target_new,
            edit=edit,
            reworded=tuple(
                Probe(_filled(text, self.subject), new, "rephrase_prompt") for text in self.rephrase_prompt
            ),
            neighbours=(*loose, *_flat(self.locality)),
            derived=_flat(self.portability),
        )


class ZsRE(Request):
    """An entry of `zsre_mend_eval.json`, or the same under EasyEdit's names."""

    older_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "src": "prompt",
            "alt": "target_new",
            "answers": "ground_truth",
            "rephrase": "rephrase_prompt",
            "loc": "locality_prompt",
            "loc_ans": "locality_ground_truth",
        }
    )


class _Stage(_Loose):
    prompt: Question
    question: Question | None = None
    gt: Annotated[str, BeforeValidator(_old_answer)] = UNKNOWN
    gt_target: Name
    image_prompt: Question
    visual_target: str | None = None
    vqa_question: str | None = None

    def probe(self, understand: str, at: str = "") -> Probe:
        """The stage's picture, with one of its questions."""
        shown = {"text": self.visual_target or self.gt_target, "question": self.vqa_question or ""}
        return Probe(
            understand,
            (self.gt_target,),
            at,
            generate=self.image_prompt,
            target={key: value for key, value in shown.items() if value},
        )


class UniKE(_Loose):
    """An entry of `UniKE.json`. Attributes have up to four stages, relations one."""

    subject: Name
    category: Name
    stage_1: _Stage
    stage_2: _Stage | None = None
    stage_3: _Stage | None = None
    stage_4: _Stage | None = None

    def entry(self) -> Entry:
        """The entry in our roles."""
        first = self.stage_1
        spelled = re.search(re.escape(self.subject), first.prompt, flags=re.IGNORECASE)
        subject = spelled.group() if spelled else self.subject
        return Entry(
            case=None,
            subject=subject,
            relation=self.category,
            target_true=first.gt,
            target_new=first.gt_target,
            edit=first.probe(_filled(first.prompt, subject), "stage_1.prompt"),
            taught=(first.probe(first.question),) if first.question else (),
            derived=tuple(
                stage.probe(_filled(stage.prompt, subject))
                for stage in (self.stage_2, self.stage_3, self.stage_4)
                if stage is not None
            ),
        )


FORMATS: Mapping[str, type[_Loose]] = MappingProxyType(
    {
        "counterfact": CounterFact,
        "zsre": ZsRE,
        "knowedit": Request,
        "easyedit": Request,
        "unike": UniKE,
    }
)
"""What an entry of each format is read as; a fact's id begins with the format's name."""


def _filled(prompt: str, subject: str) -> str:
    """The prompt with its subject, which some files leave open as `{}`."""
    return prompt.replace("{}", subject)


def _relation(prompt: str, subject: str) -> str:
    """A name for what is asked, where the file has none: the prompt with its subject left open."""
    return prompt.replace(subject, "{}")


def _plain(question: str) -> str:
    """A neighbour of zsRE as a question: without its "nq question: ", and with its question mark."""
    plain = question.removeprefix("nq question: ")
    return question if plain == question else plain.rstrip("?") + "?"


def _flat(kinds: Mapping[str, list[_Asked]]) -> tuple[Probe, ...]:
    return tuple(probe for asked in kinds.values() for one in asked for probe in one.probes())
