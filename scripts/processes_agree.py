"""How far a video of several processes is from that of one, chunk by chunk, in latents and in frames.

    torchrun --standalone --nproc-per-node 2 scripts/processes_agree.py --dtype float32

Every process first makes the video alone; the first one prints how far both are apart. --dtype: of network and VAE.
"""

from itertools import islice
from typing import Annotated

import torch
import typer
from torch import Tensor

from reward_forcing import StreamingVideoPipeline
from reward_forcing.processes import World, join_world
from reward_forcing.rollout import Recache


def make(world: World, model: str, dtype: torch.dtype, chunks: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents and frames of each chunk of a video whose prompt changes half way, with the window computed anew."""
    pipeline = StreamingVideoPipeline.from_pretrained(model, dtype=dtype, device=world.device, world=world)
    half = pipeline.geometry.frames_of(chunks // 2 * pipeline.geometry.chunk_frames) / pipeline.geometry.fps
    stream = pipeline.stream("a red ball bounces", at={half: "a blue ball bounces"}, seed=1, switch=Recache())
    latents, frames = [], []
    for chunk in islice(stream, chunks):
        pending = stream.rollout.state.pending
        assert pending is not None, "a chunk's clean pass runs before the next one"
        latents.append(pending.latents)
        frames.append(chunk.frames)
    return latents, frames


def main(
    model: Annotated[str, typer.Option(help="Model folder, bundled model or hub id.")] = "mini",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    chunks: Annotated[int, typer.Option(help="Length of the video.")] = 8,
) -> None:
    """Print the relative difference of the latents, and the largest difference of the frames of 255, for each chunk."""
    with join_world() as world:
        alone = make(World(0, 1, world.device), model, getattr(torch, dtype), chunks)
        together = make(world, model, getattr(torch, dtype), chunks)
        if world.is_first:
            (latents, frames), (latents_alone, frames_alone) = together, alone
            for index, pair in enumerate(zip(latents, latents_alone, frames, frames_alone, strict=True)):
                ours, theirs, seen, expected = pair
                relative = float((ours - theirs).norm() / theirs.norm())
                print(f"chunk {index}: latents {relative:.1e}, frames {float((seen - expected).abs().max()) * 255:.2g}")


if __name__ == "__main__":
    typer.run(main)
