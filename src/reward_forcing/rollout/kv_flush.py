"""KV Flush of Infinity-RoPE (arXiv 2511.20649): at a new prompt the cache keeps the sink and the last frame, no more.

Our reading of the paper's description, held to no reference code. Infinity-RoPE has three parts. Block-Relativistic
RoPE puts the newest chunk at the end of the positions that the network knows and counts back from there: as only
differences of positions matter to RoPE, this is the cache's `positions: relative`. KV Flush is here, RoPE Cut in
`rope_cut`.

Left out: what becomes of frames older than the positions reach, for a window here is no longer than its settings say.
That the sink sits just before the oldest frame of the window, whatever its age, is our choice.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from reward_forcing.rollout.kv_cache import KVCache
from reward_forcing.rollout.switch import Clean, SwitchPolicy


class KVFlush(SwitchPolicy):
    """The past is dropped but for the sink and the newest `frames` latent frames: the new prompt acts at once.

    Costs nothing: neither is computed anew. Without a sink the newest frames alone remain.
    """

    kind: Literal["flush"] = "flush"  # pyright: ignore[reportIncompatibleVariableOverride]
    frames: PositiveInt = 1

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        """The cache with sink and newest frames; the sink absorbs nothing of what is dropped."""
        return cache.flushed(self.frames)
