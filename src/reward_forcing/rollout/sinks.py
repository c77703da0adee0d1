"""What survives eviction: the sink's policies, as settings that are also the functions they name.

N layers, B batch, K evicted frames, S tokens per latent frame, H heads, D head width.
A policy owns how evicted frames change the sink. It knows neither when frames are evicted nor where the sink is kept;
`KVCache.commit` decides both, and applies the policy to keys and values alike.
"""

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from reward_forcing.config import Settings

FRAMES = 2
"""The axis of frames in keys and values [N, B, F, S, H, D]."""


class SinkPolicy(Protocol):
    """What a cache asks of a sink: how many frames it holds, and what evicted frames do to it."""

    @property
    def frames(self) -> int:
        """Latent frames that the sink holds; the first ones ever committed fill it."""
        ...

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The sink after frames were evicted, oldest first, the first of them into sink frame `slot`.

        sink: [N, B, frames, S, H, D], un-rotated, float32. evicted: [N, B, K, S, H, D], any dtype. Returns float32 of
        the sink's shape; pure and differentiable in both.
        """
        ...


class NoSink(Settings):
    """Nothing survives: attention sees a plain sliding window (Self Forcing, CausVid)."""

    kind: Literal["none"] = "none"

    @property
    def frames(self) -> int:
        """No frames."""
        return 0

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The empty sink."""
        return sink


class StaticSink(Settings):
    """The first frames stay as they are (LongLive, Rolling Forcing)."""

    kind: Literal["static"] = "static"
    frames: PositiveInt = 3

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The same sink."""
        return sink


class EmaSink(Settings):
    """The first frames drift towards what leaves the window: the EMA-Sink of Reward Forcing.

    The paper prints alpha = 9e-3, compares 0.5 to 0.99 and its reference code uses 0.999, which we take. Where the
    evicted frames do not fill the sink the reference code overwrites sink tokens; we follow the paper's average, frame
    by frame.
    """

    kind: Literal["ema"] = "ema"
    frames: PositiveInt = 3
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.999

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """Fold evicted frames into the sink: S <- alpha S + (1 - alpha) K_evicted.

        Reward Forcing, Eqs. 4-5 (values follow the same rule). Evicted frame j goes to sink frame
        (slot + j) mod frames, so a group that does not fill the sink is continued by the next one. In float32, since
        in bfloat16 one update with alpha 0.999 is less than half a unit in the last place. Shapes: see `SinkPolicy`.
        """
        done = 0
        while done < evicted.shape[FRAMES]:
            count = min(self.frames - slot, evicted.shape[FRAMES] - done)
            before, target, after = sink.split([slot, count, self.frames - slot - count], dim=FRAMES)
            folded = self.alpha * target + (1 - self.alpha) * evicted.narrow(FRAMES, done, count).float()
            sink = torch.cat([before, folded, after], dim=FRAMES)
            done += count
            slot = (slot + count) % self.frames
        return sink


SINKS: dict[str, type[NoSink | StaticSink | EmaSink]] = {"none": NoSink, "static": StaticSink, "ema": EmaSink}
"""Every sink by the name that settings call it."""

SinkSettings = Annotated[NoSink | StaticSink | EmaSink, Field(discriminator="kind")]
"""A sink in settings, for example `{kind: ema, frames: 3, alpha: 0.999}`."""
