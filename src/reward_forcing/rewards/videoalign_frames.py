"""Clips as VideoAlign's vision tower takes them: chosen frames, their size, normalised patches.

B clips, T frames, H W pixels, C channels. Follows Qwen2-VL's preprocessing; knows no network and no prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

MIN_SAMPLED, MAX_SAMPLED = 4, 768  # Qwen2-VL's bounds on the frames of one clip
MAX_ASPECT = 200
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Patching:
    """How clips are cut: `frames` x `size` x `size` pixels to a patch, `merge` x `merge` patches to a token."""

    size: int = 14
    frames: int = 2
    merge: int = 2

    @property
    def multiple(self) -> int:
        """The number of pixels that heights and widths are multiples of."""
        return self.size * self.merge


@dataclass(frozen=True)
class Patches:
    """Patches of B clips, one after another: values [B * t * h * w, C * frames * size * size], of a grid (t, h, w)."""

    values: Tensor
    grid: tuple[int, int, int]


def sampled_frames(frames: int, fps: float, rate: float) -> tuple[int, ...]:
    """Numbers of the frames that stand for a clip at `rate` per second, evenly spread with both ends.

    An even count nearest to frames * rate / fps, at least 4 where the clip has 4, at most 768 (Qwen2-VL; 81 frames at
    16 fps and rate 2: 10). Raises ValueError for less than 2 frames and for an fps that is not positive.
    """
    if frames < 2 or not fps > 0:
        raise ValueError(f"VideoAlign samples clips of 2 frames or more at a positive fps, got {frames} at {fps} fps")
    most = min(MAX_SAMPLED, frames) // 2 * 2
    count = 2 * round(min(max(frames * rate / fps, MIN_SAMPLED), most) / 2)
    return tuple(torch.linspace(0, frames - 1, count).round().long().tolist())


def fitted_size(height: int, width: int, multiple: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in multiples of `multiple` whose area lies in [min_pixels, max_pixels], the aspect nearly kept.

    Qwen2-VL's rule: the nearest multiples; where their area is too large, both sides scaled to `max_pixels` and rounded
    down, where too small, scaled to `min_pixels` and rounded up (480 x 832 -> 336 x 588 at 28, 100352 and 200704).
    Raises ValueError for a side more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"a side may be at most {MAX_ASPECT} times the other, got {height} x {width}")
    sides = (height, width)
    nearest = [max(multiple, round(side / multiple) * multiple) for side in sides]
    area = nearest[0] * nearest[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        nearest = [max(multiple, math.floor(side / shrink / multiple) * multiple) for side in sides]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        nearest = [math.ceil(side * grow / multiple) * multiple for side in sides]
    return nearest[0], nearest[1]


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames [..., C, H, W] at `size`, float32, bicubic with antialiasing; may leave the range of `frames` a little."""
    flat = interpolate(frames.float().flatten(0, -4), size=size, mode="bicubic", antialias=True, align_corners=False)
    return flat.unflatten(0, frames.shape[:-3])


def resized_levels(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """`resized` for frames in [0, 1] kept on the 256 levels of 8-bit video before and after, as a file's frames are."""
    levels = (255 * frames.float()).round()
    return resized(levels, size).clamp(0, 255).round() / 255


def patchify(frames: Tensor, patching: Patching) -> Patches:
    """Frames [B, T, C, H, W] in [0, 1], normalised by CLIP's mean and std and cut into patches.

    A clip is filled up with its last frame to a multiple of `patching.frames`. Patches that merge into one token stand
    together: order (t, h / merge, w / merge, merge, merge), values in the order (C, frame, row, column).
    """
    p, m, f = patching.size, patching.merge, patching.frames
    mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    filling = [frames[:, -1:]] * (-frames.shape[1] % f)
    x = (torch.cat([frames, *filling], 1) - mean) / std
    batch, count, channels, height, width = x.shape
    t, h, w = count // f, height // p, width // p
    x = x.view(batch, t, f, channels, h // m, m, p, w // m, m, p)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # [B, t, h/m, w/m, m, m, C, f, p, p]
    return Patches(x.reshape(batch * t * h * w, channels * f * p * p), (t, h, w))
