"""Builds tiny, random checkpoints of families that read pictures and answer in text. For tests only."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    GPT2Config,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gapeval_lab.models.loading import without_video

FAMILIES = ("llava", "qwen2_5_vl", "internvl")
HIDDEN, LAYERS = 32, 2
WORDS = (
    *("a", "the", "thing", "things", "colour", "of", "to", "left", "and", "in", "row", "tell", "me", "its"),
    *("red", "green", "blue", "square", "ring", "cross", ".", "?", ",", "USER:", "ASSISTANT:", "user"),
    *("assistant", "\n"),
)
SPECIAL = {
    "llava": {"image_token": "<image>"},
    "qwen2_5_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
}
# In the manner of each family: LLaVA's answer follows a colon, the others' a line of its own.
LLAVA = (
    "{% for m in messages %}USER: {% for p in m['content'] %}"
    "{{ '<image>\n' if p['type'] == 'image' else p['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
CHAT = (
    "{%% for m in messages %%}<|im_start|>user\n{%% for p in m['content'] %%}"
    "{{ '%s' if p['type'] == 'image' else p['text'] }}"
    "{%% endfor %%}<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
TEMPLATES = {
    "llava": LLAVA,
    "qwen2_5_vl": CHAT % "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": CHAT % "<IMG_CONTEXT>\n",
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Byte-level, so that any text has tokens, with whole words beside the bytes."""
    marks = ["<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL[family].values()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"{space}{word}" for word in WORDS if len(word) > 1 for space in ("", "Ġ")]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*marks, *letters]))}
    merges = []
    for word in words:
        whole = word[0]
        for letter in word[1:]:
            if (whole, letter) not in merges:
                merges.append((whole, letter))
            whole += letter
            vocabulary.setdefault(whole, len(vocabulary))
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"],
        extra_special_tokens=SPECIAL[family],
        chat_template=TEMPLATES[family],
    )


def _text(tokenizer: Any, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _llava(tokenizer: Any, layers: int, *, text: Any = None) -> tuple[Any, Any]:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=16,
        ),
        text_config=text or LlamaConfig(**_text(tokenizer, layers)),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=TEMPLATES["llava"], num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def _llava_on_gpt2(tokenizer: Any, layers: int) -> tuple[Any, Any]:
    """A model of no known naming, whose weights lie the other way round."""
    sizes = {"n_embd": HIDDEN, "n_inner": 48, "n_layer": layers, "n_head": 4, "n_positions": 512}
    ids = {name: tokenizer.pad_token_id for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    own = GPT2Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **sizes, **ids)
    return _llava(tokenizer, layers, text=own)


def _qwen(tokenizer: Any, layers: int) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 8,
            "spatial_merge_size": 2, "window_size": 32, "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(tokenizer, layers, rope_parameters=rope),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )  # fmt: skip
    pictures = Qwen2VLImageProcessorPil(patch_size=8, min_pixels=256, max_pixels=1024)
    processor = without_video(Qwen2_5_VLProcessor)(pictures, tokenizer, chat_template=TEMPLATES["qwen2_5_vl"])
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _internvl(tokenizer: Any, layers: int) -> tuple[Any, Any]:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=4,
        ),
        text_config=Qwen2Config(**_text(tokenizer, layers)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    pictures = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, crop_to_patches=False)
    processor = without_video(InternVLProcessor)(
        pictures, tokenizer, image_seq_length=4, chat_template=TEMPLATES["internvl"]
    )
    return InternVLForConditionalGeneration(config), processor


def save_tiny(family: str, folder: Path, *, layers: int = LAYERS) -> Path:
    """A checkpoint of the family in an empty folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tokenizer = tokenizer_of(family.removesuffix("_on_gpt2"))
        build = {"llava": _llava, "qwen2_5_vl": _qwen, "internvl": _internvl}.get(family, _llava_on_gpt2)
        model, processor = build(tokenizer, layers)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:  # wide enough for prompts and pictures to matter
                    # GPT-2's words begin so large that a token would see itself alone.
                    parameter.mul_(0.1 if "wte" in name or "wpe" in name else 6.0)
    # What Qwen's own checkpoints ship: neither may show in greedy answers.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.5,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
