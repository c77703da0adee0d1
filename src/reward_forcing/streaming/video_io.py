"""Frames to video files and back, written as they come.

Owns paths, formats and the shape of frames; the encoders are in `video_sinks`. T frames, H W pixel size.
"""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image
from torch import Tensor

from reward_forcing.config import unknown
from reward_forcing.streaming.video_sinks import GifSink, PictureSink, PngSink, VideoFileSink, png_frames

FORMATS: dict[str, type[VideoFileSink] | type[GifSink] | type[PngSink]] = {
    ".mp4": VideoFileSink,
    ".webm": VideoFileSink,
    ".gif": GifSink,
    "": PngSink,
}
"""The sink of each file suffix; a path without one is a folder of PNG images."""

SHOWN_SIZE = 384
"""Pixels of the shorter side up to which small frames are enlarged for viewing."""


class VideoWriter:
    """A video file that grows with every `write`; leaving the `with` block, by an error too, finishes it.

    Made by `open_writer`. path: the file. frames: how many were written.
    """

    def __init__(self, sink: PictureSink, path: Path, size: tuple[int, int], scale: int, resample: str) -> None:
        self.path = path
        self.frames = 0
        self._sink = sink
        self._size = size
        self._scale = scale
        self._resample = resample
        self._is_open = True

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W], floats in [0, 1] (values beyond are clipped) or uint8.

        Raises ValueError for another shape, size or dtype, for NaN, and after `close`.
        """
        if not self._is_open:
            raise ValueError(f"{self.path} is closed; open another writer")
        if frames.ndim != 4 or frames.shape[1] != 3 or tuple(frames.shape[2:]) != self._size:
            raise ValueError(f"expected frames [T, 3, {self._size[0]}, {self._size[1]}], got {list(frames.shape)}")
        pictures = enlarge(to_uint8(frames), self._scale, self._resample)
        for picture in pictures.permute(0, 2, 3, 1).contiguous().numpy():
            self._sink.add(picture)
            self.frames += 1

    def close(self) -> None:
        """Finish the file; without a single frame, remove it. Closing again does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._sink.close()
        if self.frames == 0:
            _remove_if_empty(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_writer(
    path: str | Path,
    fps: float,
    size: tuple[int, int],
    *,
    scale: int = 1,
    resample: Literal["nearest", "bicubic"] = "nearest",
    title: str | None = None,
    comment: str | None = None,
    overwrite: bool = False,
) -> VideoWriter:
    """A writer to `path`: .mp4 (H.264), .webm (VP9), .gif, or without a suffix a folder of PNG images.

    size: (height, width) of the frames to come. scale: whole-number enlargement on writing. title, comment: stored in
    the file, see `read_metadata`. Missing folders are made. A process that is killed leaves a file that plays.
    Raises ValueError as `check_output` does, and for a bad rate, size, scale or resampling.
    """
    path = check_output(path, overwrite)
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    if min(size) < 1 or scale < 1:
        raise ValueError(f"size and scale must be at least 1, got {size} and {scale}")
    if resample not in ("nearest", "bicubic"):
        raise ValueError(unknown("resampling", resample, ("nearest", "bicubic")))
    _reserve(path, overwrite)
    metadata = {key: value for key, value in (("title", title), ("comment", comment)) if value is not None}
    rate = Fraction(fps).limit_denominator(1001)
    sink = FORMATS[path.suffix.lower()](path, rate, size[0] * scale, size[1] * scale, metadata)
    return VideoWriter(sink, path, size, scale, resample)


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """`path`, if a video can be written there; call it before models are loaded.

    Raises ValueError for an unknown format, a video that exists (unless `overwrite`) and a folder that cannot be
    written to or made.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        suffixes = [suffix for suffix in FORMATS if suffix]
        raise ValueError(f"{path}: {unknown('video format', path.suffix, suffixes)}; no suffix writes PNG images")
    is_folder = path.suffix == ""
    if path.exists() and path.is_dir() != is_folder:
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'file'}; choose another name")
    if not overwrite and (any(path.iterdir()) if path.is_dir() else path.exists()):
        raise ValueError(f"{path} exists; choose another name, such as {free_path(path)}, or allow overwriting")
    place = path if path.exists() else path.parent
    while not place.exists():
        place = place.parent
    if place != path and not place.is_dir():
        raise ValueError(f"cannot write {path}: {place} is not a folder")
    if not os.access(place, os.W_OK):
        raise ValueError(f"cannot write {path}: no permission to write to {place}")
    return path


def free_path(path: str | Path) -> Path:
    """`path`, or the first of path-2, path-3, ... (before the suffix) at which nothing exists."""
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


def read_video(path: str | Path) -> tuple[Tensor, float]:
    """Frames [T, 3, H, W] uint8 and frames per second of a video file or of a folder that `open_writer` made.

    Reads what a killed writer left, too. Raises ValueError if there is no video at `path`.
    """
    path = Path(path)
    if path.is_dir():
        images = [Image.open(image) for image in png_frames(path)]
        if not images:
            raise ValueError(f"{path} holds no frames; expected images 000000.png, 000001.png, ...")
        pictures = [np.asarray(image.convert("RGB")) for image in images]
        return _stack(pictures), float(Fraction(images[0].info.get("fps", "16")))
    with _open_input(path) as container:
        stream = container.streams.video[0]
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        if not decoded:
            raise ValueError(f"{path} holds no frames")
        (start, _), (end, _) = decoded[0], decoded[-1]
        fps = float(stream.average_rate or 0)
        if container.format.name == "gif" and start != end:
            fps = (len(decoded) - 1) / (end - start)  # the header's rate is that of a single, rounded delay
        return _stack([picture for _, picture in decoded]), fps


def read_metadata(path: str | Path) -> dict[str, str]:
    """What is stored in the video at `path`, keys in lower case: `title` and `comment` if they were given."""
    path = Path(path)
    if path.is_dir():
        frames = png_frames(path)
        return {str(key): str(value) for key, value in Image.open(frames[0]).info.items()} if frames else {}
    with _open_input(path) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8 on the CPU, rounded to nearest and clipped; uint8 passes unchanged.

    Raises ValueError for NaN and for other integers.
    """
    if frames.dtype == torch.uint8:
        return _to_host(frames)
    if not frames.is_floating_point():
        raise ValueError(f"expected frames as floats in [0, 1] or uint8, got {frames.dtype}")
    if frames.isnan().any():
        raise ValueError("the frames hold NaN; decode in float32 or look at the latents")
    return _to_host(frames.float().clamp(0, 1).mul(255).round().to(torch.uint8))


def _to_host(pictures: Tensor) -> Tensor:
    """The pictures on the CPU; a GPU's go to page-locked memory, in one copy at the bus's full rate."""
    if pictures.device.type != "cuda":
        return pictures.cpu()
    here = torch.empty(pictures.shape, dtype=pictures.dtype, pin_memory=True)
    here.copy_(pictures, non_blocking=True)
    torch.cuda.current_stream(pictures.device).synchronize()
    return here


def viewing_scale(height: int, width: int) -> int:
    """How many times frames are enlarged so that they can be looked at; 1 for large ones."""
    return max(1, SHOWN_SIZE // min(height, width))


def enlarge(frames: Tensor, scale: int, resample: str = "nearest") -> Tensor:
    """uint8 frames [T, 3, H, W] `scale` times as high and wide, by repeated pixels or bicubic."""
    if scale == 1:
        return frames
    if resample == "nearest":
        return frames.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    # in uint8 throughout: 75 times as fast as in float32, equal to within one level
    return F.interpolate(frames.contiguous(memory_format=torch.channels_last), scale_factor=scale, mode="bicubic")


def _reserve(path: Path, overwrite: bool) -> None:
    """Make the folder or an empty file, so that no other process takes the name while models load."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch(exist_ok=overwrite)
        else:
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.is_file() and path.stat().st_size == 0:
        path.unlink()


def _stack(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _open_input(path: Path) -> InputContainer:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error}") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path} holds no video stream")
    return container
