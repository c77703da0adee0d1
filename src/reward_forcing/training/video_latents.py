"""Owns stores of encoded clips of one's own videos: made once from a folder and a VAE, read at random.

    OUT/clips.jsonl                  every clip of the plan: file, second it begins at, captions
    OUT/prompts.txt                  all captions, each once, one a line: what `dmd` and `re_dmd` take as `prompts`
    OUT/skipped.jsonl                files that give no clip, and why
    OUT/shard_00000.safetensors      latents [m, F, C, h, w] float16, and `clip` [m], their numbers in the plan
    OUT/shard_00000.skipped.jsonl    clips of the shard that could not be decoded, and why

A clip that cannot be decoded is left out of its shard, and nothing else changes. Captions are no part of the latents:
the same command again takes over changed ones.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from safetensors import safe_open
from torch import Tensor

from reward_forcing.data.video_folder import Clip, Skipped
from reward_forcing.data.video_reader import read_clip
from reward_forcing.training.networks import load_vae, vae_geometry
from reward_forcing.training.shards import Manifest, find_shards, shard_path, write_shards, write_whole

CLIPS, PROMPTS, SKIPPED = "clips.jsonl", "prompts.txt", "skipped.jsonl"
EXAMPLES = 6


class VideoLatentsManifest(Manifest):
    """What a store holds. clips: SHA-256 of the plan without captions, which may change.

    frames, height, width, fps: of each clip, in pixels. vae: SHA-256 of the VAE's weights. count: clips of the plan;
    those that could not be decoded are not in the store.
    """

    source: Literal["videos"] = "videos"
    clips: str
    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveFloat
    vae: str


def plan_hash(clips: Sequence[Clip]) -> str:
    """SHA-256 of what is cut from which file, as hex."""
    return hashlib.sha256(json.dumps([(clip.name, clip.start) for clip in clips]).encode()).hexdigest()


def encode_videos(
    folder: Path,
    clips: Sequence[Clip],
    skipped: Sequence[Skipped],
    vae: Path,
    out: Path,
    manifest: VideoLatentsManifest,
    share: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
) -> Iterator[int]:
    """Encode part `share` (i of n) of the clips of a folder with the VAE in another; yields the shards done.

    skipped: files that give no clip, for the record. Raises ValueError if `out` holds another store.
    """
    encoder = load_vae(vae, device)
    geometry, size = vae_geometry(vae, manifest.height, manifest.width), (manifest.height, manifest.width)
    frames, channels = geometry.latent_frames_of(manifest.frames), encoder.vae.config["z_dim"]
    none = torch.empty(0, frames, channels, geometry.latent_height, geometry.latent_width, dtype=torch.float16)

    @torch.inference_mode()
    def make(items: range) -> dict[str, Tensor]:
        latents, encoded, damaged = [none], [], []
        for item in items:
            clip = clips[item]
            try:
                pixels = read_clip(folder / clip.name, clip.start, manifest.frames, manifest.fps, size)
            except ValueError as error:
                damaged.append(Skipped(clip.name, str(error), clip.start))
                continue
            latents.append(encoder.encode(pixels[None])[0].half().cpu())
            encoded.append(item)
        if damaged:  # before its shard: where the shard is, so is this
            _write(_skipped_path(out, items.start // manifest.shard_size), _lines(damaged))
        return {"latents": torch.cat(latents), "clip": torch.tensor(encoded, dtype=torch.int64)}

    for done in write_shards(out, manifest, make, share):
        if done == 0:
            prompts = dict.fromkeys(caption for clip in clips for caption in clip.captions)
            _write(out / CLIPS, _lines(clips))
            _write(out / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts))
            _write(out / SKIPPED, _lines(skipped))
        yield done


def skipped_of(out: Path, manifest: VideoLatentsManifest) -> list[Skipped]:
    """All that a store could not use so far: files, then clips."""
    paths = [out / SKIPPED, *(_skipped_path(out, shard) for shard in range(manifest.shards))]
    return [Skipped(**row) for path in paths if path.is_file() for row in _rows(path)]


class VideoLatents:
    """Encoded clips of one's own videos, read at random from the disk: nothing but their captions is kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete, ValueError if it holds no clip."""
        self.folder = folder
        made_by = f"rforce data encode FOLDER --vae VAE --text TEXT --out {folder}"
        self.manifest, files = find_shards(folder, VideoLatentsManifest, made_by)
        self._shards = [safe_open(file, "pt") for file in files]
        numbers = [shard.get_tensor("clip").tolist() for shard in self._shards]
        self._starts = list(accumulate(map(len, numbers), initial=0))
        if not len(self):
            raise ValueError(f"'{folder}' holds no clip: none could be decoded ({folder}/shard_*.{SKIPPED})")
        rows = list(_rows(folder / CLIPS))
        self._captions = [tuple(rows[number]["captions"]) for some in numbers for number in some]
        self.shape: tuple[int, ...] = tuple(self._shards[0].get_slice("latents").get_shape()[1:])

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def examples(self) -> tuple[str, ...]:
        """The first captions of the store."""
        return tuple(dict.fromkeys(captions[0] for captions in self._captions))[:EXAMPLES]

    def read(self, indices: Sequence[int], frames: int) -> Tensor:
        """Float32 latents [B, frames, C, h, w]; see `latents.Latents.read`."""
        return torch.cat([self._latents(index)[:, :frames] for index in indices]).float()

    def _latents(self, index: int) -> Tensor:
        shard = bisect_right(self._starts, index) - 1
        place = index - self._starts[shard]
        return self._shards[shard].get_slice("latents")[place : place + 1]

    def caption(self, index: int, seed: int) -> str:
        """One of the captions of clip `index`, chosen by `seed`."""
        captions = self._captions[index]
        return captions[seed % len(captions)]


def _skipped_path(out: Path, shard: int) -> Path:
    return shard_path(out, shard).with_suffix(f".{SKIPPED}")


def _lines(values: Sequence[Clip | Skipped]) -> str:
    return "".join(json.dumps(asdict(value), ensure_ascii=False) + "\n" for value in values)


def _rows(path: Path) -> Iterator[dict]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
