"""Native methods against EasyEdit's own code: the same model, facts, hyperparameters, contexts and moments.

    python scripts/bench_easyedit.py                       # the embedded UMM: ROME, MEMIT of 100 facts
    python scripts/bench_easyedit.py --model llama         # a Llama of 200 M parameters with random weights
    python scripts/bench_easyedit.py --growth              # cost of ours against facts and width

Both sides compute what EasyEdit's formulas say (`compat: easyedit`); second moments are on disk for both
before the clock starts. A line says how long each side took, the ratio, and by how much the deltas differ.
Needs EasyEdit: pip install --no-deps easyeditor==0.0.1.dev0
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gapeval_lab.delta import WeightDelta
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import Backbone, Encoded, Sites
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Fact, Item, Prompt
from gapeval_lab.recipe import load

STEPS = 25  # EasyEdit's; it makes one update less


class RandomLlama:
    """A causal language model of some width with random weights, as far as interventions look at it."""

    name = "random-llama"
    directions = frozenset({Direction.UNDERSTANDING})

    def __init__(self, width: int, layers: int, facts: Sequence[Fact], *, vocabulary: int) -> None:
        words = sorted({word for fact in facts for word in [*fact.edit.understand.text.split(), "is", "a"]})
        words += sorted({fact.target_new for fact in facts} - set(words))
        known = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words])}
        core = Tokenizer(WordLevel(known, unk_token="<unk>"))
        core.pre_tokenizer = WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
        )
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.sites = Sites(
            {
                "block": "model.layers.{}",
                "attn_out": "model.layers.{}.self_attn.o_proj",
                "mlp_down": "model.layers.{}.mlp.down_proj",
                "final_norm": "model.norm",
                "head": "lm_head",
            },
            layers=layers,
        )

    def backbone(self) -> Backbone:
        """The model itself."""
        return Backbone(
            root=self.model,
            sites=self.sites,
            hidden_size=self.model.config.hidden_size,
            encode=self._encode,
            logits=self._logits,
            tokenizer=self.tokenizer,
        )

    def _encode(self, questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
        heads = [f"{question} " for question in questions]
        texts = heads if targets is None else [h + t for h, t in zip(heads, targets, strict=True)]
        rows, labels, offsets = [], [], []
        for head, text in zip(heads, texts, strict=True):
            plain = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = [tuple(span) for span in plain["offset_mapping"]]
            rows.append([1, *plain["input_ids"]])
            asked = [t if s[0] >= len(head) else -100 for t, s in zip(plain["input_ids"], spans, strict=True)]
            labels.append([-100, *asked])
            offsets.append([(0, 0), *spans])
        width = max(map(len, rows))
        pads = [width - len(row) for row in rows]
        return Encoded(
            input_ids=torch.tensor([[0] * p + r for p, r in zip(pads, rows, strict=True)]),
            attention_mask=torch.tensor([[0] * p + [1] * len(r) for p, r in zip(pads, rows, strict=True)]),
            labels=torch.tensor([[-100] * p + r for p, r in zip(pads, labels, strict=True)]),
            texts=texts,
            offsets=[[(0, 0)] * p + r for p, r in zip(pads, offsets, strict=True)],
        )

    def _logits(self, encoded: Encoded) -> torch.Tensor:
        positions = (encoded.attention_mask.cumsum(1) - 1).clamp_min(0)
        found: torch.Tensor = self.model(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            position_ids=positions,
            use_cache=False,
        ).logits
        return found


def invented(count: int) -> list[Fact]:
    """Facts about subjects that nobody knows."""
    facts = []
    for n in range(count):
        subject, target = f"person {n}", f"place{n % 20}"
        prompt = Prompt(f"the home town of {subject} is")
        edit = Item(f"f{n}", "knowledge", "home", prompt, Prompt(f"draw {subject}"), (target,))
        facts.append(Fact(f"f{n}", subject, "home", "nowhere", target, edit))
    return facts


def pair(method: str, layers: tuple[int, ...]) -> tuple[Any, Any]:
    """EasyEdit's and ours, with the same hyperparameters."""
    same = {"contexts": 0, "ridge": 0.05}
    if method == "ROME":
        theirs = EasyEdit(method="ROME", layer=layers[0], v_num_grad_steps=STEPS, v_lr=0.5, **same)
        ours = Rome(
            layer=layers[0],
            steps=STEPS - 1,
            lr=0.5,
            weight_decay=1e-3,
            essence=("{subject} is a",),
            compat="easyedit",
            **same,
        )
        return theirs, ours
    theirs = EasyEdit(
        method="MEMIT",
        layers=layers,
        v_num_grad_steps=STEPS,
        v_lr=0.5,
        v_weight_decay=0.5,
        clamp_norm_factor=0.75,
        mom2_update_weight=10.0,
        **same,
    )
    ours = Memit(
        layers=layers,
        steps=STEPS - 1,
        lr=0.5,
        essence=("{subject} is a",),
        moment_weight=10.0,
        key_mean="kinds",
        shared_contexts=True,
        compat="easyedit",
        **same,
    )
    return theirs, ours


