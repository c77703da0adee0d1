"""Where the VAE's clips come from: the procedural world, or a folder of one's own videos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from reward_forcing.data.dataset import clip, world_scene
from reward_forcing.data.video_folder import open_video_folder
from reward_forcing.data.video_reader import frames_in, read_clip

logger = logging.getLogger(__name__)


class ClipSource(Protocol):
    """Clips [T, 3, H, W] float32 in [0, 1] for training, and others to validate with."""

    def training(self, generator: torch.Generator, frames: int) -> Tensor:
        """A random clip, chosen by `generator`."""
        ...

    def validation(self, number: int, frames: int) -> Tensor:
        """Validation clip `number`, from 0 on."""
        ...


class WorldClips:
    """Scenes of the world, in square frames of `size` pixels, from a random moment on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def training(self, generator: torch.Generator, frames: int) -> Tensor:
        """A training scene."""
        scene = int(torch.randint(2**40, (), generator=generator))
        start = int(torch.randint(160, (), generator=generator))
        return clip(world_scene(scene), frames, self.size, start)

    def validation(self, number: int, frames: int) -> Tensor:
        """A validation scene from its beginning."""
        return clip(world_scene(number, "validation"), frames, self.size)


class FolderClips:
    """Stretches of the videos and images in a folder, at `fps` and cropped and resized to `size` (height, width).

    The last `kept` files that are long enough for validation are not trained with. For a clip of some length all files
    that are long enough are drawn alike. longest: frames of the longest clip, of training or validation, that some file
    must hold. Raises as `open_video_folder` does, and ValueError for too few files.
    """

    def __init__(
        self, folder: Path, fps: float, size: tuple[int, int], longest: int, kept: int, kept_frames: int
    ) -> None:
        found = open_video_folder(folder, captioned=False)
        for skipped in found.skipped:
            logger.warning("skipped %s", skipped)
        self.fps, self.size = fps, size
        files = [(folder / video.name, frames_in(video.info.seconds, fps)) for video in found.videos]
        self._kept = [file for file in files if file[1] >= kept_frames][-kept:]
        self._trained = [file for file in files if file not in self._kept]
        held = max((frames for _, frames in self._trained), default=0)
        if len(self._kept) < kept or held < longest:
            raise ValueError(
                f"'{folder}' should hold {kept} files of {kept_frames} frames at {fps:g} fps to validate with and "
                f"others of {longest} to train with; {len(self._kept)} of its {len(files)} could validate, "
                f"the others have up to {held} frames; give more files, or ask for less (validation_clips, phases)"
            )

    def training(self, generator: torch.Generator, frames: int) -> Tensor:
        """A stretch from a random frame on."""
        long_enough = [file for file in self._trained if file[1] >= frames]
        path, held = long_enough[int(torch.randint(len(long_enough), (), generator=generator))]
        start = int(torch.randint(held - frames + 1, (), generator=generator))
        return read_clip(path, start / self.fps, frames, self.fps, self.size)

    def validation(self, number: int, frames: int) -> Tensor:
        """The beginning of a kept file, over again if there are fewer."""
        path, _ = self._kept[number % len(self._kept)]
        return read_clip(path, 0.0, frames, self.fps, self.size)
