"""A stream, chunk by chunk: where each chunk's time goes, how even it is, and how long the first one takes.

Transformer alone (`stream_latents`), or everything from prompt to encoded file (`stream_video`). The stages run one
after the other here, so that each has a time of its own; `rforce generate` encodes beside the rest.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from reward_forcing.benchmarks.clock import Ceiling, Spent, measure, peak_memory_mib
from reward_forcing.benchmarks.naive import decode_at_end
from reward_forcing.benchmarks.pairs import series
from reward_forcing.benchmarks.record import Conditions, NaiveClip, Speed, Streamed
from reward_forcing.benchmarks.subjects import PROMPT, Subject
from reward_forcing.benchmarks.work import held_bytes
from reward_forcing.models.vae import FrameDecoder
from reward_forcing.streaming.stream import STAGES
from reward_forcing.streaming.video_io import open_writer

Tell = Callable[[str], None]
WARM_UP = "a blue square slides over a green floor"
"""A prompt unlike the measured one, whose text is then still to be encoded."""


def stream_latents(subject: Subject, chunks: int, tell: Tell | None = None) -> Streamed:
    """The transformer alone: `chunks` chunks after the window is full, and those before.

    Stages: dit, the denoising passes; commit, the clean pass and the cache. The first frame: the first chunk's passes.
    """
    taken: list[Spent] = []
    stages: dict[str, list[float]] = {"dit": [], "commit": []}
    with torch.no_grad():
        next(subject.fast())  # warms up
        rollout = subject.fast()
        for number in range(subject.chunks_to_fill + chunks):
            _, passes = measure(lambda: next(rollout), subject.device)
            _, commit = measure(lambda: rollout.cache, subject.device)
            stages["dit"].append(passes.wall)
            stages["commit"].append(commit.wall)
            taken.append(Spent(passes.wall + commit.wall, passes.cpu + commit.cpu))
            _say(tell, number, taken)
    return _result(subject, stages, taken, stages["dit"][0], subject.conditions(), None, held_bytes(rollout.state))


def stream_video(subject: Subject, chunks: int, tell: Tell | None = None) -> Streamed:
    """Everything of a model folder: `chunks` chunks after the window is full, and those before.

    Stages: those of `streaming.stream.STAGES`, and encode, H.264 into a file. The first frame is not encoded yet.
    Raises ValueError for a subject that is only a transformer.
    """
    pipeline = subject.pipeline
    if pipeline is None:
        raise ValueError(f"'{subject.name}' is a transformer only; end to end needs a model folder, such as mini")
    geometry, taken, counts = pipeline.geometry, [], []
    stages: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "encode")}
    next(pipeline.stream(WARM_UP, seeds=subject.seeds))
    stream = pipeline.stream(PROMPT, seeds=subject.seeds)
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(Path(folder) / "video.mp4", geometry.fps, (geometry.height, geometry.width))
        first = 0.0
        for number in range(subject.chunks_to_fill + chunks):
            chunk, made = measure(lambda: next(stream), subject.device)
            _, encoded = measure(lambda chunk=chunk: writer.write(chunk.frames[0].cpu()))
            first = first or made.wall
            for stage in STAGES:
                stages[stage].append(chunk.seconds[stage])
            stages["encode"].append(encoded.wall)
            taken.append(Spent(made.wall + encoded.wall, made.cpu + encoded.cpu))
            counts.append(chunk.frames.shape[1] * len(subject.seeds))
            _say(tell, number, taken)
        writer.close()
    held = held_bytes(stream.rollout.state) + held_bytes(stream.vae_state)
    return _result(subject, stages, taken, first, end_to_end(subject, pipeline.decoder or pipeline.vae), counts, held)


def naive_clip(subject: Subject, chunks: int) -> NaiveClip:
    """Everything of a model folder the naive way, a clip of as many chunks as `stream_video` makes with this argument.

    Raises ValueError for a subject that is only a transformer.
    """
    pipeline, total = subject.pipeline, subject.chunks_to_fill + chunks
    if pipeline is None:
        raise ValueError(f"'{subject.name}' is a transformer only; end to end needs a model folder, such as mini")
    geometry = pipeline.geometry
    embeddings, text = measure(lambda: pipeline.text_encoder([PROMPT]), subject.device)
    rollout = replace(subject, text=embeddings).naive()
    latents, passes = measure(lambda: [next(rollout).latents for _ in range(total)], subject.device)
    frames, decoded = measure(lambda: decode_at_end(pipeline.vae.vae, torch.cat(latents, dim=1)), subject.device)
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "video.mp4", (geometry.height, geometry.width)
        with open_writer(path, geometry.fps, size) as writer:
            _, encoded = measure(lambda: writer.write(frames[0].cpu()))
    spent = {"text": text, "dit and commit": passes, "decode": decoded, "encode": encoded}
    conditions = end_to_end(subject, pipeline.vae).model_copy(update={"average": "clip"})
    return NaiveClip(
        chunks=total,
        stages={stage: one.wall for stage, one in spent.items()},
        first_frame=text.wall + passes.wall + decoded.wall,
        clip=speed_of(frames.shape[1] * len(subject.seeds), list(spent.values()), conditions, subject),
        peak_memory_mib=peak_memory_mib(subject.device),
    )


def end_to_end(subject: Subject, decoder: FrameDecoder) -> Conditions:
    """What a speed of the whole pipeline counts, with this decoder."""
    size = (subject.geometry.height, subject.geometry.width)
    return subject.conditions().model_copy(update={"scope": "end to end", "size": size, "decoder": decoder.name})


def _say(tell: Tell | None, number: int, taken: list[Spent]) -> None:
    if tell is not None:
        tell(f"chunk {number}: {taken[-1].wall:.3g} s, {taken[-1].cpu:.3g} CPU s")


def _result(
    subject: Subject,
    stages: dict[str, list[float]],
    taken: list[Spent],
    first: float,
    conditions: Conditions,
    counts: list[int] | None,
    held: int,
) -> Streamed:
    """The record of a stream. counts: pixel frames of each chunk; None for what the latents would be decoded to."""
    full = subject.chunks_to_fill
    ceiling = Ceiling(subject.dtype, subject.device)
    peak = ceiling.measure()
    frames = counts or [subject.frames_per_chunk] * len(taken)
    steady, every = series(taken[full:]), series(taken)
    transformer = [dit + commit for dit, commit in zip(stages["dit"][full:], stages["commit"][full:], strict=True)]
    by_wall = counts is not None or subject.device.type == "cuda"
    used, fastest = (transformer, peak.wall) if by_wall else (steady.cpu, peak.cpu)
    return Streamed(
        stages={stage: tuple(seconds) for stage, seconds in stages.items()},
        chunks=every,
        first_frame=first,
        steady=speed_of(sum(frames[full:]), taken[full:], conditions, subject),
        clip=speed_of(sum(frames), taken, conditions.model_copy(update={"average": "clip"}), subject),
        quantiles=steady.quantiles(),
        peak_memory_mib=peak_memory_mib(subject.device),
        held_bytes=held,
        flops=subject.flops,
        peak_cpu=ceiling.flops / peak.cpu,
        peak_wall=ceiling.flops / peak.wall,
        fraction=subject.flops / median(used) * fastest / ceiling.flops,
        fraction_of="peak_wall" if by_wall else "peak_cpu",
    )


def speed_of(frames: int, taken: list[Spent], conditions: Conditions, subject: Subject) -> Speed:
    """The speed of so many pixel frames that took so long together."""
    on_gpu = subject.device.type == "cuda"
    wall, cpu = sum(one.wall for one in taken), sum(one.cpu for one in taken)
    return Speed(wall=frames / wall, cpu=None if on_gpu else frames / cpu, conditions=conditions)
