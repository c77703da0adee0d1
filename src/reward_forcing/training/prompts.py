"""Text embeddings for training: the frozen text encoder behind a cache, and prompts that are switched within a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from reward_forcing.models.attention import Text, TextTimeline
from reward_forcing.models.text import TextEncoder
from reward_forcing.models.wan_dit import WanDiT


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


@dataclass(frozen=True)
class PromptTimeline:
    """Embedded prompts [B, text_len, text_dim] of a batch of clips.

    `first` is read up to latent frame `switch` and `second` from there on; without a switch, `first` by all frames.
    """

    first: Tensor
    second: Tensor | None = None
    switch: int | None = None

    def text(self, network: WanDiT, frames: Sequence[int]) -> Text:
        """What `network` reads in one forward over these latent frames, given by their numbers in the clip."""
        switch = self.switch
        if self.second is None or switch is None or all(frame < switch for frame in frames):
            return network.encode_text(self.first)
        contexts = {False: network.encode_text(self.first), True: network.encode_text(self.second)}
        runs = groupby(frames, key=lambda frame: frame >= switch)
        return TextTimeline(tuple((len(list(run)), contexts[switched]) for switched, run in runs))
