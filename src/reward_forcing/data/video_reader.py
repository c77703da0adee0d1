"""From a video file to frames of a wanted rate and size; any container and codec that FFmpeg opens, and still images.

Knows no folders and no captions. T frames, H W pixels; times in seconds from the file's first frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

Picture = TypeVar("Picture")

SAME_TIME = 1e-6
"""Seconds by which two times may differ that are meant to be equal."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as its packets tell: seconds and frames, pixels of a frame as stored, and its title.

    last: when the last frame begins, in seconds from the first.
    """

    seconds: float
    last: float
    frames: int
    height: int
    width: int
    title: str

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return self.frames / self.seconds


def look_at(path: Path) -> VideoInfo:
    """What the video at `path` holds; every packet is read, nothing is decoded. Raises ValueError for another file."""
    with _reading(path), _open(path) as container:
        stream = container.streams.video[0]
        title = {key.lower(): value for key, value in container.metadata.items()}.get("title", "").strip()
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        if not packets:
            raise ValueError(f"'{path}' holds no frames")
        last = max(packets, key=lambda packet: packet.pts or 0)
        unit, begins = last.time_base or 1, (last.pts or 0) - min(packet.pts or 0 for packet in packets)
        seconds = float((begins + (last.duration or 0)) * unit)
        return VideoInfo(seconds, float(begins * unit), len(packets), stream.height, stream.width, title)


def frames_in(seconds: float, fps: float) -> int:
    """How many frames at `fps` a file of `seconds` gives; an image, and whatever is shorter than a frame, gives one."""
    return max(1, int(seconds * fps + 1e-3))


def read_clip(path: Path, start: float, frames: int, fps: float, size: tuple[int, int]) -> Tensor:
    """The frames that `read_pictures` reads, float32 in [0, 1]."""
    return read_pictures(path, start, frames, fps, size).float() / 255


def read_pictures(path: Path, start: float, frames: int, fps: float, size: tuple[int, int]) -> Tensor:
    """Frames [T, 3, H, W] uint8 at `start`, `start` + 1 / fps, ...: of the file's, those nearest in time.

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
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _pictures(path: Path, times: Sequence[float], size: tuple[int, int], seek: bool) -> list[np.ndarray] | None:
    """The pictures [H, W, 3] at these times, fewer if the file ends; None if seeking went past the first of them."""
    with _open(path) as container:
        begin, gap, aspect = _measures(container)
        if seek:
            try:
                container.seek(int((begin + times[0]) * av.time_base))
            except FFmpegError:
                return None
        pictures = []
        for number, (time, frame) in enumerate(nearest_in_time(_timed(path, container, begin), times, gap)):
            if seek and number == 0 and time > times[0] + gap:
                return None
            pictures.append(_picture(frame, aspect, size))
        return pictures


def pictures_of(path: Path, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """All pictures [H, W, 3] uint8 of a file at `fps`, one by one: chosen, cropped and resized as in `read_clip`.

    Raises ValueError, at the first of them or later, if the file cannot be read.
    """
    times = [number / fps for number in range(frames_in(look_at(path).seconds, fps))]
    with _reading(path), _open(path) as container:
        begin, gap, aspect = _measures(container)
        for _, frame in nearest_in_time(_timed(path, container, begin), times, gap):
            yield _picture(frame, aspect, size)


def _measures(container: InputContainer) -> tuple[float, float, float]:
    """Of the video in a container: the time of its first frame, seconds from frame to frame, a pixel's aspect."""
    stream = container.streams.video[0]
    begin = float((stream.start_time or 0) * (stream.time_base or 0))
    gap = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    return begin, gap, float(stream.sample_aspect_ratio or 1)


def _timed(path: Path, container: InputContainer, begin: float) -> Iterator[tuple[float, VideoFrame]]:
    """The frames from where the container stands, with their times."""
    for frame in container.decode(container.streams.video[0]):
        if frame.time is None:
            raise ValueError(f"'{path}' has frames without times; give it a container that has them, such as .mp4")
        yield frame.time - begin, frame


def nearest_in_time(
    timed: Iterator[tuple[float, Picture]], times: Sequence[float], gap: float
) -> Iterator[tuple[float, Picture]]:
    """From frames with their times, for each of the rising `times` the frame nearest to it, the earlier of two.

    The last frame lasts for `gap` seconds more; what would be later still is left out.
    """
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
    return fit(image, size, pixel_aspect)


def fit(image: Image.Image, size: tuple[int, int], pixel_aspect: float = 1) -> np.ndarray:
    """A picture [H, W, 3] uint8 cropped around its middle to the shape of `size` (height, width) and resized to it.

    pixel_aspect: width of the image's pixels over their height.
    """
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
