"""What EasyEdit gets to see of a model: the adapter's own tokens, live modules, padding on the right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import MEMIT, NEEDS_EASYEDIT, ROME, embedded, fit, world
from tiny_lm import TEXTS, fact, tiny_umm

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Encoded, Sites
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.interventions.easyedit_view import (
    Asking,
    EngineModel,
    EngineTokenizer,
    split_at_subject,
    vocabulary_of,
)
from gapeval_lab.interventions.lookup import token_positions
from gapeval_lab.interventions.request import value_request
from gapeval_lab.items import Fact, Prompt


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "easyedit-cache"))
    monkeypatch.delenv("GAPEVAL_EASYEDIT", raising=False)


@pytest.fixture(scope="module", name="janus")
def _janus() -> Any:
    return embedded()


@pytest.fixture(scope="module", name="tinyworld")
def _tinyworld() -> tuple[list[Fact], list[str]]:
    return world()


# --- what EasyEdit really asks -----------------------------------------------------------------


class Listening:
    """A UMM that notes every row it is asked, without padding, and how many were padded on the right."""

    def __init__(self, umm: Any) -> None:
        self.umm, self.right = umm, 0
        self.rows: set[tuple[int, ...]] = set()

    def backbone(self) -> Backbone:
        inner = self.umm.backbone()

        def logits(encoded: Encoded) -> torch.Tensor:
            for ids, mask in zip(encoded.input_ids.tolist(), encoded.attention_mask.tolist(), strict=True):
                self.rows.add(tuple(token for token, real in zip(ids, mask, strict=True) if real))
                self.right += mask[-1] == 0
            return inner.logits(encoded)

        return dataclasses.replace(inner, logits=logits)


def rows_of(backbone: Backbone, questions: Sequence[str], target: str | None) -> list[tuple[int, ...]]:
    encoded = backbone.encode(questions, None if target is None else [target] * len(questions))
    return [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)
    ]


def aimed(one: Fact, target: str) -> Fact:
    return dataclasses.replace(one, target_new=target)


def check_tokens(method: EasyEdit, umm: Any, one: Fact, texts: list[str]) -> None:
    """Every row is the adapter's own: a text, a context, or a context and a target but its last token."""
    heard = Listening(umm)
    fit(method, heard, [one], texts=texts)  # type: ignore[arg-type]
    backbone = umm.backbone()
    request = value_request(
        one, texts, seed=0, contexts=method.contexts, context_words=method.context_words, essence=()
    )
    asked = rows_of(backbone, [*request.contexts, f"{one.subject} is a"], None)
    whole = rows_of(backbone, request.contexts, one.target_new)
    answered = [row[:-1] for row in whole]
    assert len(whole[0]) > len(asked[0]) + 1, "the test needs a target of several tokens"
    assert {*asked, *answered} <= heard.rows
    assert heard.rows <= {*asked, *answered, *rows_of(backbone, texts, None)}
    assert heard.right > 0, "the test needs rows of several lengths"


BOTH = pytest.mark.parametrize("method", [ROME, MEMIT], ids=lambda method: method.method)


@NEEDS_EASYEDIT
@BOTH
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_token_by_token(kind: str, method: EasyEdit) -> None:
    check_tokens(method, tiny_umm(kind, steps=1), aimed(fact(0), "red ball"), list(TEXTS))


@NEEDS_EASYEDIT
@BOTH
def test_token_by_token_in_the_template_of_a_umm(method: EasyEdit, janus: Any, tinyworld: Any) -> None:
    facts, texts = tinyworld
    check_tokens(method, janus, aimed(facts[0], facts[1].subject), texts[:200])


@NEEDS_EASYEDIT
@BOTH
def test_a_question_that_ends_with_its_subject(method: EasyEdit) -> None:
    """The same string is a whole question and, for counting, one cut at its subject."""
    one = fact(0)
    asked = dataclasses.replace(one.edit, understand=Prompt(f"the colour of {one.subject}"))
    one = aimed(dataclasses.replace(one, edit=asked), "red ball")
    check_tokens(method, tiny_umm(steps=1), one, list(TEXTS))


@NEEDS_EASYEDIT
def test_spaces_around_a_target_change_nothing() -> None:
    umm = tiny_umm(steps=80)
    plain = fit(ROME, umm, [fact(0)])
    assert fit(ROME, umm, [aimed(fact(0), f" {fact(0).target_new} ")]).digest == plain.digest


