"""What a cache asks of a sink.

N layers, B batch, K evicted frames, S tokens per latent frame, H heads, D head width.
A policy owns how evicted frames change the sink, and what attention sees of it. It knows neither when frames are
evicted nor where the sink is kept; `KVCache.commit` decides both, and applies the policy to keys and values alike. The
policies there are stand in `sinks`.
"""

from pydantic import NonNegativeInt
from torch import Tensor

from reward_forcing.config import Variant

FRAMES = 2
"""The axis of frames in what a sink is given, [N, B, F, S, H, D]; the cache gives it layer by layer, N = 1."""


class Sink(Variant):
    """What a cache asks of a sink: how many frames it holds, and what evicted frames do to it.

    kind: the policy's name in settings; of a class outside this package where to import it from. frames: latent frames
    that the sink holds; the first ones ever committed fill it.
    """

    frames: NonNegativeInt = 3

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The sink after frames were evicted, oldest first, the first of them into sink frame `slot`.

        sink: [N, B, frames, S, H, D], un-rotated, float32. evicted: [N, B, K, S, H, D], any dtype. Returns float32 of
        the sink's shape; pure and differentiable in both.
        """
        raise NotImplementedError

    def show(self, sink: Tensor, evicted: int) -> Tensor:
        """What attention sees of the sink after `evicted` frames have ever left the window; here, the sink itself.

        sink: as `absorb` left it. Returns a tensor of its shape, pure and differentiable; `sink` itself stays stored.
        """
        return sink
