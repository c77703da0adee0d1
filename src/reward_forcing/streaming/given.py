"""What a video begins with instead of noise: a picture, the end of a video, or latents.

B batch, T pixel frames, H W pixel size, F latent frames, C latent channels, h w latent size, r temporal factor.
Owns how given frames are read, brought to a model's size and rate, cut to what latent frames hold and encoded piece by
piece. Knows no rollout; what becomes of the pieces is the stream's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from reward_forcing.data.video_reader import fit, look_at, nearest_in_time, read_pictures
from reward_forcing.geometry import Geometry
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.rollout import piece_lengths
from reward_forcing.streaming.video_io import read_video, to_uint8

Picture = str | Path | Image.Image | Tensor
"""A file, an image, or a tensor [3, H, W], or [B, 3, H, W] with one for each sample; floats in [0, 1] or uint8."""

Clip = str | Path | Tensor
"""A file, a folder of images that this package wrote, or frames [T, 3, H, W] or [B, T, 3, H, W] at the model's rate."""

SMALLEST_VIDEO = 2
"""Latent frames below which nothing moves, so that a video would be a picture."""

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for damaged files


@dataclass(frozen=True)
class Given:
    """What a video begins with, at the model's size: frames, or `latents` in their place.

    kind: where it is from. content: frames [1 or B, T, 3, H, W], uint8 or floats in [0, 1], with T = 1 + r (F - 1), or
    latents [1 or B, F, C, h, w]. latent_frames: F. shown: whether the video shows what is given, or goes on from it.
    """

    kind: Literal["image", "video", "latents"]
    content: Tensor
    latent_frames: int
    shown: bool = True

    @property
    def batch(self) -> int:
        """Samples; what is given once counts for all."""
        return self.content.shape[0]

    @property
    def as_argument(self) -> dict[str, Tensor]:
        """The given frames or latents as the argument of `StreamingVideoPipeline.stream` that they are."""
        return {self.kind: self.content[:, 0] if self.kind == "image" else self.content}

    @property
    def hidden_frames(self) -> int:
        """Latent frames that the video does not show."""
        return 0 if self.shown else self.latent_frames

    def pieces(self, vae: StreamingVAE, geometry: Geometry, batch: int) -> Iterator[Tensor]:
        """The latents [batch, f, C, h, w], piece by piece as `Rollout.prime` cuts them; each is encoded when asked for.

        The first frames are encoded as the beginning of a video. Nothing keeps the frames once all pieces are made.
        """
        state, done = None, 0
        for length in piece_lengths(self.latent_frames, geometry.chunk_frames):
            if self.kind == "latents":
                latents = self.content[:, done : done + length]
            else:
                part = self.content[:, geometry.frames_of(done) : geometry.frames_of(done + length)]
                latents, state = vae.encode(_as_floats(part), state)
            done += length
            yield latents.expand(batch, -1, -1, -1, -1)


def open_given(
    geometry: Geometry,
    channels: int,
    *,
    image: Picture | None = None,
    video: Clip | None = None,
    latents: Tensor | None = None,
    seconds: float | None = None,
    shown: bool = True,
) -> Given | None:
    """What a video of this geometry begins with, read and checked; None where nothing is given.

    A picture or frame of another size is cropped around its middle to the shape of the video and then resized. A file
    at another rate gives, for every frame of the video, that of its own which is nearest in time, counted back from
    its last. Of a video the last `seconds` are taken (None: all), and of these the last 1 + r (F - 1) frames, which F
    latent frames hold: up to r - 1 frames at the beginning are left out. channels: of a latent frame.
    Raises ValueError for more than one of image, video and latents, for a file that cannot be read, for a video of
    fewer than two latent frames or shorter than `seconds`, and for tensors of another form.
    """
    if sum(given is not None for given in (image, video, latents)) > 1:
        raise ValueError("a video begins with one thing: give an image, a video or latents, not several of them")
    if seconds is not None and video is None:
        raise ValueError("the seconds to take of a video need a video")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"the seconds to take of a video must be positive and finite, got {seconds:g}")
    if image is not None:
        return Given("image", _read_image(image, geometry), 1, shown)
    if video is not None:
        frames = _read_video(video, geometry, seconds)
        return Given("video", frames, geometry.latent_frames_of(frames.shape[1]), shown)
    if latents is not None:
        return Given("latents", _check_latents(latents, geometry, channels), latents.shape[1], shown)
    return None


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, upright, in 8-bit RGB; what is transparent becomes white, of a moving picture the first.

    Raises ValueError for a file that is no picture or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist" if not path.exists() else f"'{path}' is a folder, not a picture")
    try:
        with Image.open(path) as image:
            return _upright(image)
    except _UNREADABLE as error:
        reason = "it is of no format that is known" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"'{path}' is not a picture that can be read ({reason}); a video goes in as video") from error


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # which PIL would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _read_image(image: Picture, geometry: Geometry) -> Tensor:
    """The picture as one frame of the geometry's size, [1 or B, 1, 3, H, W]."""
    if isinstance(image, Tensor):
        pictures = image[None] if image.ndim == 3 else image
        return _of_size(_check_frames(pictures[:, None], "image", "[3, H, W] or [B, 3, H, W]", image.shape), geometry)
    picture = _upright(image) if isinstance(image, Image.Image) else read_picture(image)
    return torch.from_numpy(fit(picture, (geometry.height, geometry.width)).copy()).permute(2, 0, 1)[None, None]