# --- the tokenizer by itself -------------------------------------------------------------------


class Pairs:
    """A backbone whose tokens are pairs of letters, wherever words end: borders always merge."""

    def __init__(self) -> None:
        self.known = {"<pad>": 0, "<bos>": 1}

    def _ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        spans = [(start, min(start + 2, len(text))) for start in range(0, len(text), 2)]
        ids = [self.known.setdefault(text[a:b], len(self.known)) for a, b in spans]
        return [1, *ids], [(0, 0), *spans]

    def encode(self, questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
        texts = [f"Q: {question}:A " for question in questions]
        rows = [self._ids(text) for text in texts]
        starts = [len(ids) for ids, _ in rows]
        if targets is not None:
            more = [self._ids(target) for target in targets]
            rows = [
                (ids + new[1:], spans + [(len(text) + a, len(text) + b) for a, b in found[1:]])
                for (ids, spans), (new, found), text in zip(rows, more, texts, strict=True)
            ]
            texts = [text + target for text, target in zip(texts, targets, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        pads = [width - len(ids) for ids, _ in rows]
        input_ids = torch.tensor([[0] * pad + ids for pad, (ids, _) in zip(pads, rows, strict=True)])
        labels = torch.full_like(input_ids, -100)
        for row, (pad, start) in enumerate(zip(pads, starts, strict=True)):
            labels[row, pad + start :] = input_ids[row, pad + start :]
        mask = torch.tensor([[0] * pad + [1] * len(ids) for pad, (ids, _) in zip(pads, rows, strict=True)])
        offsets = [[(0, 0)] * pad + spans for pad, (_, spans) in zip(pads, rows, strict=True)]
        return Encoded(input_ids, mask, labels, texts, offsets)

    @property
    def backbone(self) -> Backbone:
        return Backbone(
            root=torch.nn.Linear(1, 1),
            sites=Sites({}, layers=1),
            hidden_size=1,
            encode=self.encode,
            logits=lambda encoded: torch.zeros(*encoded.input_ids.shape, 4),
            tokenizer=SimpleNamespace(
                pad_token_id=0, eos_token_id=None, decode=lambda row, skip_special_tokens: str(row)
            ),
        )


ASKING = Asking(
    fact_id="f",
    subject="zor",
    target="deep red",
    questions=("is zor?", "so: is zor?"),
    bare=("zor is a",),
)


def test_heads_end_where_the_native_methods_find_the_subject() -> None:
    pairs = Pairs()
    tokenizer = EngineTokenizer(pairs.backbone, [ASKING])
    for question in (*ASKING.questions, *ASKING.bare):
        before, behind = split_at_subject(question, "zor", fact_id="f")
        encoded = pairs.encode([question], None)
        (expected,) = token_positions(encoded, ["zor"], token="subject_last", facts=["f"])
        # What EasyEdit computes: tokens before, tokens of the subject, one back.
        counted = len(tokenizer.encode(before)), len(tokenizer.encode(before + "zor"))
        assert counted[0] + (counted[1] - counted[0]) - 1 == expected
        left, right = encoded.offsets[0][expected]
        assert "r" in encoded.texts[0][left:right]
        assert tokenizer(question)["input_ids"] == encoded.input_ids[0].tolist()
        assert behind == question[len(before) + 3 :]


def test_questions_with_targets_and_their_beginnings() -> None:
    pairs = Pairs()
    tokenizer = EngineTokenizer(pairs.backbone, [ASKING])
    (target,) = tokenizer([" deep red"], return_tensors="pt")["input_ids"]
    assert torch.equal(tokenizer.encode("deep red", return_tensors="pt")[0], target) and len(target) == 4
    for question in ASKING.questions:
        whole = pairs.encode([question], ["deep red"]).input_ids[0].tolist()
        begun = tokenizer(question + tokenizer.decode(target[:-1]))["input_ids"]
        assert begun == whole[:-1]
        assert tokenizer(f"{question} deep red")["input_ids"] == whole
    assert tokenizer.decode([]) == "" and tokenizer.decode(5) == "[5]"


def test_rows_are_padded_on_the_right_with_a_token_of_their_own() -> None:
    pairs = Pairs()
    tokenizer = EngineTokenizer(pairs.backbone, [ASKING])
    batch = tokenizer(list(ASKING.questions), return_tensors="pt", padding=True).to("cpu")
    lengths = batch["attention_mask"].sum(1)
    assert lengths[0] < lengths[1] and bool((batch["attention_mask"].diff(dim=1) <= 0).all())
    assert bool(((batch["input_ids"] != tokenizer.pad_token_id) == batch["attention_mask"].bool()).all())
    # The tokenizer's own padding may be a word; here the first pair of letters is.
    pairs.known = {"<bos>": 1, "Q:": 0}
    tokenizer = EngineTokenizer(pairs.backbone, [ASKING])
    assert tokenizer.pad_token_id != 0 and tokenizer.unk_token_id == tokenizer.pad_token_id
    used = {token for question in ASKING.questions for token in tokenizer(question)["input_ids"]}
    assert tokenizer.pad_token_id not in used


def test_rows_of_one_length_where_padding_is_not_to_be() -> None:
    tokenizer = EngineTokenizer(Pairs().backbone, [ASKING], whole=True)
    assert tokenizer([ASKING.questions[0]] * 2, padding=True)["input_ids"][0]
    with pytest.raises(UserError, match="batch_size"):
        tokenizer(list(ASKING.questions), padding=True)


def test_strings_of_no_fact_are_refused() -> None:
    tokenizer = EngineTokenizer(Pairs().backbone, [ASKING])
    for text in ("The", "is zor? blue", "is zo"):
        with pytest.raises(UserError, match="belongs to no fact"):
            tokenizer(text)


def test_prompts_that_change_when_an_answer_follows_are_refused() -> None:
    pairs = Pairs()

    def merging(questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
        encoded = pairs.encode(questions, targets)
        if targets is not None:
            encoded.input_ids[:, -6] += 1
        return encoded

    backbone = dataclasses.replace(pairs.backbone, encode=merging)
    with pytest.raises(UserError, match="'f'.*change when"):
        EngineTokenizer(backbone, [ASKING])


def test_what_cannot_be_told_apart_is_refused() -> None:
    """ "is zor" ends in one token here and in another there, and EasyEdit counts by the string alone."""
    other = dataclasses.replace(ASKING, fact_id="g", questions=("is zor !",), bare=())
    with pytest.raises(UserError, match="'g'.*'is zor'"):
        EngineTokenizer(Pairs().backbone, [dataclasses.replace(ASKING, bare=()), other])


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("is zor here ?", ("is ", " here ?")),
        ("zor and zor ?", ("zor and ", " ?")),
        ("is zor zorry ?", ("is ", " zorry ?")),
        ("is xzory ?", ("is x", "y ?")),
    ],
)
def test_where_a_question_is_split(question: str, found: tuple[str, str]) -> None:
    assert split_at_subject(question, "zor", fact_id="f") == found


# --- the model by itself -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_model_is_the_live_one(kind: str) -> None:
    umm = tiny_umm(kind)
    root = umm.model
    model = EngineModel(umm.backbone(), vocabulary=7)
    assert dict(model.named_modules(remove_duplicate=True)).keys() == dict(root.named_modules()).keys()
    ours = dict(model.named_parameters())
    assert ours.keys() == dict(root.named_parameters(remove_duplicate=False)).keys()
    assert all(parameter is root.get_parameter(name) for name, parameter in ours.items())
    assert "lm_head.weight" in ours  # tied in GPT-2, and listed there all the same
    assert (model.config.hidden_size, model.config.vocab_size) == (48, 7)
    assert model.name_or_path == {"llama": "llama", "gpt2": "gpt2"}[kind]


def test_a_look_at_the_padding(janus: Any, tinyworld: Any) -> None:
    questions = (tinyworld[0][0].edit.understand.text, "is it ?")
    assert vocabulary_of(janus.backbone(), questions) == janus.model.config.text_config.vocab_size
    umm = tiny_umm("gpt2", steps=80)
    umm.model.eval()
    backbone = umm.backbone()
    assert vocabulary_of(backbone, (TEXTS[0], "what is")) > 0

    def by_column(encoded: Encoded) -> torch.Tensor:
        """A common mistake: positions that count padding."""
        width = encoded.input_ids.shape[1]
        logits: torch.Tensor = umm.model(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            position_ids=torch.arange(width)[None].expand_as(encoded.input_ids),
            use_cache=False,
        ).logits
        return logits

    with pytest.raises(UserError, match="padded on the right"):
        vocabulary_of(dataclasses.replace(backbone, logits=by_column), (TEXTS[0], "what is"))
