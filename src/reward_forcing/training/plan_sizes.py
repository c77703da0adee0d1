"""Names of network sizes: they stand in a dry run's configuration where a real run needs folders with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reward_forcing.config import Settings
from reward_forcing.models.sizes import WAN_1_3B, WAN_14B

SIZES: dict[str, dict[str, Any]] = {
    "wan-1.3b": dict(WAN_1_3B),
    "wan-14b": dict(WAN_14B),
    "mini": {
        "num_attention_heads": 3,
        "attention_head_dim": 64,
        "num_layers": 8,
        "ffn_dim": 768,
        "freq_dim": 128,
        "text_dim": 64,
    },
}
"""Transformers: `WanDiT`'s settings where they differ from its defaults."""

PUBLISHED = "wan-2.1"
"""Wan2.1's text encoder under the key `text`, and its VAE under `vae`."""


def refuse_names(settings: Settings) -> None:
    """Raise ValueError where a real run's settings name a size instead of a folder with weights."""
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Path) and str(value) in (*SIZES, PUBLISHED) and not value.is_dir():
            raise ValueError(
                f"{key}: no weights at '{value}', which names a size for --dry-run; give the model's folder ({key}=...)"
            )
