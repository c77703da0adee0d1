"""A long video as clips that overlap: how a model goes past the length that it was trained on.

B batch, T pixel frames. Owns when a clip is over and how the next one begins. Knows no prompts and no passes; the
numbers stand in `methods`.
"""

import torch
from torch import Tensor

from reward_forcing.geometry import Geometry
from reward_forcing.models.vae import FrameDecoder, StreamingVAE, VAEState
from reward_forcing.rollout import Rollout
from reward_forcing.streaming.methods import ClipSettings


class Clips:
    """The clips of one running video; a single one without end where `settings` are None.

    CausVid: a clip begins with an empty cache and the last `overlap_frames` of the one before, whose frames are encoded
    as the beginning of a video, so that the first latent frame is that of a single picture, as in training. What is
    repeated has been shown and is not shown again. repeated_frames, repeated_chunks: latent frames and chunks of the
    rollout so far that repeat others.
    """

    def __init__(
        self, settings: ClipSettings | None, vae: StreamingVAE, decoder: FrameDecoder, geometry: Geometry
    ) -> None:
        self.repeated_frames = 0
        self.repeated_chunks = 0
        self._settings = settings
        self._vae = vae
        self._decoder = decoder
        self._geometry = geometry
        self._tail: Tensor | None = None
        self._start = 0

    def keep(self, frames: Tensor) -> None:
        """Remember what a clip may have to repeat of the frames [B, T, 3, H, W] just made."""
        if self._settings is not None:
            joined = frames if self._tail is None else torch.cat([self._tail, frames], dim=1)
            self._tail = joined[:, -self._geometry.frames_of(self._settings.overlap_frames) :].clone()

    def is_over(self, rollout: Rollout) -> bool:
        """Whether the next chunk would not fit the running clip, and there are frames to begin another with."""
        if self._settings is None or self._tail is None:
            return False
        return rollout.state.start + self._geometry.chunk_frames - self._start > self._settings.frames

    def begin(self, rollout: Rollout) -> VAEState:
        """Begin the next clip in `rollout`, and return the state of a decoder that has seen what it repeats."""
        latents, _ = self._vae.encode(self._repeated())
        _, state = self._decoder.decode(latents)
        before = rollout.state
        rollout.cache = before.cache.emptied()
        rollout.prime(latents)
        self._start = before.start
        self.repeated_frames += rollout.state.start - before.start
        self.repeated_chunks += rollout.state.index - before.index
        return state

    def _repeated(self) -> Tensor:
        """The newest frames that `overlap_frames` latent frames hold, or fewer where not as many were made."""
        assert self._settings is not None, "a video without clips has no next one"
        assert self._tail is not None, "a clip can end only after frames were made"
        made = self._tail.shape[1]
        counts = (self._geometry.frames_of(latent) for latent in range(1, self._settings.overlap_frames + 1))
        return self._tail[:, -max(count for count in counts if count <= made) :]
