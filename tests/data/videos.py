"""Small videos for tests: each frame is one grey level, so that it tells its own number."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 8
"""Grey levels from one frame to the next."""
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx-vp9"}


def write_levels(
    path: Path,
    frames: int = 24,
    fps: int = 8,
    size: tuple[int, int] = (32, 48),
    title: str | None = None,
    **stream_settings: Any,
) -> Path:
    """A video at `path` whose frame `n` has the grey level 16 + 8 n, dark stripes of 8 pixels at its left and right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[path.suffix], rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 6
        rotation = stream_settings.pop("rotation", 0)
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        if title:
            container.metadata["title"] = title
        for number in range(frames):
            picture = np.full((*size, 3), 16 + STEP * number, np.uint8)
            picture[:, :8] = picture[:, -8:] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def numbers_of(clip: Any) -> list[int]:
    """The numbers that the middles of frames [T, 3, H, W] tell."""
    height, width = clip.shape[2] // 2, clip.shape[3] // 2
    levels = clip[:, :, height - 2 : height + 2, width - 2 : width + 2].mean(dim=(1, 2, 3)) * 255
    return [round(float(level - 16) / STEP) for level in levels]
