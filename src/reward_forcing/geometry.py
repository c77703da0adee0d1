"""Sizes of a video in pixels, latents and tokens, and the conversions between them.

Owns all arithmetic on sizes and durations; nothing else in the package multiplies by 4, 8 or 16. Knows no tensors.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Frame size, chunking and compression factors of one video model.

    height, width: pixels. chunk_frames: latent frames generated together. spatial_factor, temporal_factor: pixels (or
    frames) per latent; the first latent frame holds a single pixel frame. patch: latent (frames, rows, columns) per
    token. fps: pixel frames per second.
    Raises ValueError for sizes that do not divide into whole tokens; the message names the nearest valid size.
    """

    height: int
    width: int
    chunk_frames: int = 3
    spatial_factor: int = 8
    temporal_factor: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    fps: int = 16

    def __post_init__(self) -> None:
        if len(self.patch) != 3:
            raise ValueError(f"patch must be (frames, rows, columns), got {self.patch}")
        for name in ("chunk_frames", "spatial_factor", "temporal_factor", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.patch) < 1:
            raise ValueError(f"patch must be at least 1 along every axis, got {self.patch}")
        if self.patch[0] != 1:
            raise ValueError(f"a token must lie within one latent frame: patch[0] must be 1, got {self.patch[0]}")
        self._check_multiple("height", self.height, self.spatial_factor * self.patch[1])
        self._check_multiple("width", self.width, self.spatial_factor * self.patch[2])

    @staticmethod
    def _check_multiple(name: str, value: int, unit: int) -> None:
        if value >= unit and value % unit == 0:
            return
        below = value // unit * unit
        nearest = f"{below} or {below + unit}" if below >= unit else f"{unit}"
        raise ValueError(f"{name} must be a positive multiple of {unit}, got {value}; nearest: {nearest}")

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame."""
        return self.height // self.spatial_factor

    @property
    def latent_width(self) -> int:
        """Columns of a latent frame."""
        return self.width // self.spatial_factor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a latent frame."""
        return self.latent_height // self.patch[1], self.latent_width // self.patch[2]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame (1560 at 832x480)."""
        return math.prod(self.grid)

    def frames_of(self, latent_frames: int) -> int:
        """Pixel frames decoded from `latent_frames`: 1 + temporal_factor (latent_frames - 1), and 0 from none."""
        if latent_frames < 0:
            raise ValueError(f"latent_frames must not be negative, got {latent_frames}")
        return max(0, 1 + self.temporal_factor * (latent_frames - 1))

    def latent_frames_of(self, frames: int) -> int:
        """Latent frames that hold exactly `frames` pixel frames; raises ValueError where none do."""
        extra, remainder = divmod(frames - 1, self.temporal_factor)
        if frames < 1 or remainder:
            below = frames - remainder
            nearest = f"{below} or {below + self.temporal_factor}" if frames >= 1 else "1"
            raise ValueError(
                f"frames must be 1 plus a multiple of {self.temporal_factor}, got {frames}; nearest: {nearest}"
            )
        return extra + 1

    def latent_frames_within(self, frames: int) -> int:
        """The most latent frames that hold no more than `frames` pixel frames, 0 for none."""
        return 1 + (frames - 1) // self.temporal_factor if frames > 0 else 0

    def chunk_frames_of(self, index: int) -> int:
        """Pixel frames that chunk `index` adds to the video: the first is shorter (9, then 12 for chunks of 3)."""
        if index < 0:
            raise ValueError(f"chunk index must not be negative, got {index}")
        return self.frames_of((index + 1) * self.chunk_frames) - self.frames_of(index * self.chunk_frames)

    def frames_for(self, seconds: float) -> int:
        """Pixel frames of the shortest video of at least `seconds`; raises ValueError unless positive and finite."""
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be positive and finite, got {seconds}")
        return math.ceil(round(seconds * self.fps, 6))

    def latent_frames_for(self, seconds: float) -> int:
        """Latent frames of the fewest whole chunks that last at least `seconds`."""
        latent_frames = 1 + math.ceil((self.frames_for(seconds) - 1) / self.temporal_factor)
        return math.ceil(latent_frames / self.chunk_frames) * self.chunk_frames
