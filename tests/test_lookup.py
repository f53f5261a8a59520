"""Finding the subject's token in the prompt as it is really rendered."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_lm import encode, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Encoded
from gapeval_lab.interventions.lookup import FactToken, token_positions


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs over whole sentences: nothing keeps tokens from crossing word borders."""
    core = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz ?"),
    )
    core.train_from_iterator(["is zorb? is zorb? of zorb? of zorb?"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Sentence-piece style: a mark for the space before a word, one put before the first word too."""
    core = Tokenizer(
        models.Unigram(
            [("<pad>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), ("▁", -2.0)]
            + [(piece, -1.0) for piece in ("▁zo", "rb", "▁is", "▁what", "?", "▁red", "▁a", "▁the")]
            + [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"],
            unk_id=0,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def token_text(encoded: Encoded, row: int, column: int) -> str:
    start, end = encoded.offsets[row][column]
    return encoded.texts[row][start:end]


def find(
    tokenizer: Any,
    texts: list[str],
    subject: str,
    *,
    token: FactToken = "subject_last",
    targets: list[str] | None = None,
    template: str = "{} ",
) -> tuple[Encoded, list[int]]:
    encoded = encode(tokenizer, texts, targets, template=template)
    facts = [f"fact-{row}" for row in range(len(texts))]
    return encoded, token_positions(encoded, [subject] * len(texts), token=token, facts=facts)


def test_token_that_holds_the_end_of_the_subject_and_what_follows() -> None:
    tokenizer = merging_tokenizer()
    encoded, (column,) = find(tokenizer, ["what is zorb?"], "zorb")
    text = token_text(encoded, 0, column)
    assert text.strip() != "zorb" and "b" in text and text.endswith("? ") | text.endswith("?")


def test_tokenising_prefix_and_subject_apart_would_miss_it() -> None:
    tokenizer = merging_tokenizer()
    encoded, (column,) = find(tokenizer, ["what is zorb?"], "zorb")
    apart = 1 + len(tokenizer("what is zorb", add_special_tokens=False)["input_ids"]) - 1
    assert apart != column


@pytest.mark.parametrize("text", ["zorb is a?", "what is zorb?", "the zorb?"])
def test_sentence_piece_marks(text: str) -> None:
    tokenizer = spaced_tokenizer()
    encoded, (last,) = find(tokenizer, [text], "zorb")
    assert token_text(encoded, 0, last) == "rb"
    encoded, (first,) = find(tokenizer, [text], "zorb", token="subject_first")
    assert token_text(encoded, 0, first).strip() == "zo"
    assert first == last - 1


def test_left_padding_is_counted() -> None:
    texts = ["what colour is old zobim ?", "what shape is little zodal ? what colour is old zobim ?"]
    encoded, columns = find(word_tokenizer(), texts, "old zobim")
    assert [token_text(encoded, row, column) for row, column in enumerate(columns)] == ["zobim"] * 2
    assert encoded.attention_mask[0, 0] == 0 and columns[0] == columns[1]
    _, alone = find(word_tokenizer(), texts[:1], "old zobim")
    assert columns[0] > alone[0]


def test_last_of_several_occurrences() -> None:
    encoded, (column,) = find(word_tokenizer(), ["old zobim is what colour is old zobim ?"], "old zobim")
    assert encoded.offsets[0][column] == (32, 37)


def test_the_target_is_not_searched() -> None:
    encoded, (column,) = find(word_tokenizer(), ["what is zobim ?"], "zobim", targets=["not zobim"])
    assert encoded.offsets[0][column] == (8, 13)


def test_whole_words_come_before_parts_of_words() -> None:
    encoded, (column,) = find(word_tokenizer(), ["is zo a zobim ?"], "zo")
    assert token_text(encoded, 0, column) == "zo"
    encoded, (column,) = find(word_tokenizer(), ["is it a zobim ?"], "zo")
    assert token_text(encoded, 0, column) == "zobim"


def test_template_around_the_question() -> None:
    encoded, (column,) = find(
        word_tokenizer(), ["what is old zobim ?"], "old zobim", template="user : {} assistant : "
    )
    assert token_text(encoded, 0, column) == "zobim"


def test_last_is_the_token_before_the_target() -> None:
    encoded, (column,) = find(
        word_tokenizer(), ["what is zobim ?"], "zobim", token="last", targets=["red ball"]
    )
    assert token_text(encoded, 0, column) == "?"
    encoded, (column,) = find(word_tokenizer(), ["what is zobim ?"], "zobim", token="last")
    assert column == encoded.input_ids.shape[1] - 1


@pytest.mark.parametrize("subject", ["mifen", "Zobim"])
def test_a_missing_subject_names_fact_and_prompt(subject: str) -> None:
    with pytest.raises(UserError, match=r"fact 'fact-1'.*what is zobim \?"):
        find(word_tokenizer(), [f"what is {subject} ?", "what is zobim ?"], subject)


def test_an_empty_subject_is_missing() -> None:
    with pytest.raises(UserError, match="fact-0"):
        find(word_tokenizer(), ["what is zobim ?"], " ")
