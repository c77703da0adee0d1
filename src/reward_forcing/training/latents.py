"""Owns the store of encoded clips that transformers are trained on: made once from the world and a VAE, read at random.

Latents [n, F, C, h, w] in float16. Clip `i` is scene `i` of the split, so captions are drawn afresh from the scene
whenever a clip is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from reward_forcing.data.dataset import clip, wording, world_scene
from reward_forcing.training.networks import load_vae
from reward_forcing.training.shards import Manifest, read_shards, write_shards


class LatentsManifest(Manifest):
    """What a store holds. vae: SHA-256 of the VAE's weights. frames: pixel frames of each clip."""

    split: Literal["train", "validation", "held_out"]
    frames: int
    size: int
    vae: str


def encode_world(vae: Path, out: Path, manifest: LatentsManifest, share: tuple[int, int] = (0, 1)) -> Iterator[int]:
    """Encode part `share` (i of n) of a split of the world with the VAE in a folder; yields the shards done."""
    encoder = load_vae(vae)

    @torch.inference_mode()
    def make(items: range) -> dict[str, Tensor]:
        clips = (clip(world_scene(item, manifest.split), manifest.frames, manifest.size) for item in items)
        return {"latents": torch.cat([encoder.encode(frames[None])[0].half() for frames in clips])}

    return write_shards(out, manifest, make, share)


class WorldLatents:
    """Encoded clips of the world, read at random; all of them are held in memory (43 kB a clip at 64 x 64 x 81)."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete."""
        self.manifest, tensors = read_shards(folder, LatentsManifest, f"rforce data make --vae VAE --out {folder}")
        self.latents = tensors["latents"]

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, C, h, w) of a clip."""
        return tuple(self.latents.shape[1:])

    def read(self, indices: Sequence[int], frames: int) -> Tensor:
        """Float32 latents [B, frames, C, h, w]: the first `frames` latent frames of each clip, a valid shorter clip."""
        return self.latents[list(indices), :frames].float()

    def caption(self, index: int, seed: int) -> str:
        """A wording of clip `index`, chosen by `seed`."""
        return wording(index, self.manifest.split, seed)
