"""From a video file to frames of a wanted rate and size; any container and codec that FFmpeg opens, and still images.

Knows no folders and no captions. T frames, H W pixels; times in seconds from the file's first frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

SAME_TIME = 1e-6
"""Seconds by which two times may differ that are meant to be equal."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as its packets tell: seconds it lasts, pixels of a frame as stored, and its title."""

    seconds: float
    height: int
    width: int
    title: str


def look_at(path: Path) -> VideoInfo:
    """What the video at `path` holds; every packet is read, nothing is decoded. Raises ValueError for another file."""
    with _reading(path), _open(path) as container:
        stream = container.streams.video[0]
        title = {key.lower(): value for key, value in container.metadata.items()}.get("title", "").strip()
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        if not packets:
            raise ValueError(f"'{path}' holds no frames")
        last = max(packets, key=lambda packet: packet.pts or 0)
        length = (last.pts or 0) + (last.duration or 0) - min(packet.pts or 0 for packet in packets)
        return VideoInfo(float(length * (last.time_base or 1)), stream.height, stream.width, title)


def frames_in(seconds: float, fps: float) -> int:
    """How many frames at `fps` a file of `seconds` gives; an image, and whatever is shorter than a frame, gives one."""
    return max(1, int(seconds * fps + 1e-3))


def read_clip(path: Path, start: float, frames: int, fps: float, size: tuple[int, int]) -> Tensor:
    """Frames [T, 3, H, W] float32 in [0, 1] at `start`, `start` + 1 / fps, ...: of the file's, those nearest in time.

    Each is turned as the file says, cropped around its middle to the shape of `size` (height, width), pixels that are
    not square taken into account, and resized with antialiasing. Raises ValueError if the file cannot be read or ends
    too early.
    """
    times = [start + number / fps for number in range(frames)]
    with _reading(path):
        pictures = _pictures(path, times, size, seek=start > 0)
        if pictures is None:
            pictures = _pictures(path, times, size, seek=False)
    if pictures is None or len(pictures) < frames:
        got = len(pictures or ())
        raise ValueError(f"'{path}' ends {frames - got} frames before {times[-1] + 1 / fps:.2f} s")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _pictures(path: Path, times: Sequence[float], size: tuple[int, int], seek: bool) -> list[np.ndarray] | None:
    """The pictures [H, W, 3] at these times, fewer if the file ends; None if seeking went past the first of them."""
    with _open(path) as container:
        stream = container.streams.video[0]
        begin = float((stream.start_time or 0) * (stream.time_base or 0))
        gap = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        if seek:
            try:
                container.seek(int((begin + times[0]) * av.time_base))
            except FFmpegError:
                return None
        aspect = float(stream.sample_aspect_ratio or 1)
        pictures = []
        for number, (time, frame) in enumerate(_nearest(_timed(path, container, begin), times, gap)):
            if seek and number == 0 and time > times[0] + gap:
                return None
            pictures.append(_picture(frame, aspect, size))
        return pictures


def _timed(path: Path, container: InputContainer, begin: float) -> Iterator[tuple[float, VideoFrame]]:
    """The frames from where the container stands, with their times."""
    for frame in container.decode(container.streams.video[0]):
        if frame.time is None:
            raise ValueError(f"'{path}' has frames without times; give it a container that has them, such as .mp4")
        yield frame.time - begin, frame


def _nearest(
    timed: Iterator[tuple[float, VideoFrame]], times: Sequence[float], gap: float
) -> Iterator[tuple[float, VideoFrame]]:
    """For each of the rising `times` the frame nearest to it, the earlier of two; the last one lasts for `gap` more."""
    before, number = None, 0
    for after in timed:
        while number < len(times) and times[number] <= after[0] + SAME_TIME:
            is_nearer = before is not None and times[number] - before[0] <= after[0] - times[number] + SAME_TIME
            yield before if is_nearer else after  # pyright: ignore[reportReturnType]
            number += 1
        if number == len(times):
            return
        before = after
    while before is not None and number < len(times) and times[number] < before[0] + gap - SAME_TIME:
        yield before
        number += 1


def _picture(frame: VideoFrame, pixel_aspect: float, size: tuple[int, int]) -> np.ndarray:
    """A frame [H, W, 3] uint8 of `size`."""
    image = frame.to_image()
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
        pixel_aspect = 1 / pixel_aspect if frame.rotation % 180 else pixel_aspect
    height, width = size
    wanted = width / height / pixel_aspect  # in stored pixels
    crop_width, crop_height = min(image.width, image.height * wanted), min(image.height, image.width / wanted)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist")
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise ValueError(f"'{path}' holds no video stream")
    return container


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what FFmpeg says of a damaged file into a ValueError that names it."""
    try:
        yield
    except FFmpegError as error:
        raise ValueError(f"'{path}' is not a video that can be read: {error}") from error
