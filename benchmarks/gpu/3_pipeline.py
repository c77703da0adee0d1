"""Command 3 of the GPU protocol: from prompt to frames, with Wan's VAE and a tiny decoder, and over 300 chunks.

    python benchmarks/gpu/3_pipeline.py --out 3_pipeline.json

Random weights at the real sizes. Text embeddings are drawn, not encoded: UMT5 is not counted, which the record says.
The VAE and a tiny decoder (TAEHV) alone (12 frames, first frame), first chunk and prompt switch ten times each, frames
to the host as uint8, and a soak of 300 chunks with the VAE: evenness, and memory after chunks 20, 100 and 300. Then the
tiny decoder in the VAE's place: first chunk, prompt switch and 40 chunks, as it is and compiled with CUDA graphs.
"""

from functools import partial
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from protocol import PROMPT, Protocol, RandomText, begin, finish, frozen

from reward_forcing.benchmarks.clock import measure, peak_memory_mib, percentile
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.ways import accelerated, name_of
from reward_forcing.benchmarks.work import held_bytes
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE
from reward_forcing.models.vae import FrameDecoder, StreamingVAE
from reward_forcing.streaming.acceleration import Acceleration
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

TINY_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


FAST = Acceleration(compile=True, graphs=True)
COMPILING = 60
"""Seconds that must be left for compiled networks to begin."""


def pipeline_of(run: Protocol, subject: Subject, decoder: FrameDecoder | None = None) -> StreamingVideoPipeline:
    """A whole model of random weights."""
    vae = StreamingVAE(frozen(AutoencoderKLWan(**(TINY_VAE if run.tiny else {})), run))
    text = RandomText(subject.text.shape[1], subject.network.config["text_dim"], run.device, run.dtype)
    return StreamingVideoPipeline(subject.network, vae, text, subject.method, decoder, graphed=subject.graphed)


def tiny_decoder(run: Protocol) -> TinyDecoder:
    """A decoder of TAEHV's size."""
    return TinyDecoder(frozen(TinyVAE(TinySizes(widths=(8, 8, 4, 4)) if run.tiny else TinySizes()), run))


def decoders(run: Protocol, pipeline: StreamingVideoPipeline) -> None:
    """Seconds of the VAE and of a tiny decoder alone: the first latent, and a chunk further on."""
    geometry = pipeline.geometry
    latents = torch.randn(1, 3, 16, geometry.latent_height, geometry.latent_width, device=run.device)
    for name, decoder in (("Wan VAE", pipeline.vae), ("TAEHV", tiny_decoder(run))):
        _, state = decoder.decode(latents)
        first, chunk = partial(decoder.decode, latents[:, :1]), partial(decoder.decode, latents, state)
        rows = (("first latent, 1 frame", partial(run.time, first)), ("a chunk, 12 frames", partial(run.time, chunk)))
        run.table(f"{name} decode", "s", rows)


def latencies(run: Protocol, pipeline: StreamingVideoPipeline, of: str = "") -> None:
    """Seconds to the first chunk's frames, to those under a new prompt, and of moving a chunk to the host."""
    repeats = 2 if run.tiny else 10

    def first() -> float:
        next(pipeline.stream(PROMPT))
        return median(measure(lambda: next(pipeline.stream(PROMPT)), run.device)[1].wall for _ in range(repeats))

    def switch() -> float:
        stream, taken = pipeline.stream(PROMPT), []
        for _ in range(4):
            next(stream)
        for number in range(repeats):
            stream.prompt = f"{PROMPT} {'again ' * number}"
            taken.append(measure(lambda: next(stream), run.device)[1].wall)
        return percentile(taken, 99)

    def to_host() -> float:
        frames = next(pipeline.stream(PROMPT)).frames
        return run.time(lambda: frames.mul(255).to(torch.uint8).cpu())

    rows = (("first chunk, 9 frames", first), ("prompt switch, p99, from a chunk's end", switch), ("to host", to_host))
    run.table(f"latencies{of}", "s", rows, notes="text embeddings are drawn, UMT5 is not counted")


def soak(run: Protocol, pipeline: StreamingVideoPipeline, chunks: tuple[int, ...], of: str = "") -> None:
    """Evenness and memory of one stream, told after each of `chunks`, and its speed to frames in the GPU's memory."""
    stream, taken, frames = pipeline.stream(PROMPT), [], []
    memory: dict[str, float | None] = {}
    for number in range(1, chunks[-1] + 1):
        chunk, spent = measure(lambda: next(stream), run.device)
        taken.append(spent.wall)
        frames.append(chunk.frames.shape[1])
        if number in chunks:
            held = held_bytes(stream.rollout.state) + held_bytes(stream.vae_state)
            memory[f"held after chunk {number}"] = held / 2**20
            memory[f"peak after chunk {number}"] = peak_memory_mib(run.device)
        if run.late():
            run.recorder.fail(f"soak: no time left after chunk {number}")
            break
    full = min(len(taken) - 1, 4)
    steady = taken[full:]
    run.table(f"memory of a stream{of}", "MiB", [(name, lambda value=value: value) for name, value in memory.items()])
    rows = [(f"p{percent}", lambda percent=percent: percentile(steady, percent)) for percent in (50, 95, 99, 100)]
    notes = f"{len(steady)} steady chunks, end to end without encoding to a file"
    run.table(f"chunks of a stream{of}", "s", rows, notes=notes)
    window, passes = pipeline.settings.window_frames, f"{len(pipeline.settings.sigmas)}+1 passes"
    decoder = (pipeline.decoder or pipeline.vae).name
    notes = f"end to end without UMT5 and file, window {window}, {passes}, bfloat16, {decoder}, steady state"
    run.table(f"speed of a stream{of}", "FPS", [("steady", lambda: sum(frames[full:]) / sum(steady))], notes=notes)


def end_to_end(run: Protocol, subject: Subject, how: Acceleration, chunks: int) -> None:
    """First chunk, prompt switch and a stream with a tiny decoder, the network run as `how` says."""
    pipeline = pipeline_of(run, accelerated(subject, how), tiny_decoder(run))
    of = f", TAEHV, {name_of(how)}"
    soak(run, pipeline, (chunks // 2, chunks), of)  # first, so that everything is compiled and captured
    latencies(run, pipeline, of)


def main() -> None:
    """Decoders, latencies, soak, and a tiny decoder end to end."""
    run = begin(__doc__ or "", minutes=9)
    run.recorder.fail("UMT5: not part of this script yet")
    with torch.no_grad():
        subject, chunks = run.subject(), 6 if run.tiny else 40
        pipeline = pipeline_of(run, subject)
        decoders(run, pipeline)
        latencies(run, pipeline)
        soak(run, pipeline, (4, 6, 12) if run.tiny else (20, 100, 300))
        del pipeline
        for how, needs in ((Acceleration(), 0), (FAST, 0 if run.tiny else COMPILING)):
            run.attempt(f"TAEHV, {name_of(how)}", partial(end_to_end, run, subject, how, chunks), needs)
    finish(run)


if __name__ == "__main__":
    main()
