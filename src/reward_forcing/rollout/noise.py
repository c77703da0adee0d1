"""Noise as a function of what it is for, so that no order of calls, batch or device can change it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Noise(Protocol):
    """Where a rollout's noise comes from."""

    def __call__(self, chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        """Noise [B, *shape], float32 on the CPU: draw 0 begins `chunk`, draw s re-noises it after its s-th pass."""
        ...


@dataclass(frozen=True)
class SeededNoise:
    """Standard normal noise determined by (sample seed, chunk, draw), one seed per sample of the batch.

    A sample's noise depends on nothing else: not on the batch around it, on the device, or on what was drawn before,
    so an endless stream equals a finite one and a stream resumes exactly. Holds no state; pickles and compares by its
    seeds. The three numbers are the key of a counter-based generator (Philox4x64), so distinct ones never share a
    stream; torch's CPU generator keeps only 32 bits of its seed.
    Raises ValueError for seeds outside 0 .. 2^64 - 1 and for no seeds at all.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds or not all(0 <= seed < 2**64 for seed in self.seeds):
            raise ValueError(f"seeds must be one or more integers in 0 .. 2^64 - 1, got {list(self.seeds)}")

    def __call__(self, chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        """Noise [B, *shape], float32 on the CPU; chunk and draw lie in 0 .. 2^32 - 1."""
        assert 0 <= chunk < 2**32, chunk
        assert 0 <= draw < 2**32, draw
        keys = [np.array([seed, chunk << 32 | draw], dtype=np.uint64) for seed in self.seeds]
        samples = [_generator(key).standard_normal(tuple(shape), dtype=np.float32) for key in keys]
        return torch.from_numpy(np.stack(samples))


def _generator(key: np.ndarray) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))
