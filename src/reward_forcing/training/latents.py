"""Owns the store of encoded clips that transformers are trained on: made once from the world and a VAE, read at random.

A store is a folder: manifest.json and shards of latents [n, F, C, h, w] in float16. Clip `i` is scene `i` of the split,
so captions are drawn afresh from the scene whenever a clip is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.data.captions import Caption, caption
from reward_forcing.data.dataset import clip, world_scene
from reward_forcing.models.vae import StreamingVAE


class LatentsManifest(Settings):
    """What a store holds. vae: SHA-256 of the VAE's weights. frames: pixel frames of each clip."""

    count: int
    split: Literal["train", "validation", "held_out"]
    frames: int
    size: int
    shard_size: int
    vae: str


def load_vae(folder: Path) -> StreamingVAE:
    """The VAE of a diffusers folder, in float32, frozen. Raises FileNotFoundError if there is none."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no VAE in '{folder}' (config.json is missing); train it or give its folder")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    return StreamingVAE(vae.eval().requires_grad_(False))


def weights_hash(folder: Path) -> str:
    """SHA-256 over all safetensors files of a folder, as hex."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors weights in '{folder}'")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def encode_world(
    vae_folder: Path, out: Path, manifest: LatentsManifest, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, int]]:
    """Write the shards of this process's share (i of n) that `out` lacks; yields (shards done, shards to do).

    Stopped and started again it goes on behind the last whole shard. Raises ValueError if `out` holds another store.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "manifest.json"
    if path.is_file():
        held = LatentsManifest.model_validate_json(path.read_text())
        if held != manifest:
            raise ValueError(f"'{out}' holds another store ({held}); asked for {manifest}. Choose another folder")
    else:
        _write_atomically(path, manifest.model_dump_json(indent=2).encode())
    vae = load_vae(vae_folder)
    shards = range(share[0], -(-manifest.count // manifest.shard_size), share[1])
    for done, shard in enumerate(shards):
        yield done, len(shards)
        if not (file := _shard_path(out, shard)).is_file():
            first = shard * manifest.shard_size
            scenes = range(first, min(first + manifest.shard_size, manifest.count))
            latents = torch.cat([_encode(vae, index, manifest) for index in scenes])
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            save_file({"latents": latents.half()}, temporary)
            os.replace(temporary, file)
    yield len(shards), len(shards)


@torch.inference_mode()
def _encode(vae: StreamingVAE, index: int, manifest: LatentsManifest) -> Tensor:
    frames = clip(world_scene(index, manifest.split), manifest.frames, manifest.size)
    return vae.encode(frames[None])[0].clone()


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard_{shard:05d}.safetensors"


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


class WorldLatents:
    """Encoded clips of the world, read at random; all of them are held in memory (43 kB a clip at 64 x 64 x 81)."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"no latents in '{folder}' (manifest.json is missing); make them: rforce data make")
        self.manifest = LatentsManifest.model_validate(json.loads(path.read_text()))
        shards = [_shard_path(folder, i) for i in range(-(-self.manifest.count // self.manifest.shard_size))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise FileNotFoundError(f"'{folder}' lacks {len(missing)} of {len(shards)} shards, {missing[0]} first; "
                                    "run the same `rforce data make` again to complete it")  # fmt: skip
        parts = []
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                parts.append(file.get_tensor("latents"))
        self.latents = torch.cat(parts)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, C, h, w) of a clip."""
        return tuple(self.latents.shape[1:])

    def read(self, indices: Sequence[int], frames: int) -> Tensor:
        """Float32 latents [B, frames, C, h, w]: the first `frames` latent frames of each clip, a valid shorter clip."""
        return self.latents[list(indices), :frames].float()

    def caption(self, index: int, seed: int, held_out: bool = False) -> Caption:
        """A wording of clip `index`, chosen by `seed`."""
        scene = world_scene(index, self.manifest.split)
        return caption(scene, np.random.default_rng([seed, index]), held_out)
