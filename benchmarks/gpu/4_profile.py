"""Command 4 of the GPU protocol, if time is left: where one chunk's time goes, kernel by kernel.

    python benchmarks/gpu/4_profile.py --out 4_profile.json

torch's profiler over one steady chunk of the 1.3B network: the thirty operators with the most time of their own, and
the same of the naive mode. Training steps are measured by `rforce train`, not here.
"""

from collections.abc import Callable

import torch
from protocol import Protocol, begin, finish
from torch.profiler import ProfilerActivity, profile

from reward_forcing.benchmarks.pairs import against_naive
from reward_forcing.benchmarks.record import Table

TOP = 30


def operators(run: Protocol, chunk: Callable[[], object]) -> dict[str, float | None]:
    """Operator or kernel -> milliseconds of its own in one chunk, the longest first."""
    on_gpu = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        chunk()
        if on_gpu:
            torch.cuda.synchronize(run.device)
    clock = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: -getattr(event, clock))[:TOP]
    return {event.key[:120]: getattr(event, clock) / 1e3 for event in found}


def main() -> None:
    """One chunk of each."""
    run = begin(__doc__ or "", minutes=5)
    with torch.no_grad():
        for name, begin_chunk in zip(("fast", "naive"), against_naive(run.subject()), strict=True):
            begin_chunk()()
            values = operators(run, begin_chunk())
            run.recorder.add(Table(name=f"operators of a chunk, {name}", unit="ms", values=values))
            for operator, milliseconds in list(values.items())[:12]:
                print(f"{name} {milliseconds:9.3f} ms  {operator}", flush=True)
    finish(run)


if __name__ == "__main__":
    main()
