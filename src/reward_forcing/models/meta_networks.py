"""Networks without storage, for plans: built on the meta device from their configuration, so that no weights are read.

A network is named by a folder with a config.json, or by one of `sizes.SIZES`. Knows no cost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from reward_forcing.models.sizes import PUBLISHED, SIZES
from reward_forcing.models.text import MAX_TOKENS
from reward_forcing.models.wan_dit import WanDiT

UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}


def meta_transformer(source: Path) -> WanDiT:
    """The transformer of a folder's config.json or of a name in `SIZES`, without storage.

    A folder goes before a name. Raises FileNotFoundError for what is neither.
    """
    if (source / "config.json").is_file():
        config = _read(source / "config.json")
    elif str(source) in SIZES:
        config = SIZES[str(source)]
    else:
        names = ", ".join(SIZES)
        raise FileNotFoundError(
            f"no transformer in '{source}' (config.json is missing); a plan needs that file or one of: {names}"
        )
    with torch.device("meta"):
        network = WanDiT.from_config(config)
    assert isinstance(network, WanDiT)
    return network


def meta_text_encoder(folder: Path) -> tuple[UMT5EncoderModel, int]:
    """The text encoder of a model folder, or Wan2.1's for `PUBLISHED`, without storage; and its tokens per prompt.

    Raises FileNotFoundError for a folder without text_encoder/config.json and tokenizer/tokenizer_config.json.
    """
    places = folder / "text_encoder" / "config.json", folder / "tokenizer" / "tokenizer_config.json"
    if all(place.is_file() for place in places):
        config = UMT5Config.from_pretrained(folder / "text_encoder")
        longest = _read(places[1]).get("model_max_length", MAX_TOKENS)
        length = min(int(longest), MAX_TOKENS)
    elif str(folder) == PUBLISHED:
        config, length = UMT5Config(**UMT5_XXL), MAX_TOKENS
    else:
        raise FileNotFoundError(
            f"no text_encoder/config.json and tokenizer/ under '{folder}'; a plan needs them or '{PUBLISHED}'"
        )
    with torch.device("meta"):
        return UMT5EncoderModel(config).eval(), length


def meta_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a folder's config.json, or Wan2.1's for `PUBLISHED`, without storage.

    Raises FileNotFoundError for what is neither.
    """
    if (folder / "config.json").is_file():
        config = _read(folder / "config.json")
    elif str(folder) == PUBLISHED:
        config = {}
    else:
        raise FileNotFoundError(
            f"no VAE in '{folder}' (config.json is missing); a plan needs that file or '{PUBLISHED}'"
        )
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(config)
    assert isinstance(vae, AutoencoderKLWan)
    return vae.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
