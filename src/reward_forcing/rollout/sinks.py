"""What survives eviction: the sink's policies, as settings that are also the functions they name.

N layers, B batch, K evicted frames, S tokens per latent frame, H heads, D head width.
What a policy owns is told in `sink`. A new one is a class in a file of its own and a line in `SINKS`; one from outside
derives from `Sink` and is called `package.module:Class` in settings.
"""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny
from torch import Tensor

from reward_forcing.config import read_variant
from reward_forcing.flow import widen
from reward_forcing.rollout.rolling_sink import RollingSink
from reward_forcing.rollout.sink import FRAMES, Sink


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


SINKS: dict[str, type[Sink]] = {
    "none": NoSink,
    "static": StaticSink,
    "ema": EmaSink,
    "rolling": RollingSink,
}
"""Every sink of this package by the name that settings call it."""


def _sink(value: object) -> object:
    return read_variant("sink", value, Sink, SINKS)


SinkSettings = Annotated[SerializeAsAny[Sink], BeforeValidator(_sink)]
"""A sink in settings, for example `{kind: ema, frames: 3, alpha: 0.999}`."""
