"""Graded defects with a known order of strength: what the metrics are checked with.

Each takes a clip uint8 [T, H, W, 3] and a strength and gives a new clip, at strength 0 an equal one. All are
deterministic. Tests run every defect against the metrics it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reward_forcing.evaluation.metrics.clips import WAN_RHYTHM, Array, Pixels


@dataclass(frozen=True)
class Defect:
    """A defect of a clip: how it is made, in what strengths, and which metrics it must raise or lower.

    apply(frames, strength). levels: strengths from none to strong, in `unit`.
    """

    name: str
    apply: Callable[[Pixels, float], Pixels]
    levels: tuple[float, ...]
    unit: str
    raises: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()


def _pixels(frames: Array) -> Pixels:
    return (frames + 0.5).clip(0, 255).astype(np.uint8)


def _ramp(frames: Pixels) -> Array:
    """0 at the first frame to 1 at the last, [T, 1, 1, 1]."""
    return np.linspace(0, 1, len(frames), dtype=np.float32)[:, None, None, None]


def _grey(frames: Pixels) -> Array:
    return frames @ np.array([[0.299], [0.587], [0.114]], np.float32)


def add_flicker(frames: Pixels, strength: float) -> Pixels:
    """Brightness goes up or down by `strength` levels at random from frame to frame."""
    signs = np.random.default_rng(0).choice([-1, 1], len(frames))[:, None, None, None]
    return _pixels(frames + strength * signs.astype(np.float32))


def add_jitter(frames: Pixels, strength: float) -> Pixels:
    """Every odd frame is moved to the right by `strength` shorter sides; edges are repeated."""
    width = frames.shape[2]
    whole, part = divmod(strength * min(frames.shape[1:3]), 1)
    near, far = ((np.arange(width) - int(whole) - more).clip(0) for more in (0, 1))
    out = frames.copy()
    out[1::2] = _pixels((1 - part) * frames[1::2][:, :, near] + part * frames[1::2][:, :, far].astype(np.float32))
    return out


def freeze(frames: Pixels, strength: float) -> Pixels:
    """The last `strength` (a share) of the clip repeats one frame."""
    last = round((len(frames) - 1) * (1 - strength))
    return frames[np.minimum(np.arange(len(frames)), last)]


def fade_colour(frames: Pixels, strength: float) -> Pixels:
    """Colours drift towards grey, the share `strength` of the way by the last frame."""
    return _pixels(frames + strength * _ramp(frames) * (_grey(frames) - frames))


def fade_contrast(frames: Pixels, strength: float) -> Pixels:
    """Pixels drift towards middle grey, the share `strength` of the way by the last frame."""
    return _pixels(frames + strength * _ramp(frames) * (np.float32(128) - frames))


def drift_tint(frames: Pixels, strength: float) -> Pixels:
    """Red gains and blue loses up to `strength` levels by the last frame."""
    return _pixels(frames + strength * _ramp(frames) * np.array([1, 0, -1], np.float32))


def overexpose(frames: Pixels, strength: float) -> Pixels:
    """All values are multiplied by 1 + `strength`."""
    return _pixels(frames * np.float32(1 + strength))


def blur(frames: Pixels, strength: float) -> Pixels:
    """Gaussian blur with a standard deviation of `strength` pixels; edges are repeated."""
    if not strength:
        return frames.copy()
    reach = int(4 * strength + 1)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * strength**2)).astype(np.float32)
    kernel /= kernel.sum()
    out = frames.astype(np.float32)
    for axis in (1, 2):
        size = frames.shape[axis]
        places = np.arange(size)
        shifted = (out.take((places + k - reach).clip(0, size - 1), axis) * kernel[k] for k in range(len(kernel)))
        out = sum(shifted, np.zeros_like(out))
    return _pixels(out)


def add_noise(frames: Pixels, strength: float) -> Pixels:
    """Gaussian noise with a standard deviation of `strength` levels, new for every frame."""
    return _pixels(frames + strength * np.random.default_rng(0).standard_normal(frames.shape, np.float32))


def step_at_borders(frames: Pixels, strength: float) -> Pixels:
    """Every other chunk is brighter by `strength` levels."""
    odd = np.zeros((len(frames), 1, 1, 1), np.float32)
    for chunk in WAN_RHYTHM.chunks(len(frames))[1::2]:
        odd[chunk.start : chunk.stop] = 1
    return _pixels(frames + strength * odd)


def copy_first_frame(frames: Pixels, strength: float) -> Pixels:
    """The first frame lies over the first frame of every later chunk with the opacity `strength`."""
    out = frames.copy()
    starts = [chunk.start for chunk in WAN_RHYTHM.chunks(len(frames))[1:]]
    out[starts] = _pixels((1 - strength) * frames[starts] + strength * frames[0].astype(np.float32))
    return out


_ALL = (
    Defect(
        "flicker",
        add_flicker,
        (0, 2, 4, 8, 16),
        "levels",
        raises=("flicker", "frame_difference", "neighbour_mean_error", "extrapolation_error"),
    ),
    Defect(
        "jitter",
        add_jitter,
        (0, 0.005, 0.01, 0.02, 0.04),
        "shorter sides",
        raises=("midpoint_error",),
    ),
    Defect("freeze", freeze, (0, 0.25, 0.5, 0.75, 1), "share of the clip", lowers=("flow_dynamic_degree",)),
    Defect("colour fade", fade_colour, (0, 0.25, 0.5, 0.75, 1), "share", lowers=("saturation", "colourfulness")),
    Defect("contrast fade", fade_contrast, (0, 0.2, 0.4, 0.6, 0.8), "share", lowers=("contrast",)),
    Defect("tint drift", drift_tint, (0, 10, 20, 40, 60), "levels", lowers=("background_constancy",)),
    Defect("overexposure", overexpose, (0, 0.2, 0.4, 0.8, 1.6), "share", raises=("clipped_share",)),
    Defect("blur", blur, (0, 0.5, 1, 1.5, 2.5), "pixels", lowers=("sharpness",)),
    Defect("noise", add_noise, (0, 2, 4, 8, 16), "levels", raises=("noise_level",)),
    Defect("border step", step_at_borders, (0, 2, 4, 8, 16), "levels", raises=("border_jump", "border_effect")),
    Defect(
        "copied first frame",
        copy_first_frame,
        (0, 0.25, 0.5, 0.75, 1),
        "opacity",
        raises=("first_chunk_copying",),
    ),
)
DEFECTS: dict[str, Defect] = {defect.name: defect for defect in _ALL}
"""Every graded defect by name."""
