"""What an option that changes the output changes: its stream beside the exact one, from the same prompt and noise.

B batch, F latent frames, C latent channels, h w latent size.
"""

import torch
from torch import Tensor

from reward_forcing.benchmarks.record import Table
from reward_forcing.benchmarks.subjects import PROMPT
from reward_forcing.config import apply_override
from reward_forcing.streaming.acceleration import Acceleration
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

OPTIONS = ("weights=int8", "weights=int8-dynamic", "weights=fp8", "attention=fp8", "cache=int8")
"""What is compared unless options are given."""


def check_option(option: str) -> tuple[Acceleration, list[str]]:
    """An option as an acceleration, or as a change of the method.

    Raises ValueError for one that is no `NAME=VALUE`, or whose value makes no sense for an acceleration.
    """
    name = option.partition("=")[0].strip()
    if name not in Acceleration.model_fields:
        return Acceleration(), [option]
    values: dict[str, object] = {}
    apply_override(values, option)
    return Acceleration.model_validate(values), []


def streamed(model: str, method: str | None, option: str | None, chunks: int, seed: int, device: str) -> list[Tensor]:
    """Latents and frames of each chunk in turn, [latents, frames, latents, ..]; option None: the exact stream."""
    how, changes = (Acceleration(), []) if option is None else check_option(option)
    pipeline = StreamingVideoPipeline.load(open_model_folder(model, method, None, changes), device, acceleration=how)
    stream, made = pipeline.stream(PROMPT, seed=seed), []
    for _ in range(chunks):
        frames = next(stream).frames
        pending = stream.rollout.state.pending
        assert pending is not None, "a chunk that was just yielded waits to be committed"
        made += [pending.latents.float().cpu(), frames.cpu()]
    return made


def quality(option: str, exact: list[Tensor], made: list[Tensor]) -> tuple[Table, Table]:
    """Relative error of the latents and PSNR of the frames, chunk by chunk, of two results of `streamed`."""
    pairs = list(zip(exact, made, strict=True))
    errors = {str(n): relative_error(*pair) for n, pair in enumerate(pairs[::2])}
    decibels = {str(n): psnr(*pair) for n, pair in enumerate(pairs[1::2])}
    return (
        Table(name=f"{option}: relative error of latents by chunk", unit="1", values=dict(errors)),
        Table(name=f"{option}: PSNR of frames by chunk", unit="dB", values=dict(decibels)),
    )


def relative_error(exact: Tensor, made: Tensor) -> float:
    """|made - exact| / |exact|."""
    return ((made - exact).norm() / exact.norm()).item()


def psnr(exact: Tensor, made: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB of frames in [0, 1]; None where they are equal."""
    error = (made - exact).square().mean()
    return None if error == 0 else (-10 * torch.log10(error)).item()
