"""RoPE Cut of Infinity-RoPE (arXiv 2511.20649): at a new prompt time jumps, and a new scene begins in the same rollout.

Our reading of the paper's description, held to no reference code: "controlled discontinuities in temporal RoPE
coordinates". What is cached stays, so that who was in the picture is still seen, but from a distance in time. The
description at hand names no length for the jump; the default is the clip that Self Forcing's networks were trained on.
The rest of the method stands in `kv_flush`.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from reward_forcing.rollout.kv_cache import KVCache
from reward_forcing.rollout.switch import Clean, SwitchPolicy


class RopeCut(SwitchPolicy):
    """The chunks to come sit `frames` latent frames later than they would; what is cached stays.

    With relative positions the jump is forgotten when the first frame after it leaves the window (see `positions`).
    """

    kind: Literal["cut"] = "cut"  # pyright: ignore[reportIncompatibleVariableOverride]
    frames: PositiveInt = 21

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        """The cache with a cut after its newest frame."""
        return cache.cut(self.frames)
