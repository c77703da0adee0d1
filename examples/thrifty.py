"""A schedule of one's own: the first chunk takes every step; the others, with a past to go by, leave out the second.

In this folder:  rforce generate "a red ball bounces" --set schedule=thrifty:thrifty
In Python:       StreamingVideoPipeline.from_pretrained("mini", settings={"schedule": "thrifty:thrifty"})
"""

from itertools import count

from reward_forcing.rollout import Pass


def thrifty(sigmas, *, chunks=None):
    """Passes of `chunks` chunks, one after the other; None: without end."""
    for chunk in count() if chunks is None else range(chunks):
        own = (*sigmas[:1], *sigmas[2:]) if chunk else sigmas
        for sigma, sigma_next in zip(own, (*own[1:], None), strict=True):
            yield Pass((chunk,), (sigma,), (sigma_next,))
