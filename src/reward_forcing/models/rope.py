"""Rotary position embedding over (time, row, column), for any positions.

F latent frames, S tokens per frame, H heads, D head width. Wan2.1 splits the head into t = D - 4 (D // 6) numbers for
time and 2 (D // 6) each for row and column; neighbouring numbers 2j and 2j + 1 of an axis of width d form a pair turned
by position * 10000^(-2j / d). Angles are computed per call in float64, so there is no table and no last position.
"""

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosine and sine of every pair's angle, each [F, S, 1, D / 2], float32."""

    cos: Tensor
    sin: Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Numbers of a head given to (time, row, column): (44, 42, 42) of 128, (12, 10, 10) of 32."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rotation(positions: Tensor, grid: tuple[int, int], head_dim: int) -> Rotation:
    """Rotation of frames at time `positions` [F] with a `grid` of (rows, columns) tokens, on the positions' device."""
    device = positions.device
    frames, (rows, columns) = positions.numel(), grid
    axes = (positions, torch.arange(rows, device=device), torch.arange(columns, device=device))
    views = ((frames, 1, 1, -1), (1, rows, 1, -1), (1, 1, columns, -1))
    angles = [
        _angles(axis, width).view(view).expand(frames, rows, columns, -1)
        for axis, width, view in zip(axes, axis_widths(head_dim), views, strict=True)
    ]
    joined = torch.cat(angles, dim=-1).view(frames, rows * columns, 1, head_dim // 2)
    return Rotation(joined.cos().float(), joined.sin().float())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Queries or keys x [..., F, S, H, D] turned by `by`; computed in float32, returned in the dtype of `x`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * by.cos - odd * by.sin, even * by.sin + odd * by.cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _angles(position: Tensor, width: int) -> Tensor:
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=position.device)
    return position.double().unsqueeze(-1) * THETA ** (-pair / max(width, 1))
