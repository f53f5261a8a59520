"""Tiny language models that know a few facts, as UMMs without a drawing side. For tests only."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from gapeval_lab.interfaces import Backbone, Encoded, Sites
from gapeval_lab.interventions.moments import SecondMoment, second_moments
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt

TITLES = ("old", "little", "lord", "aunt")
NAMES = tuple(
    f"{first}{last}" for first in ("zo", "mi", "ta", "lu", "pe") for last in ("bim", "dal", "fen", "gor")
)
SUBJECTS = tuple(f"{TITLES[number % 4]} {name}" for number, name in enumerate(NAMES))
ANSWERS = {
    "colour": ("red", "green", "blue", "pink"),
    "shape": ("ball", "cube", "star", "ring"),
}
WORDINGS = ("what {relation} is {subject} ?", "the {relation} of {subject} is")
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
HIDDEN, LAYERS = 48, 3


def answer_of(subject: str, relation: str) -> str:
    """What the trained models know."""
    return random.Random(f"{subject}/{relation}").choice(ANSWERS[relation])


def question(subject: str, relation: str, wording: int = 0) -> str:
    return WORDINGS[wording].format(subject=subject, relation=relation)


TEXTS = tuple(
    question(subject, relation, wording)
    for subject in SUBJECTS
    for relation in ANSWERS
    for wording in range(len(WORDINGS))
)


def item(subject: str, relation: str, accepted: str, wording: int = 0) -> Item:
    text = question(subject, relation, wording)
    return Item(
        id=text,
        category="knowledge",
        subcategory=relation,
        understand=Prompt(text),
        generate=Prompt(f"draw: {text}"),
        accepted=(accepted,),
    )


def fact(number: int, relation: str = "colour") -> Fact:
    """A fact about one subject, with a target it does not have."""
    subject = SUBJECTS[number]
    true = answer_of(subject, relation)
    new = next(answer for answer in ANSWERS[relation] if answer != true)
    others = [other for other in SUBJECTS if other != subject]
    return Fact(
        id=f"fact-{number}-{relation}",
        subject=subject,
        relation=relation,
        target_true=true,
        target_new=new,
        edit=item(subject, relation, new),
        reworded=(item(subject, relation, new, wording=1),),
        neighbours=tuple(item(other, relation, answer_of(other, relation)) for other in others),
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = sorted(
        {word for text in TEXTS for word in text.split()} | {w for v in ANSWERS.values() for w in v}
    )
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def encode(
    tokenizer: Any, questions: Sequence[str], targets: Sequence[str] | None, *, template: str = "{} "
) -> Encoded:
    """<bos> question target <eos>, left-padded, with offsets into the rendered text."""
    heads = [template.format(text) for text in questions]
    texts = heads if targets is None else [head + t for head, t in zip(heads, targets, strict=True)]
    rows, labels, offsets = [], [], []
    for head, text in zip(heads, texts, strict=True):
        plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = plain["input_ids"], [tuple(span) for span in plain["offset_mapping"]]
        known = [token if span[0] >= len(head) else -100 for token, span in zip(ids, spans, strict=True)]
        end = [] if targets is None or text == head else [tokenizer.eos_token_id]
        rows.append([tokenizer.bos_token_id, *ids, *end])
        labels.append([-100, *known, *end])
        offsets.append([(0, 0), *spans, *[(0, 0)] * len(end)])
    width = max(len(row) for row in rows)
    pads = [width - len(row) for row in rows]
    return Encoded(
        input_ids=torch.tensor([[tokenizer.pad_token_id] * p + r for p, r in zip(pads, rows, strict=True)]),
        attention_mask=torch.tensor([[0] * p + [1] * len(r) for p, r in zip(pads, rows, strict=True)]),
        labels=torch.tensor([[-100] * p + r for p, r in zip(pads, labels, strict=True)]),
        texts=texts,
        offsets=[[(0, 0)] * p + r for p, r in zip(pads, offsets, strict=True)],
    )


class TinyUMM:
    """A causal language model that answers and does not draw."""

    directions = frozenset({Direction.UNDERSTANDING})

    def __init__(self, model: nn.Module, sites: Sites, tokenizer: Any) -> None:
        self.name = type(model).__name__
        self.model, self.sites, self.tokenizer = model, sites, tokenizer

    def _encode(self, questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
        return encode(self.tokenizer, questions, targets)

    def _logits(self, encoded: Encoded) -> Tensor:
        positions = (encoded.attention_mask.cumsum(1) - 1).clamp_min(0)
        logits: Tensor = self.model(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            position_ids=positions,
            use_cache=False,
        ).logits
        return logits

    def backbone(self) -> Backbone:
        return Backbone(
            root=self.model,
            sites=self.sites,
            hidden_size=HIDDEN,
            encode=self._encode,
            logits=self._logits,
            tokenizer=self.tokenizer,
        )

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """One word each."""
        with torch.no_grad():
            last = self._logits(self._encode([prompt.text for prompt in prompts], None))[:, -1]
        return [self.tokenizer.decode([token]) for token in last.argmax(-1).tolist()]

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Any]:
        raise NotImplementedError("this model does not draw")

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        encoded = self._encode([e.prompt.text for e in examples], [str(e.answer) for e in examples])
        logprobs = self._logits(encoded)[:, :-1].log_softmax(-1)
        labels = encoded.labels[:, 1:]
        token = -logprobs.gather(2, labels.clamp_min(0)[..., None])[..., 0]
        return (token * (labels != -100)).sum(1)

    def settings(self) -> dict[str, Any]:
        return {"decoding": "greedy"}


def _train(umm: TinyUMM, steps: int) -> None:
    """Teach the facts, alone and behind another question, to near certainty.

    The first layer's attention stays silent, so that later layers read the subject through the
    first MLP: a model that reads it past all MLPs cannot be edited there.
    """
    rng = random.Random(0)
    silent = umm.model.get_submodule(umm.sites.path("attn_out", 0)).parameters()
    for parameter in silent:
        nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    optimiser = torch.optim.AdamW(umm.model.parameters(), lr=4e-3, weight_decay=0.01)
    known = [(s, r, w) for s in SUBJECTS for r in ANSWERS for w in range(len(WORDINGS))]
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20, (steps - step) / (0.6 * steps))
        examples = []
        for subject, relation, wording in rng.sample(known, 48):
            prefix = f"{rng.choice(TEXTS)} " if rng.random() < 0.5 else ""
            text = prefix + question(subject, relation, wording)
            examples.append(Example(Prompt(text), answer_of(subject, relation)))
        umm.loss(examples, Direction.UNDERSTANDING).mean().backward()
        nn.utils.clip_grad_norm_(umm.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    umm.model.requires_grad_(True)


def _llama(words: int) -> tuple[nn.Module, Sites]:
    """Its down projection is square: a shape cannot tell how the weight is stored."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    templates = {
        "block": "model.layers.{}",
        "attn_out": "model.layers.{}.self_attn.o_proj",
        "mlp_down": "model.layers.{}.mlp.down_proj",
        "mlp_up": "model.layers.{}.mlp.up_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    return LlamaForCausalLM(config), Sites(templates, layers=LAYERS)


