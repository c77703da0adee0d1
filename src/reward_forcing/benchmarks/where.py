"""Where a chunk's time goes on a CPU: seconds of every operator, by the function of this package that called it.

torch's own profiler counts wall time, which other jobs on the same cores blur; these are CPU seconds of all threads.
"""

from collections import defaultdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reward_forcing.benchmarks.clock import cpu_seconds
from reward_forcing.benchmarks.pairs import against_naive
from reward_forcing.benchmarks.record import Table
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.work import place


class OperatorTimes(TorchDispatchMode):
    """CPU seconds of the operators of a with-block: (`file.py:function`, operator) -> seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add its time."""
        before = cpu_seconds()
        out = func(*args, **(kwargs or {}))
        self.seconds[place(), func.overloadpacket.__name__] += cpu_seconds() - before
        return out


def where(subject: Subject, naive: bool = False) -> Table:
    """CPU seconds of one steady chunk of the fast path, or of the naive mode: by operator and place, the longest first.

    'the rest' is Python's own time and that of what was too short to count.
    """
    with torch.no_grad():
        begin = against_naive(subject)[naive]
        begin()()
        run, before = begin(), cpu_seconds()
        with OperatorTimes() as times:
            run()
        total = cpu_seconds() - before
    longest = sorted(times.seconds.items(), key=lambda item: -item[1])
    longest = [(key, seconds) for key, seconds in longest if seconds > 0.005 * total]
    values: dict[str, float | None] = {f"{name} in {at}": seconds for (at, name), seconds in longest}
    values["the rest"] = total - sum(seconds for _, seconds in longest)
    mode = "naive" if naive else "fast"
    return Table(
        name=f"where a chunk's time goes, {mode}", unit="CPU s", values=values, notes=str(subject.conditions())
    )
