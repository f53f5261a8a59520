"""Builds tiny, randomly initialised Emu3 checkpoints, tokenizer and processor included.

Used to train the second embedded UMM and to test the adapter. Knows the library's configuration and its
traps; knows nothing of training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAEConfig,
)

from gapeval_lab.models.tiny import ASSISTANT, USER, build_tokenizer, generation_config

EMU3_NAMES: Final = MappingProxyType(
    {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
        "user_token": USER,
        "assistant_token": ASSISTANT,
    }
)
"""What an Emu3 calls its special tokens, beside pad, bos, eos and unk; the strings are the published ones."""

EOL: Final = "<|extra_200|>"
"""The end of a row of visual tokens: known by its string alone."""

# The published template has the system's text too; here it would be spelt out letter by letter.
CHAT_TEMPLATE: Final = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{{ '" + USER + "' if message['role'] == 'user' else '" + ASSISTANT + "' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


@dataclass(frozen=True)
class Emu3Shape:
    """The sizes of a tiny Emu3. Pictures are square, and a code stands for `factor` x `factor` pixels.

    `factor` is a power of 2, and 8 where the library's processor is to lay out pictures, since it knows no
    other. `frames` is how many times the picture tokenizer sees each picture (it was made for video).
    """

    layers: int = 2
    hidden: int = 64
    mlp: int = 128
    heads: int = 4
    codes: int = 64
    image_size: int = 32
    factor: int = 8
    vq_channels: int = 32
    vq_embed: int = 8
    vq_blocks: int = 0
    frames: int = 1
    positions: int = 1024
    tied: bool = True


def build_emu3(words: Iterable[str], shape: Emu3Shape) -> tuple[Emu3ForConditionalGeneration, Emu3Processor]:
    """A randomly initialised Emu3 of this shape, and its processor.

    Initialised from torch's global generator: seed it for a reproducible model.
    """
    digits = [str(digit) for digit in range(10)]
    sizes = ["*", *digits, *(f"##{digit}" for digit in digits)]
    visual = [f"<|visual token {code:06d}|>" for code in range(shape.codes)]
    tokenizer = build_tokenizer(
        [*words, *sizes],
        names=EMU3_NAMES,
        unnamed=[EOL, *visual],
        chat_template=CHAT_TEMPLATE,
        writes_bos=False,  # the processor does
    )
    known: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Emu3Config(
        text_config=Emu3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.positions,
            # The library's name for the dropout of every block's output.
            attention_dropout=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=shape.tied,
            **known,
        ),
        vq_config=Emu3VQVAEConfig(
            codebook_size=shape.codes,
            embed_dim=shape.vq_embed,
            latent_channels=shape.vq_embed,
            base_channels=shape.vq_channels,  # a multiple of 32: GroupNorm has 32 groups
            channel_multiplier=[1] * shape.factor.bit_length(),
            num_res_blocks=shape.vq_blocks,
            attn_resolutions=[],
            hidden_size=shape.vq_channels,
            temporal_downsample_factor=shape.frames,
        ),
        vocabulary_map=tokenizer.get_vocab(),
        tie_word_embeddings=shape.tied,
    )
    model = Emu3ForConditionalGeneration(config)
    model.generation_config = generation_config(tokenizer)
    area = shape.image_size**2
    pictures = Emu3ImageProcessor(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        min_pixels=area,
        max_pixels=area,
        spatial_factor=shape.factor,
    )
    processor = Emu3Processor(image_processor=pictures, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)
    return model.eval(), processor
