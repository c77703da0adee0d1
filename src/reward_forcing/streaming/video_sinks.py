"""Where encoded frames go: an H.264, VP9 or GIF file through PyAV, or a folder of PNG images.

A sink takes pictures [height, width, 3] uint8 one by one and passes each on as soon as its format allows, so that a
process that is killed leaves a file that plays up to about the last half second.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, PngImagePlugin

BT709 = 1  # the number of ITU-R BT.709 for primaries, transfer and matrix alike (ITU-T H.273)
LIMITED_RANGE = 1


class PictureSink(Protocol):
    """A destination of pictures; `close` finishes the file and must follow the last `add`."""

    def add(self, picture: np.ndarray) -> None:
        """Write one picture [height, width, 3] uint8."""
        ...

    def close(self) -> None:
        """Write what is still held back, and the end of the file."""
        ...


class VideoFileSink:
    """A .mp4 (H.264) or .webm (VP9) file in BT.709 4:2:0; odd sizes repeat their last row or column.

    The .mp4 is written in fragments and turned into an ordinary file by `close`.
    """

    _MUXER: dict[str, dict[str, str]] = {  # noqa: RUF012
        ".mp4": {"movflags": "hybrid_fragmented", "frag_duration": "500000", "flush_packets": "1"},
        ".webm": {"cluster_time_limit": "500", "flush_packets": "1"},
    }
    # No look-ahead: a frame that the encoder still holds is lost when the process is killed.
    _CODEC: dict[str, tuple[str, dict[str, str]]] = {  # noqa: RUF012
        ".mp4": ("libx264", {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}),
        ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "lag-in-frames": "0"}),
    }

    def __init__(self, path: Path, fps: Fraction, height: int, width: int, metadata: dict[str, str]) -> None:
        codec, options = self._CODEC[path.suffix.lower()]
        self._container = _open_container(path, metadata, self._MUXER[path.suffix.lower()])
        self._stream: Any = self._container.add_stream(codec, rate=fps, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = (
            height + height % 2,
            width + width % 2,
            "yuv420p",
        )
        context = self._stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        """Encode one picture."""
        height, width, _ = picture.shape
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts = self._count
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the stream and the container."""
        if self._count:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class GifSink:
    """An animated .gif; every frame has a palette of its own, of 256 colours."""

    def __init__(self, path: Path, fps: Fraction, height: int, width: int, metadata: dict[str, str]) -> None:
        if fps > 50:
            raise ValueError(f"a .gif shows at most 50 frames per second, got {float(fps):g}; write .mp4 or .webm")
        self._container = _open_container(path, metadata, {"flush_packets": "1"})
        self._stream: Any = self._container.add_stream("gif", rate=fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "pal8"
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        """Encode one picture."""
        image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
        palette = np.zeros((256, 4), np.uint8)
        colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[:, 0], palette[: len(colours), 1:] = 255, colours  # alpha, red, green, blue
        frame: Any = av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")  # type: ignore[arg-type]
        frame.pts = self._count
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the stream and the container."""
        if self._count:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class PngSink:
    """A folder of images 000000.png, 000001.png, ...; rate and metadata stand in the text of each."""

    def __init__(self, path: Path, fps: Fraction, height: int, width: int, metadata: dict[str, str]) -> None:
        self._folder = path
        self._text = PngImagePlugin.PngInfo()
        for key, value in {**metadata, "fps": str(fps)}.items():
            self._text.add_itxt(key, value)
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        """Write one image; the first one takes the place of all images of an older video."""
        if self._count == 0:
            for old in png_frames(self._folder):
                old.unlink()
        Image.fromarray(picture).save(self._folder / f"{self._count:06d}.png", pnginfo=self._text)
        self._count += 1

    def close(self) -> None:
        """Nothing is left to write."""


def png_frames(folder: Path) -> list[Path]:
    """The images that a `PngSink` wrote into `folder`, in order."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9]*.png"), key=lambda path: int(path.stem))


def _open_container(path: Path, metadata: dict[str, str], options: dict[str, str]) -> OutputContainer:
    container = av.open(str(path), "w", options=options)
    container.metadata.update(metadata)
    return container
