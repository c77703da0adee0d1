"""Brings clips of any size and rate to one form, so that the same numbers are taken of all of them.

T frames, H W pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from pydantic import PositiveFloat, PositiveInt

from reward_forcing.config import Settings
from reward_forcing.data.scenes import FPS
from reward_forcing.data.video_reader import fit, frames_in, nearest_in_time
from reward_forcing.optical_flow import Pixels


class Form(Settings):
    """Pixels of a frame and frames per second."""

    height: PositiveInt
    width: PositiveInt
    fps: PositiveFloat

    def __str__(self) -> str:
        """`64x64 at 16`, width first."""
        return f"{self.width}x{self.height} at {self.fps:g}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


WORLD_FORM = Form(height=64, width=64, fps=FPS)
"""In which the procedural world is drawn, and its detectors see best."""


def matched(clip: Pixels, fps: float, form: Form) -> Pixels:
    """A clip uint8 [T, H, W, 3] of `fps` frames per second in another form: the rule of `video_reader.read_clip`.

    At 0, 1 / form.fps, ... the frame nearest in time, the earlier of two, for as long as the clip lasts; cropped around
    the middle to the form's shape and resized with antialiasing. A clip of that form comes back as it is.
    """
    if (*clip.shape[1:3], fps) == (*form.size, form.fps):
        return clip
    times = [number / form.fps for number in range(frames_in(len(clip) / fps, form.fps))]
    chosen = nearest_in_time(((number / fps, frame) for number, frame in enumerate(clip)), times, 1 / fps)
    return np.stack([_fit(frame, form.size) for _, frame in chosen])


def _fit(frame: Pixels, size: tuple[int, int]) -> Pixels:
    return frame if frame.shape[:2] == size else fit(Image.fromarray(frame), size)
