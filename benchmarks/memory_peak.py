"""A plan's peak beside the measured one: `python benchmarks/memory_peak.py MODEL WIDTHxHEIGHT`, on this CPU.

Measured twice: what tensors hold at the worst moment of a stream, and what the process grew by.
"""

import sys
from pathlib import Path

import torch

from reward_forcing.cli.generate import parse_size
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.streaming.acceleration import Acceleration
from reward_forcing.streaming.memory_needs import model_of_folder, needs_of
from reward_forcing.streaming.memory_plan import plan_of, precision_on
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

CHUNKS = 5


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(model: str, size: str) -> None:
    """Print the three peaks and their ratios."""
    device = torch.device("cpu")
    folder = open_model_folder(model).resized(*parse_size(size))
    known, precision = model_of_folder(folder), precision_on(device)
    plan = plan_of(known, needs_of(known, precision), Acceleration(), device, precision)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    pipeline = StreamingVideoPipeline.load(folder, device)
    stream = pipeline.stream("a red ball bounces")
    with LiveBytes() as live:
        for _ in range(CHUNKS):
            next(stream)
    grown = resident("VmHWM") - before
    alive = live.peak + sum(plan.weights.values())
    for what, measured in (("tensors alive", alive), ("process grew by", grown)):
        print(
            f"{what}: {measured / 2**20:.1f} MiB; planned {plan.peak / 2**20:.1f} MiB, {plan.peak / measured:.2f} of it"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
