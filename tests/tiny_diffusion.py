"""Tiny pipelines with random weights, of three kinds, as their library saves them."""

from pathlib import Path
from typing import Any

import torch

from gapeval_lab.models.tiny import build_tokenizer

LONGEST = 24  # tokens of a prompt
WORDS = ("red", "blue", "green", "square", "ring", "cross", "colour", "thing", "tell", "draw")


def _tokenizer() -> Any:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.model_max_length = LONGEST
    return tokenizer


def _vae(channels: tuple[int, ...] = (4, 8)) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def _unet(channels: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=100, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _clip(size: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LONGEST,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def stable_diffusion(folder: Path, *, editing: bool = False) -> Path:
    """Stable Diffusion for text to picture or, with `editing`, InstructPix2Pix."""
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    kind = StableDiffusionInstructPix2PixPipeline if editing else StableDiffusionPipeline
    pipeline = kind(
        vae=_vae(),
        text_encoder=_clip(len(tokenizer)),
        tokenizer=tokenizer,
        unet=_unet(8 if editing else 4),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def pixart(folder: Path) -> Path:
    """PixArt: a diffusion transformer, text to picture alone."""
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer), d_model=8, d_ff=16, d_kv=4, num_layers=1, num_heads=2, pad_token_id=0
    )
    pipeline = PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        vae=_vae((4, 4, 4, 8)),
        transformer=PixArtTransformer2DModel(
            sample_size=32,  # the library knows this and two larger ones
            num_layers=1,
            patch_size=2,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_channels=8,
            in_channels=4,
            cross_attention_dim=8,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=100,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=False,
        ),
        scheduler=_scheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder
