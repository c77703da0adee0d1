"""Owns stores of encoded clips of the procedural world: made once from a split of it and a VAE, read at random.

Latents [n, F, C, h, w] in float16. Clip `i` is scene `i` of the split, or switch `i`, so captions are drawn afresh
whenever a clip is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor

from reward_forcing.config import unknown
from reward_forcing.data.dataset import clip, wording, world_scene
from reward_forcing.data.scenes import KINDS
from reward_forcing.data.switches import switch_captions, switched_scene
from reward_forcing.geometry import Geometry
from reward_forcing.training.networks import load_vae
from reward_forcing.training.shards import Manifest, read_shards, write_shards


class LatentsManifest(Manifest):
    """What a store holds. vae: SHA-256 of the VAE's weights. frames: pixel frames of each clip.

    first: the scene of clip 0; the others count up. kinds: the only kinds of scene, in turn; empty for all kinds.
    switch_chunk: 0 for clips of one scene; otherwise each clip is a switch of prompts at a multiple of so many latent
    frames, all places in turn.
    """

    split: Literal["train", "validation", "held_out"]
    frames: int
    size: int
    vae: str
    first: NonNegativeInt = 0
    kinds: tuple[str, ...] = ()
    switch_chunk: NonNegativeInt = 0

    @model_validator(mode="after")
    def _kinds_are_of_the_world(self) -> LatentsManifest:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(unknown("scene kind", kind, KINDS))
        if self.kinds and self.switch_chunk:
            raise ValueError("a store of switches takes all kinds of scene; leave kinds out")
        return self

    def kind(self, index: int) -> str | None:
        """The kind of scene that clip `index` must have; None for any."""
        return self.kinds[index % len(self.kinds)] if self.kinds else None

    def switch(self, index: int, latent_frames: int) -> int:
        """The latent frame at which clip `index` of `latent_frames` switches."""
        places = (latent_frames - 1) // self.switch_chunk
        return self.switch_chunk * (1 + index % places)


def encode_world(vae: Path, out: Path, manifest: LatentsManifest, share: tuple[int, int] = (0, 1)) -> Iterator[int]:
    """Encode part `share` (i of n) of a split of the world with the VAE in a folder; yields the shards done.

    Raises ValueError if the clips are too short to switch inside.
    """
    encoder = load_vae(vae)
    geometry = Geometry(manifest.size, manifest.size)
    latent_frames = geometry.latent_frames_of(manifest.frames)
    if manifest.switch_chunk >= latent_frames:
        raise ValueError(
            f"clips of {manifest.frames} frames have {latent_frames} latent frames: too short to switch after "
            f"{manifest.switch_chunk}"
        )

    def pixels(item: int) -> Tensor:
        scene = manifest.first + item
        if not manifest.switch_chunk:
            return clip(world_scene(scene, manifest.split, manifest.kind(item)), manifest.frames, manifest.size)
        at = geometry.frames_of(manifest.switch(item, latent_frames))
        return switched_scene(scene, manifest.split, at).clip(at, manifest.frames, manifest.size)

    @torch.inference_mode()
    def make(items: range) -> dict[str, Tensor]:
        return {"latents": torch.cat([encoder.encode(pixels(item)[None])[0].half() for item in items])}

    return write_shards(out, manifest, make, share)


SAMPLE_PROMPTS = (
    "a red ball bounces over a blue floor",
    "a green square moves to the right on a black background",
    "a yellow triangle spins clockwise on a gray background",
    "a white ball swings on a rope on a purple background",
    "a big orange square grows and shrinks in front of a green wall",
    "a purple ball moves in a circle clockwise on a white background",
)


class WorldLatents:
    """Encoded clips of the world, read at random; all of them are held in memory (43 kB a clip at 64 x 64 x 81)."""

    examples = SAMPLE_PROMPTS

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete."""
        self.folder = folder
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
        manifest = self.manifest
        return wording(manifest.first + index, manifest.split, seed, manifest.kind(index))

    @property
    def switches(self) -> list[int]:
        """The latent frames at which clips of this store switch; empty if they hold one scene each."""
        chunk = self.manifest.switch_chunk
        return list(range(chunk, self.shape[0], chunk)) if chunk else []

    def switching_at(self, frame: int) -> range:
        """The clips that switch at latent frame `frame`, one of `switches`."""
        return range(frame // self.manifest.switch_chunk - 1, len(self), len(self.switches))

    def switch_captions(self, index: int, seed: int) -> tuple[str, str]:
        """Wordings of clip `index` before and after its switch, chosen by `seed`."""
        at = Geometry(self.manifest.size, self.manifest.size).frames_of(self.manifest.switch(index, self.shape[0]))
        first, second = switch_captions(switched_scene(self.manifest.first + index, self.manifest.split, at), seed)
        return first.text, second.text
