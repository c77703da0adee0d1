"""The fastest of several ways to compute the same: measured when it is first asked for, then remembered.

Knows nothing of what is computed. A case is all that the answer may depend on, coarse enough that a stream meets few.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reward_forcing.remembered import remembered

Case = TypeVar("Case")
Clock = Callable[[Callable[[], object]], float]
"""How long calling something takes, in any unit."""


@dataclass
class Choice(Generic[Case]):
    """Which of `answers` is the fastest, case by case.

    question: a case in words, with the device it is asked of. measure: finds the answer, once on a machine, in a thread
    of its own: none of the caller's modes, such as autocast or a profiler, holds there. found: what this process knows.
    """

    question: Callable[[Case], str]
    answers: tuple[str, ...]
    measure: Callable[[Case], str]
    found: dict[Case, str] = field(default_factory=dict)

    def __call__(self, case: Case) -> str:
        """The answer for a case."""
        if case not in self.found:
            self.found[case] = remembered(self.question(case), self.answers, lambda: self._apart(case))
        return self.found[case]

    def _apart(self, case: Case) -> str:
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(self.measure, case).result()


def fastest(
    candidates: Mapping[str, Callable[[], object]], clock: Clock, repeats: int = 5, margin: float = 0.0
) -> str | None:
    """The candidate that takes the least time, of `repeats` turns after one that does not count; None where all refuse.

    Who raises a RuntimeError drops out. margin: the part of its time by which the first candidate must be beaten.
    """
    least: dict[str, float] = {}
    for name, run in candidates.items():
        try:
            clock(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            continue
        least[name] = float("inf")
    for _ in range(repeats):
        for name in least:
            least[name] = min(least[name], clock(candidates[name]))
    if not least:
        return None
    first, best = next(iter(candidates)), min(least, key=least.__getitem__)
    return first if first in least and least[best] >= (1 - margin) * least[first] else best


def is_training(tensors: Sequence[Tensor]) -> bool:
    """Whether autocast or gradients tell that these are trained on, where nothing is chosen by measuring.

    A resumed run must not be computed by another kernel than it began with.
    """
    if torch.is_autocast_enabled(tensors[0].device.type):
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
