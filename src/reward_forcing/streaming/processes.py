"""One video made by several processes, started by torchrun: who computes what, and how they stay in step.

    first process: text encoder, its share of the transformer, VAE, file      others: their share of the transformer

Every process runs the same pipeline and the same streams. The transformer is shared by tokens and heads (see
`models.sequence_parallel`) and its latents are the same bits everywhere; what the text encoder and the VAE's encoder
return, and prompts that change, come from the first process; frames are its alone. In the others the VAE has shapes
and no values, so that everything that counts frames counts the same.
"""

import signal
from collections.abc import Iterator

from torch import Tensor

from reward_forcing.interrupt import Interrupt
from reward_forcing.models.sequence_parallel import Ulysses, check_shares
from reward_forcing.models.vae import StreamingVAE, VAEState
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import World, computed_by_first, from_first
from reward_forcing.streaming.model_folder import ModelFolder
from reward_forcing.streaming.stream import VideoChunk


class SharedVAE(StreamingVAE):
    """A VAE whose latents of given frames are the first process's, in every process."""

    def __init__(self, vae: StreamingVAE, world: World) -> None:
        super().__init__(vae.vae, vae.pass_frames)
        self._own = vae
        self._world = world

    def encode(self, frames: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Latents of the next frames, on the CPU, and the state after them; see `StreamingVAE.encode`."""
        latents, state = self._own.encode(frames, state)
        return computed_by_first(lambda: latents, self._world), state

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Frames of the next latents, and the state after them; see `StreamingVAE.decode`."""
        return self._own.decode(latents, state)


class WrittenElsewhere:
    """A frame writer for processes other than the first, which writes the file: it takes frames and drops them."""

    def write(self, frames: Tensor) -> None:
        """Drop frames."""

    def close(self) -> None:
        """Finish nothing."""


def check_divides(folder: ModelFolder, world: World) -> None:
    """Raises ValueError where a model has too few heads or tokens for the processes."""
    check_shares("attention heads", folder.heads, world.size)
    check_shares("tokens per latent frame", folder.geometry.tokens_per_frame, world.size)


def share_network(network: WanDiT, world: World) -> None:
    """Let `network` compute this process's share of every forward."""
    if world.size > 1:
        network.compute_only(Ulysses(world, network.config["num_attention_heads"]))


def in_step(chunks: Iterator[VideoChunk], world: World) -> Iterator[VideoChunk]:
    """The same chunks; of several processes all end after the same one when Ctrl-C stops the first.

    KeyboardInterrupt is raised then, in every process.
    """
    if world.size == 1:
        yield from chunks
        return
    with Interrupt([signal.SIGINT]) as interrupt:
        while not from_first(interrupt.signal is not None, world):
            chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk
    raise KeyboardInterrupt
