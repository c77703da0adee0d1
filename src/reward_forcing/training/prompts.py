"""Text embeddings for training: the frozen text encoder behind a cache, and prompts that are switched within a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from reward_forcing.models.attention import Text, TextTimeline
from reward_forcing.models.text import TextEncoder
from reward_forcing.models.wan_dit import WanDiT


class PromptEncoder:
    """Prompts -> embeddings [B, text_len, text_dim] on `device`.

    Remembers the prompts that came last, in main memory, without the zeros beyond their ends: of Wan's 1.6 MB for each
    hundred tokens.
    """

    def __init__(self, folder: Path, device: torch.device, remembered: int = 4 * 2**30) -> None:
        """folder: holds text_encoder/ and tokenizer/. remembered: bytes. Raises FileNotFoundError if it does not."""
        self.device = device
        self.remembered = remembered
        self._encoder = TextEncoder.from_pretrained(folder)
        self._rows: dict[str, Tensor] = {}
        """Embeddings up to the prompts' ends, the prompt that came last at the end."""
        self._bytes = 0
        self.text_dim = self._encode("").shape[-1]

    def _encode(self, prompt: str) -> Tensor:
        """The embedding of a prompt up to its end [tokens, text_dim]."""
        rows = self._rows.pop(prompt, None)
        if rows is None:
            whole = self._encoder([prompt])[0].cpu()
            filled = whole.any(dim=1).nonzero()
            rows = whole[: int(filled[-1]) + 1 if len(filled) else 0].clone()
            self._bytes += rows.nbytes
        self._rows[prompt] = rows
        while self._bytes > self.remembered and len(self._rows) > 1:
            self._bytes -= self._rows.pop(next(iter(self._rows))).nbytes
        return rows

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """The words of the prompts that the tokenizer can only write as its unknown token, each once."""
        return self._encoder.unknown_words(" ".join(prompts))

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings of the prompts, in order."""
        rows = [self._encode(prompt) for prompt in prompts]
        return torch.stack([pad(one, (0, 0, 0, self._encoder.text_len - len(one))) for one in rows]).to(self.device)


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
