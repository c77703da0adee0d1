"""Diffusers pipelines of random weights, made in a moment: Wan2.1, LTX-Video, SkyReels-V2 without and with forcing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from reward_forcing.training.text_encoder import word_tokenizer

WORDS = ["a", "red", "blue", "green", "ball", "square", "bounces", "slides"]
WIDTH = 32


def write_pipeline(folder: Path, kind: str) -> Path:
    """`folder`, now a pipeline of one of KINDS."""
    torch.manual_seed(0)
    pipeline = KINDS[kind]()
    pipeline.save_pretrained(folder)
    return folder


def _wan() -> DiffusionPipeline:
    transformer = WanTransformer3DModel(**_dit(), cross_attn_norm=True, rope_max_seq_len=32)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return WanPipeline(
        transformer=transformer, vae=_wan_vae(), scheduler=scheduler, **_text(UMT5Config, UMT5EncoderModel)
    )


def _skyreels() -> DiffusionPipeline:
    return SkyReelsV2Pipeline(**_skyreels_parts())


def _skyreels_forcing() -> DiffusionPipeline:
    return SkyReelsV2DiffusionForcingPipeline(**_skyreels_parts())


def _skyreels_parts() -> dict[str, Any]:
    transformer = SkyReelsV2Transformer3DModel(**_dit(), cross_attn_norm=True, rope_max_seq_len=32)
    scheduler = UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    text = _text(UMT5Config, UMT5EncoderModel)
    return {"transformer": transformer, "vae": _wan_vae(), "scheduler": scheduler, **text}


def _ltx() -> DiffusionPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=WIDTH,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1,
        timestep_conditioning=False,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    return LTXPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **_text(T5Config, T5EncoderModel))


def _dit() -> dict[str, Any]:
    return {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": WIDTH, "ffn_dim": 32, "num_layers": 1}


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def _text(config: Any, encoder: Any) -> dict[str, Any]:
    tokenizer = word_tokenizer(WORDS, 16)
    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return {"tokenizer": tokenizer, "text_encoder": encoder(config(vocab_size=len(tokenizer), **sizes))}


KINDS: dict[str, Callable[[], DiffusionPipeline]] = {
    "WanPipeline": _wan,
    "LTXPipeline": _ltx,
    "SkyReelsV2Pipeline": _skyreels,
    "SkyReelsV2DiffusionForcingPipeline": _skyreels_forcing,
}
