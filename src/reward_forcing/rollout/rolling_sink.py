"""Rolling Sink (arXiv 2602.07775): a sink whose content slides on with the window, round and round.

Our reading of the paper's description, held to no reference code. For a network trained on short clips (Self Forcing),
frames made within the trained length, which have not drifted, serve as the past of all that follows, as if the video
had gone on like them: their time indices slide along with the window ("sliding indices"; here the cache's `positions:
relative`), and so does what they show ("sliding semantics"; here `RollingSink`).

The descriptions at hand say neither how the end of the held frames is joined to their beginning, nor by how much they
roll, nor how many they are: we take them as a loop and roll by as many frames as have left the window. Left out: the
paper's analysis of a trained network, from which its numbers come.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from reward_forcing.rollout.sink import FRAMES, Sink


class RollingSink(Sink):
    """The first frames, unchanged, seen as a loop that runs on: what attention sees of them slides with the window.

    Once n frames have left the window, frame i of what is seen is frame (i + n) mod `frames` of the video. Until then
    this is the static sink.
    """

    kind: Literal["rolling"] = "rolling"  # pyright: ignore[reportIncompatibleVariableOverride]
    frames: PositiveInt = 3

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The same sink: nothing made beyond the first frames enters it."""
        return sink

    def show(self, sink: Tensor, evicted: int) -> Tensor:
        """The sink's frames, begun `evicted` frames later in their loop. Shapes: see `Sink`."""
        return torch.roll(sink, -evicted, dims=FRAMES)
