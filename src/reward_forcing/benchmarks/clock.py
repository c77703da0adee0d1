"""Wall seconds and CPU seconds of a call, and how fast this machine multiplies matrices meanwhile.

CPU seconds are those of all threads of this process: on a machine that others use too, ratios of them repeat within a
few per cent where ratios of wall seconds do not. A GPU is waited for before and after; its time
shows in wall seconds only.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch

T = TypeVar("T")

CEILING_SHAPE = (2048, 1024, 2048)
"""Rows, inner length and columns of the matrix product that measures the ceiling; 8.6 GFLOP."""


@dataclass(frozen=True)
class Spent:
    """What something took: wall seconds, and CPU seconds of all threads of this process."""

    wall: float
    cpu: float


def measure(run: Callable[[], T], device: torch.device | str = "cpu") -> tuple[T, Spent]:
    """What `run` returns, and what calling it took."""
    wait_for(device)
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = run()
    wait_for(device)
    return result, Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


def wait_for(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def cpu_seconds() -> float:
    """CPU seconds that this process has used, in all threads, its own and the system's."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_memory_mib(device: torch.device | str = "cpu") -> float:
    """MiB at most allocated on a GPU since the start; on a CPU at most resident of the whole process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Ceiling:
    """A matrix product of 2048 x 1024 by 1024 x 2048 in one number format: its speed stands for the machine's most."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        rows, inner, columns = CEILING_SHAPE
        generator = torch.Generator().manual_seed(0)
        self.flops = 2 * rows * inner * columns
        self.device = torch.device(device)
        self._left = torch.randn(rows, inner, generator=generator).to(device, dtype)
        self._right = torch.randn(inner, columns, generator=generator).to(device, dtype)
        _ = self._left @ self._right

    def measure(self, repeats: int = 3) -> Spent:
        """What one product takes: the median of `repeats`, in wall and in CPU seconds.

        Not the least: what is compared with it shares the processor with others just as well.
        """
        taken = [measure(lambda: self._left @ self._right, self.device)[1] for _ in range(repeats)]
        return Spent(median(one.wall for one in taken), median(one.cpu for one in taken))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median_of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the pairs of theirs / ours: how many times as fast ours is."""
    return median(their / our for our, their in zip(ours, theirs, strict=True))