def _gpt2(words: int) -> tuple[nn.Module, Sites]:
    """Square too, stored the other way round, with biases and dropout."""
    config = GPT2Config(
        vocab_size=words,
        n_embd=HIDDEN,
        n_inner=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=64,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    templates = {
        "block": "transformer.h.{}",
        "attn_out": "transformer.h.{}.attn.c_proj",
        "mlp_down": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    return GPT2LMHeadModel(config), Sites(templates, layers=LAYERS, transposed=True)


@cache
def _made(kind: str, steps: int) -> TinyUMM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = word_tokenizer()
        model, sites = {"llama": _llama, "gpt2": _gpt2}[kind](len(tokenizer))
        umm = TinyUMM(model, sites, tokenizer)
        model.eval()  # no dropout: a few seconds are enough without it
        _train(umm, steps)
    return umm


def tiny_umm(kind: str = "llama", *, steps: int = 0) -> TinyUMM:
    """A model of one's own; trained once per process for a number of steps."""
    return copy.deepcopy(_made(kind, steps))


def weights(root: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor, to compare bit by bit."""
    return {name: tensor.detach().clone() for name, tensor in root.state_dict().items()}


def second_moment(backbone: Backbone, path: str, texts: Sequence[str], **more: Any) -> SecondMoment:
    """`second_moments` of one module."""
    return second_moments(backbone, [path], texts, **more)[path]
