"""Optical flow between two frames, by OpenCV's DIS (Kroeger et al., 2016) with its medium preset, and warping along it.

A flow [H, W, 2] holds for each pixel of the first frame where it went: (x, y) in pixels of the frames as given.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LEAST_FLOW_SIDE = 128
"""Frames with a shorter side below this are enlarged first: DIS matches patches of 8 pixels on half the size."""


def opencv() -> ModuleType:
    """The module cv2; raises ImportError that names the extra to install where it is missing."""
    try:
        import cv2
    except ImportError:
        raise ImportError("optical flow needs OpenCV; run: pip install -e '.[eval]' in its checkout") from None
    return cv2


def optical_flow(first: Pixels, second: Pixels) -> Array:
    """Where the pixels of `first` [H, W, 3] are in `second`: [H, W, 2] float32, exactly 0 between equal frames.

    Smaller frames than 128 pixels are enlarged first and the flow is brought back to their own pixels. Where nothing
    has texture, the flow is that of the surroundings. Constant changes of brightness do not count as motion.
    """
    cv2 = opencv()
    height, width = first.shape[:2]
    scale = max(1.0, LEAST_FLOW_SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    if scale > 1:
        grey = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in grey]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(grey[0], grey[1], None)
    if scale > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA)
    return flow * np.array([width / size[0], height / size[1]], np.float32)


def warp(frame: Pixels, flow: Array) -> Array:
    """`frame` [H, W, 3] seen at each pixel's place plus `flow`, float32 in levels; edges are repeated beyond them."""
    x, y = _targets(flow)
    cv2 = opencv()
    seen = cv2.remap(frame.astype(np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return seen.clip(0, 255)


def inside(flow: Array) -> Mask:
    """Whether each pixel's place plus `flow` lies inside the frame, [H, W]; elsewhere the flow has nothing to match."""
    height, width = flow.shape[:2]
    x, y = _targets(flow)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _targets(flow: Array) -> tuple[Array, Array]:
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return columns + flow[..., 0], rows + flow[..., 1]
