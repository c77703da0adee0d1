"""Several processes do one thing: who am I among them, and what the first of them says. gloo on CPUs, nccl on GPUs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from reward_forcing.config import unknown

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""The first process may draw samples or write a checkpoint for a long while as the others wait."""


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`, computing on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@contextmanager
def join_world() -> Iterator[World]:
    """Yield this process's place: from torchrun's environment, or alone without it. Leaves the group at the end.

    Not after an error: leaving might wait for an operation that the others never join. torchrun then ends them.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank, size, device)
        return
    dist.init_process_group("cuda:nccl,cpu:gloo" if on_gpu else "gloo", timeout=PATIENCE)
    yield World(rank, size, device)
    dist.destroy_process_group()


def from_first(value: T, world: World) -> T:
    """Return the first process's value (any picklable object) in every process."""
    if world.size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def computed_by_first(compute: Callable[[], Tensor], world: World) -> Tensor:
    """What `compute` returns in the first process, in every process; the others do not call it. On the CPU then."""
    if world.size == 1:
        return compute()
    return from_first(compute().cpu() if world.is_first else torch.empty(0), world)


def device_called(name: str) -> torch.device:
    """The device of this name; raises ValueError, with the nearest there is, if this machine has none such."""
    gpus = range(torch.cuda.device_count())
    names = ["cpu", *(f"cuda:{number}" for number in gpus)]
    if name not in names:
        raise ValueError(unknown("device", name, names))
    return torch.device(name)
