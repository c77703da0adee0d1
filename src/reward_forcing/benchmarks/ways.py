"""One network run in several ways: as it is, graphed, compiled, in fewer bits; the same chunk of the same stream.

Every way begins at the same filled cache, on weights that all share but those in few bits. Ways are measured one after
the other, each beside nothing else, and their latents are held to those of the exact, eager one.
"""

from dataclasses import replace

import torch

from reward_forcing.benchmarks.clock import measure, peak_memory_mib
from reward_forcing.benchmarks.pairs import fast_side, series
from reward_forcing.benchmarks.quality import relative_error
from reward_forcing.benchmarks.record import WayMeasured
from reward_forcing.benchmarks.streamed import speed_of
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.acceleration import Acceleration, quantise, set_attention

EXACT = (
    Acceleration(),
    Acceleration(graphs=True),
    Acceleration(compile=True),
    Acceleration(compile=True, graphs=True),
)
LOW_BIT = (
    Acceleration(weights="int8"),
    Acceleration(weights="fp8"),
    Acceleration(weights="int8-dynamic"),
    Acceleration(weights="fp8-dynamic"),
    Acceleration(attention="fp8"),
    Acceleration(weights="fp8-dynamic", attention="fp8"),
    Acceleration(weights="fp8-dynamic", compile=True, graphs=True),
)
WARM_UPS = 3
"""Chunks that do not count: the first is compiled, the second captured, the third the first of its kind."""


def name_of(how: Acceleration) -> str:
    """A way in words: `exact`, `exact, compiled, graphs`."""
    options = [*["fp8 attention"] * (how.attention == "fp8"), *["compiled"] * how.compile, *["graphs"] * how.graphs]
    return ", ".join([how.weights, *options])


@torch.inference_mode()
def measure_way(subject: Subject, how: Acceleration, chunks: int) -> WayMeasured:
    """One way: `chunks` chunks after `WARM_UPS`; its error is taken of the subject as it is.

    Raises what libraries raise that are missing, too old or out of memory.
    """
    given = subject.given(subject.chunks_to_fill)
    exact = fast_side(subject, given)()()

    def prepare() -> Subject:
        ready = accelerated(subject, how)
        begin = fast_side(ready, given)
        for _ in range(WARM_UPS):
            begin()()
        return ready

    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    ready, preparing = measure(prepare, subject.device)
    begin = fast_side(ready, given)
    begin()()
    made = [measure(begin(), subject.device) for _ in range(chunks)]
    taken = [spent for _, spent in made]
    return WayMeasured(
        name=name_of(how),
        chunks=series(taken),
        speed=speed_of(chunks * ready.frames_per_chunk, taken, ready.conditions(), ready),
        error=max(relative_error(exact, latents) for latents, _ in made),
        preparing=preparing.wall,
        peak_memory_mib=peak_memory_mib(subject.device),
    )


def accelerated(subject: Subject, how: Acceleration) -> Subject:
    """The subject run as `how` says, on weights shared with it; raises ValueError as `Acceleration.check` does."""
    how.check(subject.device)
    network = _twin(subject.network)
    for block in network.blocks:
        quantise(block, how.weights)
        set_attention(block, how.attention)
    if how.compile:
        network.compile_blocks()
    graphed = GraphedForward(network) if how.graphs else None
    kept = {"weights": how.weights, "attention": how.attention}
    return replace(subject, network=network, graphed=graphed, compiled=how.compile, **kept)


def _twin(network: WanDiT) -> WanDiT:
    """Another network of the same parameters."""
    with torch.device("meta"):
        twin = WanDiT.from_config(network.config)
    assert isinstance(twin, WanDiT)
    twin.load_state_dict(network.state_dict(), assign=True)
    return twin.eval().requires_grad_(False)
