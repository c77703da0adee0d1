"""A CUDA graph's stand-in on a CPU: it keeps the operations of a run, and replays them over the tensors they had.

As with a graph no Python runs again, inputs are read where they lay, and results appear where the first ones did. What
a graph's memory held from before is gone at a replay, which NaN shows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reward_forcing.models.cuda_graphs import Outputs, Run

WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default}
"""Operations for which the host waits, which no graph can hold."""


class Tapes:
    """`Capture` on a CPU. captured: how many runs have been."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, run: Run) -> tuple[Callable[[], None], Outputs]:
        """A tape of `run`."""
        self.captured += 1
        run()
        tape = Tape()
        with tape:
            outputs = run()

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay, outputs


class Tape(TorchDispatchMode):
    """The operations of a with-block, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of `func`, kept with what it was given."""
        assert func not in WAITING, f"{func} waits for the device"
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Compute everything again, in place."""
        own = [(made(args, out), func, args, kwargs) for func, args, kwargs, out in self.operations]
        for results, *_ in own:
            for result in results:
                result.fill_(float("nan") if result.is_floating_point() else 0)
        for results, func, args, kwargs in own:
            if results:
                for result, again in zip(results, tensors(func(*args, **kwargs)), strict=True):
                    result.copy_(again)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def made(args: Any, out: Any) -> list[Tensor]:
    """The results of an operation that lie in memory of their own; none for a view."""
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors(args)}
    return [tensor for tensor in tensors(out) if tensor.untyped_storage().data_ptr() not in given]
