"""Rotary position embedding over (time, row, column), for any positions.

F latent frames, S tokens per frame, H heads, D head width. Wan2.1 splits the head into t = D - 4 (D // 6) numbers for
time and 2 (D // 6) each for row and column; neighbouring numbers 2j and 2j + 1 of an axis of width d form a pair turned
by position * 10000^(-2j / d). Angles are computed in float64, a range of positions at a time, and cosines and sines are
kept in float32: a stream computes angles once in 1024 latent frames, and there is no last position.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from reward_forcing.flow import widen

THETA = 10000.0
RANGE = 1024
"""Positions whose angles are computed together."""


class Rotation(NamedTuple):
    """Cosine and sine of every pair's angle, each [F, S, 1, D / 2] or, of one axis, [positions, width / 2]; float32."""

    cos: Tensor
    sin: Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Numbers of a head given to (time, row, column): (44, 42, 42) of 128, (12, 10, 10) of 32."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rotation(positions: Tensor, grid: tuple[int, int], head_dim: int, device: torch.device | str = "cpu") -> Rotation:
    """Rotation, on `device`, of frames at time `positions` [F] with a `grid` of (rows, columns) tokens.

    positions: integers. On the CPU, where reading them waits for nothing, the last few rotations are remembered.
    """
    device = torch.device(device)
    if type(positions) is Tensor and positions.device.type == "cpu":
        return _rotation(tuple(positions.tolist()), grid, head_dim, device)
    rows, columns = (torch.arange(size, device=device) for size in grid)
    axes = zip((positions.to(device), rows, columns), axis_widths(head_dim), strict=True)
    return _over_grid([_turns(_angles(axis, width)) for axis, width in axes], grid)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Queries or keys x [..., F, S, H, D] turned by `by`; computed in float32, returned in the dtype of `x`.

    The pairs' first numbers come back before all their second ones: no product of two rotated heads tells the order,
    and a CPU writes and multiplies halves faster than neighbours.
    """
    even, odd = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    first = torch.addcmul(even * by.cos, odd, by.sin, value=-1)
    second = torch.addcmul(even * by.sin, odd, by.cos)
    return torch.cat((first, second), dim=-1).to(x.dtype)


@lru_cache(maxsize=4)  # a chunk of any schedule has at most four: keys and queries, of joint passes and the clean one
def _rotation(positions: tuple[int, ...], grid: tuple[int, int], head_dim: int, device: torch.device) -> Rotation:
    rows, columns = (range(size) for size in grid)
    axes = zip((positions, rows, columns), axis_widths(head_dim), strict=True)
    with torch.inference_mode(False), torch.no_grad():  # for training may read it as well
        return _over_grid([_read(axis, width, device) for axis, width in axes], grid)


def _over_grid(turns: Sequence[Rotation], grid: tuple[int, int]) -> Rotation:
    """The rotation of all tokens, from those [F, t / 2], [rows, ..] and [columns, ..] of the three axes."""
    frames, (rows, columns) = len(turns[0].cos), grid
    views = ((frames, 1, 1, -1), (1, rows, 1, -1), (1, 1, columns, -1))

    def join(parts: Sequence[Tensor]) -> Tensor:
        spread = [part.view(view).expand(frames, rows, columns, -1) for part, view in zip(parts, views, strict=True)]
        return torch.cat(spread, dim=-1).flatten(1, 2).unsqueeze(2)

    return Rotation(join([turn.cos for turn in turns]), join([turn.sin for turn in turns]))


def _turns(angles: Tensor) -> Rotation:
    return Rotation(angles.cos().float(), angles.sin().float())


def _angles(position: Tensor, width: int) -> Tensor:
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=position.device)
    return position.double().unsqueeze(-1) * THETA ** (-pair / max(width, 1))


def _read(positions: Iterable[int], width: int, device: torch.device) -> Rotation:
    """Cosine and sine [len(positions), width / 2] of an axis at integer positions, from tables."""
    pieces = [(_table(number, width, device), start, start + count) for number, start, count in _runs(positions)]
    return Rotation(
        torch.cat([table.cos[start:stop] for table, start, stop in pieces]),
        torch.cat([table.sin[start:stop] for table, start, stop in pieces]),
    )


def _runs(positions: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Positions as runs of consecutive ones: the number of the range, the first place in it, and how many."""
    number, start, count = 0, 0, 0
    for position in positions:
        if count and divmod(position, RANGE) == (number, start + count):
            count += 1
            continue
        if count:
            yield number, start, count
        (number, start), count = divmod(position, RANGE), 1
    if count:
        yield number, start, count


@lru_cache(maxsize=8)  # three axes, and time on the border of two ranges or far from its sink
def _table(number: int, width: int, device: torch.device) -> Rotation:
    """Cosine and sine [RANGE, width / 2] at the positions of a range."""
    table = _turns(_angles(torch.arange(number * RANGE, (number + 1) * RANGE, device="cpu"), width))
    return Rotation(table.cos.to(device), table.sin.to(device))
