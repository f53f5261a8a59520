"""Builds tiny, randomly initialised checkpoints of real model families, tokenizer and processor included.

Used to train the embedded UMM and to test adapters. Knows the libraries' configurations and their
traps; knows nothing of training.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

PAD: Final = "<pad>"
BOS: Final = "<s>"
EOS: Final = "</s>"
UNK: Final = "<unk>"
IMAGE: Final = "<image_placeholder>"
BOI: Final = "<begin_of_image>"
EOI: Final = "<end_of_image>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '" + USER + "' if message['role'] == 'user' else '" + ASSISTANT + "' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '" + IMAGE + "' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


JANUS_NAMES: Final = MappingProxyType(
    {
        "image_token": IMAGE,
        "boi_token": BOI,
        "eoi_token": EOI,
        "user_token": USER,
        "assistant_token": ASSISTANT,
    }
)
"""What a Janus calls its special tokens, beside pad, bos, eos and unk."""


def build_tokenizer(
    words: Iterable[str],
    *,
    names: Mapping[str, str] = JANUS_NAMES,
    unnamed: Sequence[str] = (),
    chat_template: str = CHAT_TEMPLATE,
    writes_bos: bool = True,
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer over whole words, word pieces ("##x") and letters.

    Letters stand for themselves, so that any Latin text has tokens; the order of `words` fixes ids.

    Args:
        words: whole words and word pieces.
        names: special tokens by the names that a family's processor knows them by.
        unnamed: further special tokens; they come last.
        chat_template: written into the tokenizer.
        writes_bos: whether bos is put before every text.
    """
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [PAD, BOS, EOS, UNK, *names.values(), *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *unnamed]))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if writes_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
        )
    core.add_special_tokens(list(unnamed))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        extra_special_tokens=dict(names),
        chat_template=chat_template,
    )


@dataclass(frozen=True)
class JanusShape:
    """The sizes of a tiny Janus. Pictures are `image_size` pixels wide, in patches of `patch_size`."""

    layers: int = 2
    hidden: int = 64
    mlp: int = 128
    heads: int = 4
    vision_layers: int = 1
    vision_hidden: int = 32
    codes: int = 64
    image_size: int = 32
    patch_size: int = 4
    vq_channels: int = 32
    positions: int = 512


def build_janus(
    words: Iterable[str], shape: JanusShape
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """A randomly initialised Janus of this shape, and its processor.

    Initialised from torch's global generator: seed it for a reproducible model.
    """
    tokenizer = build_tokenizer(words)
    tokens = (shape.image_size // shape.patch_size) ** 2
    halvings = (shape.patch_size).bit_length() - 1
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.positions,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=4,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            projection_dim=shape.hidden,
            mlp_ratio=2.0,
            # Drives the library's drawing loop; not derived from the sizes.
            num_image_tokens=tokens,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=shape.codes,
            latent_channels=shape.vq_channels,
            base_channels=shape.vq_channels,  # a multiple of 32: GroupNorm has 32 groups
            channel_multiplier=[1] * (halvings + 1),
            num_res_blocks=0,
            projection_dim=shape.hidden,
            image_token_embed_dim=shape.hidden,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
    )
    model = JanusForConditionalGeneration(config)
    model.generation_config = generation_config(
        tokenizer, generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BOI)}
    )
    size = {"height": shape.image_size, "width": shape.image_size}
    pictures = JanusImageProcessorPil(
        size=size, min_size=shape.image_size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(
        image_processor=pictures, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=tokens
    )
    return model.eval(), processor


def generation_config(tokenizer: Any, **more: Any) -> GenerationConfig:
    """Greedy, with the tokenizer's special tokens; `more` is the library's own."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=32,
        do_sample=False,
        **more,
    )
