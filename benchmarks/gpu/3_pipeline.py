"""Command 3 of the GPU protocol: from prompt to frames, with Wan's VAE, and over 300 chunks.

    python benchmarks/gpu/3_pipeline.py --out 3_pipeline.json

Random weights at the real sizes. Text embeddings are drawn, not encoded: UMT5 is not counted, which the record says.
The VAE and a tiny decoder (TAEHV) alone (12 frames, first frame), first chunk and prompt switch ten times each, frames
to the host as uint8, and a soak of 300 chunks with the VAE: evenness, and memory after chunks 20, 100 and 300.
"""

from functools import partial
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from protocol import PROMPT, Protocol, RandomText, begin, finish, frozen

from reward_forcing.benchmarks.clock import measure, peak_memory_mib, percentile
from reward_forcing.benchmarks.work import held_bytes
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

TINY_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def pipeline_of(run: Protocol) -> StreamingVideoPipeline:
    """A whole model of random weights."""
    subject = run.subject()
    vae = StreamingVAE(frozen(AutoencoderKLWan(**(TINY_VAE if run.tiny else {})), run))
    text = RandomText(subject.text.shape[1], subject.network.config["text_dim"], run.device, run.dtype)
    return StreamingVideoPipeline(subject.network, vae, text, subject.method)


def decoders(run: Protocol, pipeline: StreamingVideoPipeline) -> None:
    """Seconds of the VAE and of a tiny decoder alone: the first latent, and a chunk further on."""
    geometry = pipeline.geometry
    latents = torch.randn(1, 3, 16, geometry.latent_height, geometry.latent_width, device=run.device)
    tiny = TinyVAE(TinySizes(widths=(8, 8, 4, 4)) if run.tiny else TinySizes())
    for name, decoder in (("Wan VAE", pipeline.vae), ("TAEHV", TinyDecoder(frozen(tiny, run)))):
        _, state = decoder.decode(latents)
        first, chunk = partial(decoder.decode, latents[:, :1]), partial(decoder.decode, latents, state)
        rows = (("first latent, 1 frame", partial(run.time, first)), ("a chunk, 12 frames", partial(run.time, chunk)))
        run.table(f"{name} decode", "s", rows)


def latencies(run: Protocol, pipeline: StreamingVideoPipeline) -> None:
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
    run.table("latencies", "s", rows, notes="text embeddings are drawn, UMT5 is not counted")


def soak(run: Protocol, pipeline: StreamingVideoPipeline) -> None:
    """Evenness and memory of one long stream, and its speed from prompt to frames in the GPU's memory."""
    chunks = (4, 6, 12) if run.tiny else (20, 100, 300)
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
    run.table("memory of a stream", "MiB", [(name, lambda value=value: value) for name, value in memory.items()])
    rows = [(f"p{percent}", lambda percent=percent: percentile(steady, percent)) for percent in (50, 95, 99, 100)]
    run.table(
        "chunks of a stream", "s", rows, notes=f"{len(steady)} steady chunks, end to end without encoding to a file"
    )
    window, passes = pipeline.settings.window_frames, f"{len(pipeline.settings.sigmas)}+1 passes"
    notes = f"end to end without UMT5 and file, window {window}, {passes}, bfloat16, Wan VAE bfloat16, steady state"
    run.table("speed of a stream", "FPS", [("steady", lambda: sum(frames[full:]) / sum(steady))], notes=notes)


def main() -> None:
    """Decoders, latencies, soak."""
    run = begin(__doc__ or "", minutes=9)
    run.recorder.fail("UMT5: not part of this script yet")
    with torch.no_grad():
        pipeline = pipeline_of(run)
        decoders(run, pipeline)
        latencies(run, pipeline)
        soak(run, pipeline)
    finish(run)


if __name__ == "__main__":
    main()
