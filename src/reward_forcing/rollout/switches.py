"""What a new prompt does to the past: the switch policies, as settings that are also the functions they name.

B batch, F latent frames, C latent channels, h, w latent rows and columns.
What a policy owns is told in `switch`. A new one is a class in a file of its own and a line in `SWITCHES`; one from
outside derives from `SwitchPolicy` and is called `package.module:Class` in settings.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, PositiveInt, SerializeAsAny, model_validator
from torch import Tensor

from reward_forcing.config import read_variant
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.kv_flush import KVFlush
from reward_forcing.rollout.rope_cut import RopeCut
from reward_forcing.rollout.switch import Clean, SwitchPolicy


class Keep(SwitchPolicy):
    """The chunks to come read the new prompt; what is cached stays (Reward Forcing)."""

    kind: Literal["keep"] = "keep"  # pyright: ignore[reportIncompatibleVariableOverride] frozen, so narrowing is safe


class Reset(SwitchPolicy):
    """Nothing of the past is seen any more: a cut. The new prompt's first frames fill the sink.

    The network then makes what it makes at the beginning of a video, where a latent frame is one frame of pixels; a
    VAE that decodes on without a break takes it for four, so the picture is torn until the decoder has caught up.
    """

    kind: Literal["reset"] = "reset"  # pyright: ignore[reportIncompatibleVariableOverride]

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        """An empty cache."""
        return cache.emptied()


class Recache(SwitchPolicy):
    """What is cached is computed anew from the window's clean latents, under the new prompt (LongLive's KV re-cache).

    While the window holds the whole video, all of it is computed anew. Later it depends on global_sink. True: the sink
    stays as it is and is seen; the window's other frames are computed anew (LongLive's inference). False: nothing
    stays; the window begins the video anew, and its first frames are the sink (LongLive's long tuning).

    order 'joint': one pass, in which all these frames see each other, as the published code computes it (it builds a
    causal mask and does not use it). 'causal': chunk by chunk, as frames enter a cache otherwise; the same prompt then
    changes nothing while the window holds the whole video.

    frames: how many are computed anew if global_sink is False; None: the window. LongLive's long tuning takes 21 for a
    window of 12; the cache keeps of them what the next chunk sees.

    As in the published code, sink and frames computed anew are `window_frames` together: a chunk more than the next
    chunk has room for, which the others see while they are computed. An EMA sink absorbs nothing twice. The rollout
    keeps the window's latents for it; with an unlimited window, all.
    """

    kind: Literal["recache"] = "recache"  # pyright: ignore[reportIncompatibleVariableOverride]
    global_sink: bool = True
    order: Literal["joint", "causal"] = "joint"
    frames: PositiveInt | None = None

    @model_validator(mode="after")
    def _frames_fit(self) -> "Recache":
        if self.frames is not None and self.global_sink:
            raise ValueError(f"recache frames={self.frames} needs global_sink=false; leave it out for the window")
        return self

    def recall_frames(self, settings: CacheSettings) -> int | None:
        """The window, or `frames`."""
        return self.frames or settings.window_frames

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        """The cache with the window's frames computed anew; itself where nothing is known of them."""
        window, sink = self.recall_frames(cache.settings), cache.settings.sink.frames
        known = sum(latents.shape[1] for latents in recent)
        frames = known if window is None else min(known, window)
        anew = not self.global_sink or frames == cache.committed
        if anew:
            base = cache.emptied()
        else:
            room = known if window is None else window - sink
            frames = min(frames, room, cache.committed - cache.sink_frames)
            base = cache.rewound(frames)
        if frames == 0:
            return cache
        pieces = _newest(recent, frames)
        for latents in (torch.cat(pieces, dim=1),) if self.order == "joint" else pieces:
            base = base.commit(clean(latents, base), absorb=anew)
        return base


class Blend(SwitchPolicy):
    """One prompt gives way to the next over `chunks` chunks, the k-th of which reads k / chunks of it; the cache stays.

    What is mixed are the outputs of cross-attention (`TextMix`). In other words a chunk reads the mean of the prompts
    that were in force during the last `chunks` chunks, itself included: a switch within a blend needs no other rule.
    """

    kind: Literal["blend"] = "blend"  # pyright: ignore[reportIncompatibleVariableOverride]
    chunks: PositiveInt = 4

    def weights(self, ages: tuple[int, ...]) -> tuple[float, ...]:
        """Each prompt fades in over its own `chunks` chunks, at the expense of those before it."""
        risen = (1.0, *(min(1.0, (age + 1) / self.chunks) for age in ages[1:]), 0.0)
        return tuple(own - later for own, later in pairwise(risen))


SWITCHES: dict[str, type[SwitchPolicy]] = {
    "keep": Keep,
    "recache": Recache,
    "reset": Reset,
    "blend": Blend,
    "flush": KVFlush,
    "cut": RopeCut,
}
"""Every switch policy of this package by the name that settings call it."""


def _switch(value: object) -> object:
    return read_variant("switch policy", value, SwitchPolicy, SWITCHES)


SwitchSettings = Annotated[SerializeAsAny[SwitchPolicy], BeforeValidator(_switch)]
"""A switch policy in settings, for example `{kind: blend, chunks: 4}`."""


def _newest(pieces: tuple[Tensor, ...], frames: int) -> list[Tensor]:
    """The last `frames` frames of latents in pieces, the first piece cut if need be."""
    newest: list[Tensor] = []
    for piece in reversed(pieces):
        left = frames - sum(kept.shape[1] for kept in newest)
        if left > 0:
            newest.insert(0, piece[:, -left:])
    return newest
