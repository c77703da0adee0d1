"""A sink policy of one's own: its first frame stays for ever, the others are the ones that left the window last.

In this folder:  rforce generate "a red ball bounces" --set sink.kind=anchored_sink:AnchoredSink
In Python:       StreamingVideoPipeline.from_pretrained("mini", settings={"sink": AnchoredSink(frames=2)})
"""

import torch

from reward_forcing.rollout import Sink


class AnchoredSink(Sink):
    """Between the static sink and a longer window: the beginning is kept, and so is what has just been."""

    def absorb(self, sink, evicted, slot):
        newest = torch.cat([sink, evicted.float()], dim=2)[:, :, -self.frames :]
        return torch.cat([sink[:, :, :1], newest[:, :, 1:]], dim=2)
