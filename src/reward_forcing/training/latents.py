"""What transformers are trained on: stores of encoded clips with captions, whatever they were made of.

Latents [n, F, C, h, w] in float16, read at random. `world_latents` and `video_latents` own the stores themselves.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from reward_forcing.config import unknown
from reward_forcing.training.shards import MANIFEST
from reward_forcing.training.video_latents import VideoLatents
from reward_forcing.training.world_latents import WorldLatents


class Latents(Protocol):
    """Encoded clips of one shape, found by number, with captions."""

    @property
    def examples(self) -> tuple[str, ...]:
        """A few captions to look at while a run lasts."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, C, h, w) of a clip."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int], frames: int) -> Tensor:
        """Float32 latents [B, frames, C, h, w]: the first `frames` latent frames of each clip, a valid shorter clip."""
        ...

    def caption(self, index: int, seed: int) -> str:
        """A caption of clip `index`, chosen by `seed`."""
        ...


SOURCES: dict[str, Callable[[Path], Latents]] = {"world": WorldLatents, "videos": VideoLatents}
"""The store of each `source` in a manifest; those of the world do not say it."""


def open_latents(folder: Path) -> Latents:
    """The store in a folder, of whichever source.

    Raises FileNotFoundError if it is missing or not complete, ValueError for a source that is not known.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"no latents in '{folder}' ({MANIFEST} is missing); make them: rforce data make --vae VAE (of the world) "
            "or rforce data encode (of your videos)"
        )
    source = json.loads(path.read_text()).get("source", "world")
    if source not in SOURCES:
        raise ValueError(f"'{path}': {unknown('source of latents', source, SOURCES)}")
    return SOURCES[source](folder)


class JoinedLatents:
    """Several stores of clips of one shape, read as one."""

    def __init__(self, stores: Sequence[Latents]) -> None:
        """Raises ValueError for stores of different shapes."""
        shapes = {store.shape for store in stores}
        if len(shapes) != 1:
            raise ValueError(f"the stores hold clips of different shapes: {sorted(shapes)}")
        self.stores = tuple(stores)
        self._starts = list(accumulate((len(store) for store in stores), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def examples(self) -> tuple[str, ...]:
        """Those of the first store."""
        return self.stores[0].examples

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, C, h, w) of a clip."""
        return self.stores[0].shape

    def _place(self, index: int) -> tuple[Latents, int]:
        store = bisect_right(self._starts, index) - 1
        return self.stores[store], index - self._starts[store]

    def read(self, indices: Sequence[int], frames: int) -> Tensor:
        """Float32 latents [B, frames, C, h, w]; see `Latents.read`."""
        return torch.cat([store.read([place], frames) for store, place in map(self._place, indices)])

    def caption(self, index: int, seed: int) -> str:
        """A caption of clip `index`, chosen by `seed`."""
        store, place = self._place(index)
        return store.caption(place, seed)
