"""A UMM as EasyEdit expects a language model and a tokenizer to be: the live one, asked in its own template.

    question    "the colour of zor is"           what a fact asks, behind a context or alone
    rendered    "<bos> User: the colour ..."     how the model is really asked, tokens of the adapter
    head        "the colour of zor"              a question up to the end of its subject

EasyEdit makes strings of its own and tokenises them: a question, a question with the beginning of its
target behind it, a head (to count tokens). Each is answered here with the tokens that the adapter gives
the question, so that nothing is edited in another form than it is asked in. A string that belongs to no
fact is refused. Where the subject ends is found as the native methods find it, in the rendered text: a
token that holds both the subject's end and what follows counts as the subject's.

Rows are padded on the right, the only side on which EasyEdit's positions are right. Knows no method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Encoded
from gapeval_lab.interventions.lookup import last_occurrence, token_positions

NAMES = {False: "llama", True: "gpt2"}
"""By `Sites.transposed`: the name that the model goes by. Some methods choose by parts of a name how a
weight is stored, or what the width is called; these two say it truly."""


@dataclass(frozen=True)
class Asking:
    """What EasyEdit will ask about one fact.

    Attributes:
        fact_id: for messages.
        subject, target: as the fact has them.
        questions: the question, alone and behind each context.
        bare: prompts that are asked without a target.
    """

    fact_id: str
    subject: str
    target: str
    questions: tuple[str, ...]
    bare: tuple[str, ...]


def split_at_subject(question: str, subject: str, *, fact_id: str) -> tuple[str, str]:
    """What stands before the subject and what behind it; of several places the last, whole words first.

    Raises:
        UserError: the subject is not there, or braces are, which EasyEdit reads as places to fill.
    """
    if "{" in question or "}" in question:
        raise UserError(
            f"facts: fact '{fact_id}': '{question}' holds braces, which EasyEdit fills in; write it without"
        )
    start, end = last_occurrence(question, subject, len(question))
    if start < 0 or not subject.strip():
        raise UserError(
            f"facts: fact '{fact_id}': subject '{subject}' does not stand in its prompt '{question}'; "
            "write it there letter for letter"
        )
    return question[:start], question[end:]


class EngineModel(nn.Module):
    """The root under another roof: the same modules and parameters by the same names, asked for text.

    Tied parameters are listed under all their names. Attributes that EasyEdit reads: `config`,
    `device`, `name_or_path`.
    """

    def __init__(self, backbone: Backbone, *, vocabulary: int) -> None:
        super().__init__()
        root = backbone.root
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = root.__dict__[table]
        self._backbone = backbone
        self.device = next(root.parameters()).device
        self.name_or_path = NAMES[backbone.sites.transposed]
        width = backbone.hidden_size
        self.config = SimpleNamespace(
            _name_or_path=self.name_or_path,
            hidden_size=width,
            n_embd=width,
            vocab_size=vocabulary,
            max_position_embeddings=1,  # read where statistics are measured, which they never are
        )

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = False
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As a module's, but tied parameters under each of their names."""
        return super().named_parameters(prefix, recurse, False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`.logits`: (batch, length, vocabulary), of rows padded on either side."""
        return SimpleNamespace(logits=_logits(self._backbone, input_ids, attention_mask))


class EngineTokenizer:
    """Answers EasyEdit's strings with the adapter's tokens; see the module.

    Attributes:
        pad_token_id: stands in no row, so that whoever counts padding by its id counts right.
        unk_token_id: the same: one method leaves unknown words of targets out, and must leave out padding.
        bos_token_id: none: no target begins with one.
    """

    padding_side = "right"
    bos_token_id = -1

    def __init__(self, backbone: Backbone, askings: Sequence[Asking], *, whole: bool = False) -> None:
        """Ask the adapter for all tokens that will be needed.

        Args:
            backbone: the model.
            askings: all facts of one call of EasyEdit.
            whole: the method gets prompts and targets, and looks for no subject. Then rows of one batch
                must have one length, and an eos that closes a target is left out: a method may want all
                tokens of a target at one place.

        Raises:
            UserError: a subject or target does not fit, or two questions cannot be told apart.
        """
        self._tokenizer, self._whole = backbone.tokenizer, whole
        self.eos_token_id = getattr(backbone.tokenizer, "eos_token_id", None)
        self._questions: dict[str, list[int]] = {}
        self._heads: dict[str, list[int]] = {}
        self._targets: dict[str, list[int]] = {}
        self._beginnings: dict[str, list[int]] = {}
        for asking in askings:
            self._learn(backbone, asking)
        used = {token for row in (*self._questions.values(), *self._targets.values()) for token in row}
        own = getattr(backbone.tokenizer, "pad_token_id", None)
        candidates = [*([] if own is None else [own]), *range(len(used) + 1)]
        self.pad_token_id = int(next(token for token in candidates if token not in used))
        self.unk_token_id = self.pad_token_id

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        return_tensors: str | None = None,
        padding: bool = False,
        add_special_tokens: bool = True,
    ) -> Any:
        """Questions, with nothing, a target's beginning or a target behind them; or targets alone.

        Special tokens are in them as the adapter puts them there, whatever is asked for.

        Raises:
            UserError: a string that belongs to no fact, or rows that may not be padded.
        """
        from transformers import BatchEncoding

        rows = [self._ids(one) for one in ([text] if isinstance(text, str) else text)]
        if isinstance(text, str) and return_tensors is None:
            return BatchEncoding({"input_ids": rows[0], "attention_mask": [1] * len(rows[0])})
        width = max(map(len, rows))
        if self._whole and any(len(row) != width for row in rows):
            raise UserError(
                "hparams.batch_size: prompts or targets of one batch differ in length, and EasyEdit's "
                "versions disagree on which side this method is padded; set it to 1"
            )
        pads = [width - len(row) for row in rows]
        found = {
            "input_ids": [row + [self.pad_token_id] * pad for row, pad in zip(rows, pads, strict=True)],
            "attention_mask": [[1] * len(row) + [0] * pad for row, pad in zip(rows, pads, strict=True)],
        }
        return BatchEncoding(found, tensor_type=return_tensors)

    def encode(self, text: str, *, return_tensors: str | None = None, add_special_tokens: bool = True) -> Any:
        """A head's tokens, which are only counted; a target's, as (1, length), where tensors are wanted."""
        if return_tensors is None and text in self._heads:
            return list(self._heads[text])
        ids = self._ids(text)
        return ids if return_tensors is None else torch.tensor([ids])

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Text; for all of a target but its last token a mark, which `__call__` knows behind a question."""
        row = ids.tolist() if isinstance(ids, Tensor) else ids
        row = row if isinstance(row, list) else [row]
        marks = [mark for mark, known in self._beginnings.items() if known == row]
        if marks:
            return marks[0]
        return str(self._tokenizer.decode(row, skip_special_tokens=skip_special_tokens)) if row else ""

    def _learn(self, backbone: Backbone, asking: Asking) -> None:
        """Note the tokens of one fact's questions, heads and target."""
        questions = (*asking.questions, *asking.bare)
        asked = backbone.encode(questions, None)
        subjects, facts = [asking.subject] * len(questions), [asking.fact_id] * len(questions)
        ends = token_positions(asked, subjects, token="subject_last", facts=facts)
        starts = token_positions(asked, subjects, token="subject_first", facts=facts)
        answered = backbone.encode(asking.questions, [asking.target] * len(asking.questions))
        for row, question in enumerate(questions):
            ids, padding = _unpadded(asked, row)
            before, _ = split_at_subject(question, asking.subject, fact_id=asking.fact_id)
            self._note(self._questions, question, ids, asking)
            self._note(self._heads, before + asking.subject, ids[: ends[row] + 1 - padding], asking)
            self._heads.setdefault(before, ids[: starts[row] - padding])  # cancels out: any count will do
            if row < len(asking.questions):
                whole, _ = _unpadded(answered, row)
                labelled = int((answered.labels[row] != -100).sum())
                if whole[: len(ids)] != ids or labelled != len(whole) - len(ids):
                    raise UserError(
                        f"facts: fact '{asking.fact_id}': this model's tokens of '{question}' change when "
                        "an answer follows, which EasyEdit cannot follow; use a native method"
                    )
                target = whole[len(ids) :]
                if self._whole and target and target[-1] == self.eos_token_id:
                    target = target[:-1]
                self._note(self._targets, asking.target.strip(), target, asking)
        target = self._targets[asking.target.strip()]
        if not target or not asking.target.strip():
            raise UserError(
                f"facts: fact '{asking.fact_id}': target_new '{asking.target}' has no tokens in this "
                "model's vocabulary; write another target"
            )
        if len(target) > 1 and target[:-1] not in self._beginnings.values():
            self._beginnings[f"\x1f{len(self._beginnings)}\x1f"] = target[:-1]

    def _note(self, table: dict[str, list[int]], text: str, ids: list[int], asking: Asking) -> None:
        if table.setdefault(text, ids) != ids:
            raise UserError(
                f"facts: fact '{asking.fact_id}': '{text}' becomes other tokens here than elsewhere among "
                "these facts, and EasyEdit cannot tell them apart; write the facts in runs of their own"
            )

    def _ids(self, text: str) -> list[int]:
        """The tokens of a question, of a target, or of a question and what follows."""
        if text in self._questions:
            return list(self._questions[text])
        if text.strip() in self._targets:
            return list(self._targets[text.strip()])
        for question in sorted(self._questions, key=len, reverse=True):
            if text.startswith(question):
                rest = text[len(question) :]
                known = self._beginnings.get(rest, self._targets.get(rest.strip()))
                if known is not None:
                    return self._questions[question] + known
        raise UserError(
            f"intervention: this method of EasyEdit asks for '{text}', which belongs to no fact; it cannot "
            "be offered as it is"
        )


def vocabulary_of(backbone: Backbone, questions: Sequence[str]) -> int:
    """The number of logits, after a look whether rows padded on the right give the same ones.

    Args:
        backbone: the model.
        questions: of several lengths.

    Raises:
        UserError: they do not: this adapter counts positions from the left, padding included.
    """
    encoded = backbone.encode(questions, None)
    ids, mask = encoded.input_ids, encoded.attention_mask
    turned = torch.empty_like(ids)
    for row, pad in enumerate((mask == 0).sum(1).tolist()):
        turned[row] = ids[row].roll(-pad)
    on_the_right = mask.flip(1)
    with torch.no_grad():
        expected = backbone.logits(encoded)[:, -1].float()
        logits = _logits(backbone, turned, on_the_right).float()
    found = logits[torch.arange(len(ids)), on_the_right.sum(1) - 1]
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise UserError(
            "model: its adapter gives other answers to rows that are padded on the right, as EasyEdit pads "
            "them; use a native method"
        )
    return int(logits.shape[-1])


def _logits(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    empty: list[list[tuple[int, int]]] = []
    return backbone.logits(Encoded(ids, mask, torch.full_like(ids, -100), [], empty))


def _unpadded(encoded: Encoded, row: int) -> tuple[list[int], int]:
    """A row's real tokens, and how many columns of padding stand before them."""
    padding = int((encoded.attention_mask[row] == 0).sum())
    return encoded.input_ids[row, padding:].tolist(), padding
