"""The pictures of a report: film strips and small videos of clips, as data within the page."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from av.error import FFmpegError
from torch import Tensor

from reward_forcing.evaluation.results import Sample
from reward_forcing.streaming.contact_sheet import contact_sheet
from reward_forcing.streaming.video_io import open_writer, read_video

STRIP_FRAMES = 8
STRIP_SIDE = 64
VIDEO_SECONDS = 5.0
VIDEO_SIDES = (192, 128, 96, 64)
"""Shorter sides of a small video in pixels, each tried until it is below `VIDEO_BYTES`."""
VIDEO_BYTES = 400_000


@dataclass(frozen=True)
class Clip:
    """A clip for the page as data: URIs, or why there is none.

    strip: a PNG of so many frames. video, poster: an MP4 and its first frame as a PNG, where a video was wanted.
    """

    strip: str = ""
    frames: int = 0
    video: str = ""
    poster: str = ""
    problem: str = ""


def load_clip(folder: Path, sample: Sample, with_video: bool) -> Clip:
    """The pictures of a sample's clip. Without the file, or if it is no video, a `Clip` with a problem."""
    path = folder / sample.file
    if not sample.file or not path.exists():
        return Clip(problem=f"The clip {sample.file or sample.name} is missing.")
    try:
        frames, fps = read_video(path)
    except (ValueError, OSError, FFmpegError):
        return Clip(problem=f"The clip {sample.file} cannot be read as a video.")
    video = small_video(frames, fps) if with_video else None
    return Clip(
        strip=_data_uri("image/png", film_strip(frames, STRIP_FRAMES)),
        frames=min(STRIP_FRAMES, len(frames)),
        video=_data_uri("video/mp4", video) if video else "",
        poster=_data_uri("image/png", film_strip(frames, 1)) if video else "",
        problem="The video is too large for this page." if with_video and video is None else "",
    )


def film_strip(frames: Tensor, count: int) -> bytes:
    """A PNG with `count` of the frames [T, 3, H, W] uint8 side by side, evenly spaced from the first to the last.

    Large frames are brought to `STRIP_SIDE` on their shorter side.
    """
    chosen = frames[torch.linspace(0, len(frames) - 1, min(count, len(frames))).round().long()]
    file = BytesIO()
    contact_sheet(_at_most(chosen, STRIP_SIDE), columns=count, gap=1).save(file, "PNG", optimize=True)
    return file.getvalue()


def small_video(frames: Tensor, fps: float) -> bytes | None:
    """An MP4 of the first `VIDEO_SECONDS` of frames [T, 3, H, W] uint8, or None if none is below `VIDEO_BYTES`.

    Small frames are enlarged by repeated pixels to about `VIDEO_SIDES` on their shorter side, large ones reduced.
    The same frames give the same bytes.
    """
    frames = frames[: max(1, round(VIDEO_SECONDS * fps))]
    with tempfile.TemporaryDirectory() as folder:
        for side in VIDEO_SIDES:
            pictures = _at_most(frames, side)
            height, width = pictures.shape[2:]
            path = Path(folder) / f"{side}.mp4"
            with open_writer(path, fps, (height, width), scale=max(1, round(side / min(height, width)))) as writer:
                writer.write(pictures)
            if path.stat().st_size <= VIDEO_BYTES:
                return path.read_bytes()
    return None


def _at_most(frames: Tensor, side: int) -> Tensor:
    """Frames [T, 3, H, W] uint8 whose shorter side is at most `side`."""
    height, width = frames.shape[2:]
    scale = side / min(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    smaller = [F.interpolate(part.float(), size=size, mode="area").round().byte() for part in frames.split(16)]
    return torch.cat(smaller)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