def _read_video(video: Clip, geometry: Geometry, seconds: float | None) -> Tensor:
    """The last frames of a video, as many as latent frames hold, [1 or B, T, 3, H, W]."""
    if isinstance(video, Tensor):
        frames = video[None] if video.ndim == 4 else video
        _check_frames(frames, "video", "[T, 3, H, W] or [B, T, 3, H, W]", video.shape)
        count = _count("the video", frames.shape[1], frames.shape[1] / geometry.fps, geometry, seconds)
        return _of_size(frames[:, -count:], geometry)
    path, fps, size = Path(video), geometry.fps, (geometry.height, geometry.width)
    if path.is_dir():
        frames, rate = read_video(path)
        last, lasts = (len(frames) - 1) / rate, len(frames) / rate
        count = _count(f"'{path}'", int(last * fps + 1e-3) + 1, lasts, geometry, seconds)
        timed = iter([(number / rate, frame) for number, frame in enumerate(frames)])
        chosen = [frame for _, frame in nearest_in_time(timed, _times(last, count, fps), 1 / rate)]
        return _of_size(torch.stack(chosen)[None], geometry)
    info = look_at(path)
    lasts = info.last * info.frames / max(1, info.frames - 1)  # not every container tells how long the last frame does
    count = _count(f"'{path}'", int(info.last * fps + 1e-3) + 1, lasts, geometry, seconds)
    return read_pictures(path, _times(info.last, count, fps)[0], count, fps, size)[None]


def _count(name: str, frames: int, lasts: float, geometry: Geometry, seconds: float | None) -> int:
    """How many frames are taken of a video with `frames` at the model's rate, which `lasts` so many seconds."""
    if seconds is not None and seconds > lasts + 1e-3:
        raise ValueError(f"{name} lasts {lasts:.2f} s, shorter than the {seconds:g} s to take of it")
    wanted = frames if seconds is None else min(frames, int(seconds * geometry.fps + 1e-3))
    latent_frames, least = geometry.latent_frames_within(wanted), geometry.frames_of(SMALLEST_VIDEO)
    if latent_frames < SMALLEST_VIDEO:
        raise ValueError(
            f"{name} gives {wanted} frames at {geometry.fps} per second, and a video to continue needs {least} "
            f"({least / geometry.fps:.2f} s); give one of its pictures as an image"
        )
    return geometry.frames_of(latent_frames)


def _times(last: float, count: int, fps: float) -> list[float]:
    """`count` times, 1 / fps apart, that end at `last`."""
    return [max(0.0, last - number / fps) for number in reversed(range(count))]


def _check_frames(frames: Tensor, what: str, form: str, came: torch.Size) -> Tensor:
    """`frames` [B, T, 3, H, W], if they are of that form and hold colours."""
    if frames.ndim != 5 or frames.shape[2] != 3 or 0 in frames.shape:
        raise ValueError(f"expected the {what} as {form}, got {list(came)}")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(f"expected the {what} as floats in [0, 1] or uint8, got {frames.dtype}")
    low, high = frames.min().item(), frames.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"expected the {what} as floats in [0, 1] or uint8, got values from {low:g} to {high:g}")
    return frames


def _of_size(frames: Tensor, geometry: Geometry) -> Tensor:
    """Frames [B, T, 3, H, W] at the geometry's size; itself where they have it, else by `fit`, in uint8."""
    size = (geometry.height, geometry.width)
    if tuple(frames.shape[3:]) == size:
        return frames
    pictures = to_uint8(frames.flatten(0, 1)).permute(0, 2, 3, 1).numpy()
    fitted = np.stack([fit(Image.fromarray(np.ascontiguousarray(picture)), size) for picture in pictures])
    return torch.from_numpy(fitted).permute(0, 3, 1, 2).unflatten(0, frames.shape[:2])


def _check_latents(latents: Tensor, geometry: Geometry, channels: int) -> Tensor:
    form = (channels, geometry.latent_height, geometry.latent_width)
    if latents.ndim != 5 or 0 in latents.shape or tuple(latents.shape[2:]) != form:
        raise ValueError(f"expected the latents as [1 or B, F, {', '.join(map(str, form))}], got {list(latents.shape)}")
    if not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise ValueError(f"expected the latents as finite floats, got {latents.dtype} with others")
    return latents


def _as_floats(frames: Tensor) -> Tensor:
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
