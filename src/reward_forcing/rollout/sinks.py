"""What survives eviction: the sink's policies, as settings that are also the functions they name.

N layers, B batch, K evicted frames, S tokens per latent frame, H heads, D head width.
A policy owns how evicted frames change the sink. It knows neither when frames are evicted nor where the sink is kept;
`KVCache.commit` decides both, and applies the policy to keys and values alike. A policy from outside derives from
`Sink` and is called `package.module:Class` in settings.
"""

from typing import Annotated, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
)
from torch import Tensor

from reward_forcing.config import Variant, read_variant
from reward_forcing.flow import widen

FRAMES = 2
"""The axis of frames in keys and values [N, B, F, S, H, D]."""


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


class NoSink(Sink):
    """Nothing survives: attention sees a plain sliding window (Self Forcing, CausVid)."""

    kind: Literal["none"] = "none"  # pyright: ignore[reportIncompatibleVariableOverride] frozen, so narrowing is safe
    frames: Literal[0] = 0  # pyright: ignore[reportIncompatibleVariableOverride]

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The empty sink."""
        return sink


class StaticSink(Sink):
    """The first frames stay as they are (LongLive, Rolling Forcing)."""

    kind: Literal["static"] = "static"  # pyright: ignore[reportIncompatibleVariableOverride]
    frames: PositiveInt = 3

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """The same sink."""
        return sink


class EmaSink(Sink):
    """The first frames drift towards what leaves the window: the EMA-Sink of Reward Forcing.

    The paper prints alpha = 9e-3, compares 0.5 to 0.99 and its reference code uses 0.999, which we take. Where the
    evicted frames do not fill the sink the reference code overwrites sink tokens; we follow the paper's average, frame
    by frame.
    """

    kind: Literal["ema"] = "ema"  # pyright: ignore[reportIncompatibleVariableOverride]
    frames: PositiveInt = 3
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.999

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        """Fold evicted frames into the sink: S <- alpha S + (1 - alpha) K_evicted.

        Reward Forcing, Eqs. 4-5 (values follow the same rule). Evicted frame j goes to sink frame
        (slot + j) mod frames, so a group that does not fill the sink is continued by the next one. In float32, since
        in bfloat16 one update with alpha 0.999 is less than half a unit in the last place. Shapes: see `Sink`.
        """
        done = 0
        while done < evicted.shape[FRAMES]:
            count = min(self.frames - slot, evicted.shape[FRAMES] - done)
            before, target, after = sink.split([slot, count, self.frames - slot - count], dim=FRAMES)
            folded = self.alpha * target + (1 - self.alpha) * widen(evicted.narrow(FRAMES, done, count))
            sink = torch.cat([before, folded, after], dim=FRAMES)
            done += count
            slot = (slot + count) % self.frames
        return sink


SINKS: dict[str, type[Sink]] = {"none": NoSink, "static": StaticSink, "ema": EmaSink}
"""Every sink of this package by the name that settings call it."""


def _sink(value: object) -> object:
    return read_variant("sink", value, Sink, SINKS)


SinkSettings = Annotated[SerializeAsAny[Sink], BeforeValidator(_sink)]
"""A sink in settings, for example `{kind: ema, frames: 3, alpha: 0.999}`."""
