"""What a rollout asks of a switch policy.

B batch, F latent frames, C latent channels, h, w latent rows and columns.
A policy owns which cache the chunks under a new prompt see, and how much of each prompt they read. It knows neither
when prompts change nor how a clean pass is run; `Rollout` decides both. The policies there are stand in `switches`.
"""

from collections.abc import Callable

from torch import Tensor

from reward_forcing.config import Variant
from reward_forcing.models.attention import KV
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache

Clean = Callable[[Tensor, KVCache], KV]
"""Keys and values of latents [B, F, C, h, w] in a clean pass over a cache, under the text that the next chunk reads."""


class SwitchPolicy(Variant):
    """What a rollout asks of a switch policy; this one changes the text and nothing else.

    kind: the policy's name in settings; of a class outside this package where to import it from. A policy holds no
    state: what it needs of the past is kept by the rollout, so that a saved rollout resumes exactly.
    """

    def recall_frames(self, settings: CacheSettings) -> int | None:
        """Latent frames before a switch that `cache` is to be given; None for all, as long as the video may be."""
        return 0

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        """The cache that the first chunk under the new prompt sees, with chunks of the old size.

        cache: the one so far, every finished chunk committed. recent: what the latest clean passes were given, latents
        [B, F, C, h, w] of one chunk each, oldest first: `recall_frames`, as many as there have been; what they would
        have been given where there are none. Pure.
        """
        return cache

    def weights(self, ages: tuple[int, ...]) -> tuple[float, ...]:
        """How much the next chunk reads of each prompt, oldest first, 1 in sum.

        ages: chunks finished since each prompt was given, decreasing; 0 for one that no chunk has read. Prompts before
        the first that weighs anything are forgotten, so memory is bounded if weights end at 0.
        """
        return (*(0.0 for _ in ages[1:]), 1.0)