def timed(
    method: Any, umm: Any, facts: Sequence[Fact], texts: Sequence[str], cache: Path
) -> tuple[float, WeightDelta]:
    """Seconds, and the delta."""
    began = time.perf_counter()
    delta = method.fit(umm, facts, seed=0, texts=texts, log=lambda *point: None, cache=cache)
    return time.perf_counter() - began, delta


def apart(one: WeightDelta, other: WeightDelta) -> float:
    """|one - other| / |other|."""
    pairs = [(one.terms[name].dense(), other.terms[name].dense()) for name in other.terms]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def compare(
    label: str, method: str, layers: tuple[int, ...], umm: Any, facts: Sequence[Fact], texts: Sequence[str]
) -> None:
    """One line."""
    theirs, ours = pair(method, layers)
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place)
        for one in (theirs, ours):
            timed(one, umm, facts[:1], texts, cache)  # moments to disk, first calls
        slow, other = timed(theirs, umm, facts, texts, cache)
        fast, own = timed(ours, umm, facts, texts, cache)
    print(
        f"{label:10}{method:6}{len(facts):>5} facts   EasyEdit {slow:7.1f} s   native {fast:7.1f} s   "
        f"{slow / fast:5.1f} times faster   deltas differ by {apart(own, other):.1e}",
        flush=True,
    )


def growth(umm: Any, facts: Sequence[Fact], texts: Sequence[str]) -> None:
    """Seconds of the native methods for more and more facts, and for wider and wider models."""
    with tempfile.TemporaryDirectory() as place:
        for method, counts in (("MEMIT", (1, 10, 100, 1000)), ("ROME", (1, 10, 100))):
            _, ours = pair(method, (0, 1))
            timed(ours, umm, facts[:1], texts, Path(place))
            for count in counts:
                seconds, _ = timed(ours, umm, facts[:count], texts, Path(place))
                print(f"width 256  {method:6}{count:>5} facts {seconds:8.2f} s", flush=True)
        for width in (256, 512, 1024):
            wide = RandomLlama(width, 4, facts[:10], vocabulary=2000)
            _, ours = pair("MEMIT", (0, 1))
            timed(ours, wide, facts[:1], texts, Path(place))
            seconds, _ = timed(ours, wide, facts[:10], texts, Path(place))
            print(f"width {width:<5}MEMIT    10 facts {seconds:8.2f} s", flush=True)


def main() -> None:
    """Compare on a model, or show how cost grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("embedded", "llama"), default="embedded")
    parser.add_argument("--growth", action="store_true")
    args = parser.parse_args()
    if args.growth:
        facts = invented(1000)
        texts = [fact.edit.understand.text for fact in facts]
        growth(RandomLlama(256, 4, facts, vocabulary=2000), facts, texts)
    elif args.model == "embedded":
        recipe = load("memit_many_facts").recipe
        assert recipe.facts is not None
        umm, texts = recipe.build("model").load(), recipe.build("benchmark").training_texts()
        facts = list(read_facts(recipe.facts.file, split="test", count=100))
        compare("embedded", "ROME", (0,), umm, facts[:20], texts)
        compare("embedded", "MEMIT", (0, 1, 2), umm, facts, texts)
    else:
        facts = invented(10)
        texts = [fact.edit.understand.text for fact in invented(300)]
        umm = RandomLlama(1024, 12, facts, vocabulary=32000)
        size = sum(parameter.numel() for parameter in umm.model.parameters())
        print(f"{size / 1e6:.0f} M parameters")
        compare("llama", "ROME", (3,), umm, facts[:2], texts)
        compare("llama", "MEMIT", (3, 4), umm, facts, texts)


if __name__ == "__main__":
    main()
