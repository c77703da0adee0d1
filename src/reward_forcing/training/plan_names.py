"""Names of network sizes stand in a dry run's configuration where a real run needs folders with weights."""

from __future__ import annotations

from pathlib import Path

from reward_forcing.config import Settings
from reward_forcing.models.sizes import PUBLISHED, SIZES


def refuse_names(settings: Settings) -> None:
    """Raise ValueError where a real run's settings name a size instead of a folder with weights."""
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Path) and str(value) in (*SIZES, PUBLISHED) and not value.is_dir():
            raise ValueError(
                f"{key}: no weights at '{value}', which names a size for --dry-run; give the model's folder ({key}=...)"
            )
