"""A tiny decoder beside the VAE whose place it takes: what it costs in picture, and what it saves in time.

Both decode the same latents, which the model itself makes, so that the difference is the decoder's alone.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_forcing.benchmarks.clock import Spent, measure, median_of_pairs
from reward_forcing.benchmarks.pairs import series
from reward_forcing.benchmarks.record import DecoderBeside
from reward_forcing.benchmarks.streamed import end_to_end
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.models.vae import VAEState


@torch.no_grad()
def beside_vae(subject: Subject, chunks: int, tell: Callable[[str], None] | None = None) -> DecoderBeside:
    """The subject's decoder and its VAE on the first `chunks` chunks of a video.

    Who begins changes from chunk to chunk. tell: is given a line about every chunk.
    Raises ValueError for a subject without a decoder of its own.
    """
    pipeline = subject.pipeline
    if pipeline is None or pipeline.decoder is None:
        raise ValueError(f"'{subject.name}' has no other decoder than its VAE; name one")
    sides, rollout = (pipeline.decoder, pipeline.vae), subject.fast()
    latents = [next(rollout).latents for _ in range(chunks)]
    for side in sides:
        side.decode(latents[0])  # warms up
    states: list[VAEState | None] = [None, None]
    taken: tuple[list[Spent], list[Spent]] = ([], [])
    errors, counts = [], []
    for number, chunk in enumerate(latents):
        frames: dict[int, Tensor] = {}
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            decode = partial(sides[side].decode, chunk, states[side])
            (frames[side], states[side]), spent = measure(decode, subject.device)
            taken[side].append(spent)
        errors.append(F.mse_loss(frames[0], frames[1]).item())
        counts.append(frames[0].shape[1])
        if tell is not None:
            tell(f"chunk {number}: {psnr(errors[-1]):.2f} dB, {taken[1][-1].wall:.3g} / {taken[0][-1].wall:.3g} s")
    ours, theirs = (series(side) for side in taken)
    error = sum(error * count for error, count in zip(errors, counts, strict=True)) / sum(counts)
    return DecoderBeside(
        conditions=end_to_end(subject, pipeline.decoder).model_copy(
            update={"scope": "decoder only", "average": "clip"}
        ),
        reference=pipeline.vae.name,
        psnr=psnr(error),
        chunk_psnr=tuple(map(psnr, errors)),
        ours=ours,
        theirs=theirs,
        ratio_cpu=median_of_pairs(ours.cpu, theirs.cpu),
        ratio_wall=median_of_pairs(ours.wall, theirs.wall),
    )


def psnr(error: float) -> float:
    """Decibels of a mean squared error of frames in [0, 1]: -10 log10(error), 100 at most, which JSON can hold."""
    return -10 * math.log10(max(error, 1e-10))
