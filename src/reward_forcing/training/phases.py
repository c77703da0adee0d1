"""Progressive training: parts of a run with clips of their own length and batches of their own size."""

from collections.abc import Sequence

from pydantic import Field, PositiveInt

from reward_forcing.config import Settings


class Phase(Settings):
    """One part of a run. share: its part of all steps, relative to the other phases. frames: the clip's length, in
    pixel frames for a VAE and in latent frames for a transformer. batch: clips in the global batch."""

    share: float = Field(gt=0)
    frames: PositiveInt
    batch: PositiveInt


def phase_at(phases: Sequence[Phase], step: int, steps: int) -> Phase:
    """Return the phase that `step` (from 0) of a run of `steps` steps falls into; the last one from there on."""
    total, done = sum(phase.share for phase in phases), 0.0
    for phase in phases:
        done += phase.share
        if step < round(done / total * steps):
            return phase
    return phases[-1]
