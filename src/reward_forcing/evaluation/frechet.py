"""How far two sets of videos are from each other, by the features of a small network trained on the procedural world.

Not FVD: the network and its features are our own (`models/video_features.py`), so the numbers compare only with each
other. n and m videos, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def frechet_distance(x: Array, y: Array) -> float:
    """The Frechet distance of Gaussians fitted to features x [n, D] and y [m, D]: 0 for equal moments.

        |mean x - mean y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    Dowson and Landau (1982); Heusel et al. (2017) for features. Biased upwards, the more the fewer the videos: compare
    sets of one size. Raises ValueError for sets of fewer than 2 videos or of different features.
    """
    x, y = _checked(x, y)
    cx, cy = (np.cov(z, rowvar=False).reshape(z.shape[1], z.shape[1]) for z in (x, y))
    values, vectors = np.linalg.eigh(cx)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # (C_x C_y)^(1/2) has the trace of the root of the symmetric C_x^(1/2) C_y C_x^(1/2)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cy @ root).clip(0)).sum()
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(0.0, apart + np.trace(cx) + np.trace(cy) - 2 * cross))


def kernel_distance(x: Array, y: Array) -> float:
    """The squared maximum mean discrepancy of features x [n, D] and y [m, D] with the kernel (a.b / D + 1)^3.

    Binkowski et al. (2018). Unbiased for any number of videos, so it may be slightly negative for like sets.
    Raises ValueError as `frechet_distance` does.
    """
    x, y = _checked(x, y)

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2 * kernel(x, y).mean()
    )


def _checked(x: Array, y: Array) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected two sets of at least 2 videos with the same features, got {x.shape} and {y.shape}")
    return x, y
