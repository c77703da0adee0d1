"""A switch policy of one's own: a cut after which the sink alone remembers who was in the picture.

In this folder:  rforce generate "a red ball bounces" --at "3s: a red ball slides" --switch soft_cut:SoftCut
In Python:       pipeline.stream("a red ball bounces", at={3.0: "a red ball slides"}, switch=SoftCut())
"""

from reward_forcing.rollout import SwitchPolicy


class SoftCut(SwitchPolicy):
    """Between keep and reset: motion and place are forgotten, what the sink holds is not."""

    def cache(self, cache, recent, clean):
        return cache.rewound(cache.frames - cache.sink_frames)
