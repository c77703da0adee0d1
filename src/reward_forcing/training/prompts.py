"""Text embeddings for training: the frozen text encoder behind a cache, so that a caption is encoded once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from reward_forcing.models.text import TextEncoder


class PromptEncoder:
    """Prompts -> embeddings [B, text_len, text_dim] on `device`; remembers the last 20,000 prompts."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """folder: holds text_encoder/ and tokenizer/. Raises FileNotFoundError if it does not."""
        self.device = device
        self._encoder = TextEncoder.from_pretrained(folder)
        self._encode = lru_cache(maxsize=20_000)(self._encode_one)
        self.text_dim = self._encode("").shape[-1]

    def _encode_one(self, prompt: str) -> Tensor:
        return self._encoder([prompt])[0]

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings of the prompts, in order."""
        return torch.stack([self._encode(prompt) for prompt in prompts]).to(self.device)
