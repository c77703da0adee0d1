"""At which times attention sees the frames of a window, as numbers for RoPE; only their differences matter.

Owns where the sink sits relative to the window, and the cuts, at which time jumps. Knows no keys and no network.
Frames are named by their number in the video, counted from the first that a cache was given.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Positions = Literal["relative", "absolute"]
"""relative: 0, 1, .. along what is seen; absolute: the frames' numbers in the video."""


class Cut(NamedTuple):
    """A jump in time: the frames from number `at` on are `frames` later than they would be."""

    at: int
    frames: int


def time_positions(kind: Positions, sink: int, local: range, cuts: tuple[Cut, ...]) -> Tensor:
    """Positions [sink + len(local)], on the CPU, of the video's first `sink` frames, then of those numbered `local`.

    `local` is the past beside the sink and what is denoised. With relative positions frames evicted in between leave no
    gap, and a cut counts while the first frame after it is among those seen.
    """
    numbers = torch.arange(local.start, local.stop, device="cpu")
    if sink:
        numbers = torch.cat([torch.arange(sink, device="cpu"), numbers])
    positions = numbers
    if kind == "relative":
        positions = torch.arange(len(numbers), device="cpu")
        cuts = tuple(cut for cut in cuts if cut.at < sink or cut.at >= local.start)
    for cut in cuts:
        positions = positions + cut.frames * (numbers >= cut.at)
    return positions


def with_cut(cuts: tuple[Cut, ...], cut: Cut) -> tuple[Cut, ...]:
    """`cuts` and a later one, which replaces one at the same frame: no frame has followed that."""
    return (*(before for before in cuts if before.at < cut.at), cut)


def without_gone(cuts: tuple[Cut, ...], sink: int, oldest: int) -> tuple[Cut, ...]:
    """`cuts` with those between the sink's frames and the oldest frame beside it as one: nothing seen tells them apart.

    At most one more than there are frames, so that memory is bounded however often a video is cut.
    """
    gone = [cut for cut in cuts if sink <= cut.at < oldest]
    merged = (Cut(gone[-1].at, sum(cut.frames for cut in gone)),) if gone else ()
    return (*(cut for cut in cuts if cut.at < sink), *merged, *(cut for cut in cuts if cut.at >= oldest))
