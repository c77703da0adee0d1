"""How single frames look: sharpness, contrast, colour, clipping and noise, as curves over time.

None of these is a quality by itself: they show drift when compared along one video, and differences between videos of
the same prompts. Each score is the mean of the curve. All raise ValueError for a clip that `check_clip` refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reward_forcing.evaluation.metrics.clips import Array, Measured, Pixels, averaged, check_clip, luminance


def _curve(frames: Pixels, of_frame: Callable[[Pixels], float]) -> Measured:
    check_clip(frames)
    return averaged([of_frame(frame) for frame in frames])


def sharpness(frames: Pixels) -> Measured:
    """Variance of the brightness's Laplacian over the variance of the brightness: 0 (flat) .. 64 (checkerboard).

    The ratio leaves out what brightness and contrast do to the plain variance of the Laplacian. It follows the content
    (many small things are sharper than one big one) and the resolution, so that only equal sizes compare, and noise
    counts as sharpness: read it beside `noise_level`. Rounding to 8 bits alone can give 0.75 / variance, more than a
    faint, blurred picture has.
    """
    return _curve(frames, _sharpness)


def _sharpness(frame: Pixels) -> float:
    grey = luminance(frame)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var() / (grey.var() + 1))


def contrast(frames: Pixels) -> Measured:
    """Standard deviation of the brightness, in levels: 0 (flat) .. 127.5. Cannot tell fog from a plain scene."""
    return _curve(frames, lambda frame: float(luminance(frame).std()))


def saturation(frames: Pixels) -> Measured:
    """Sum of the pixels' (max - min) over the sum of their max, over the channels: 0 (grey) .. 1.

    The mean HSV saturation weighted by value, so that the noise of dark pixels does not count as colour. 0 for black.
    Cannot tell a grey scene from one that lost its colours.
    """
    return _curve(frames, _saturation)


def _saturation(frame: Pixels) -> float:
    high, low = frame.max(axis=2).sum(dtype=np.int64), frame.min(axis=2).sum(dtype=np.int64)
    return float((high - low) / max(high, 1))


def colourfulness(frames: Pixels) -> Measured:
    """Hasler and Süsstrunk's (2003) colourfulness: 0 (grey), 15 slight, 45 average, 109 extreme; no unit.

    sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), with rg = R - G and yb = (R + G) / 2 - B. Unlike
    saturation it counts different colours more than one strong colour.
    """
    return _curve(frames, _colourfulness)


def _colourfulness(frame: Pixels) -> float:
    red, green, blue = np.moveaxis(frame.astype(np.float32), 2, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    means, variances = opponents.mean(axis=(1, 2)), opponents.var(axis=(1, 2))
    return float(np.sqrt(variances.sum()) + 0.3 * np.sqrt(np.square(means).sum()))


def clipped_share(frames: Pixels) -> Measured:
    """Share of the pixels with a channel at 0 or 255: 0 .. 1.

    Rises when a video burns out or sinks into black. True black, true white and pure colours count as well.
    """
    return _curve(frames, lambda frame: float(((frame == 0) | (frame == 255)).any(axis=2).mean()))


def noise_level(frames: Pixels) -> Measured:
    """Standard deviation of the brightness's noise, in levels, after Immerkaer (1996): 0 (clean) upwards.

    sqrt(pi / 2) / 6 times the mean absolute answer to [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], exact for Gaussian noise
    on flat ground. Fine texture and sharp corners count as noise.
    """
    return _curve(frames, _noise_level)


def _noise_level(frame: Pixels) -> float:
    grey: Array = luminance(frame)
    bent = grey[:-2] - 2 * grey[1:-1] + grey[2:]
    answer = bent[:, :-2] - 2 * bent[:, 1:-1] + bent[:, 2:]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(answer).mean())
