"""Several processes train one model: equal weights, averaged gradients, and starting them on one machine."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reward_forcing.processes import PATIENCE, World

T = TypeVar("T")
_LAUNCHER_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing.spawn")


def broadcast_weights(networks: Iterable[nn.Module], world: World) -> None:
    """Give every process the first one's parameters and buffers; sharded ones are equal parts of one whole already."""
    if world.size > 1:
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                if not isinstance(tensor, DTensor):
                    dist.broadcast(tensor.data, src=0)


def gather(value: T, world: World, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return every process's value (any picklable object), by rank, in every process.

    group: of all processes, to gather beside what goes on in the default one.
    """
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group)
    return values


def new_cpu_group(world: World) -> dist.ProcessGroup | None:
    """Return another group of all processes, for operations on the CPU beside the default one's; None for a single one.

    A collective operation.
    """
    if world.size == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` [K] over all processes, in every process; the values themselves in a single one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def place() -> tuple[int, int]:
    """This process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_flat(flat: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Every process's flat tensor, of `lengths[rank]` elements of one dtype, by rank, in every process."""
    if len(lengths) == 1:
        return [flat]
    padded = flat.new_zeros(max(lengths))
    padded[: len(flat)] = flat
    gathered = [torch.empty_like(padded) for _ in lengths]
    # As bytes: not every backend knows every number format.
    dist.all_gather([one.view(torch.uint8) for one in gathered], padded.view(torch.uint8))
    return [one[:length] for one, length in zip(gathered, lengths, strict=True)]


def average_gradients(parameters: Sequence[nn.Parameter], extras: Tensor, world: World) -> Tensor:
    """Average all gradients over the processes by one flat all-reduce; returns `extras` [K] averaged alike.

    A gradient that is None in some processes counts as zero there; one that is None in all stays None, so unused
    parameters behave as in a single process. `extras` lets a few numbers ride along.
    """
    if world.size == 1:
        return extras
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=world.device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
    flat = torch.cat([extras.float().to(world.device), used, *gradients])
    dist.all_reduce(flat)
    flat /= world.size
    extras, used, rest = flat.split([len(extras), len(used), flat.numel() - len(extras) - len(used)])
    is_used = (used > 0).tolist()
    for p, average, keep in zip(parameters, rest.split([p.numel() for p in parameters]), is_used, strict=True):
        # In the parameter's own memory layout: fused optimizers walk both by address.
        p.grad = torch.empty_like(p).copy_(average.view_as(p)) if keep else None
    return extras


def launch(processes: int, function: Callable[..., object], *arguments: Any) -> None:
    """Run `function(*arguments)` in so many processes, as torchrun would, to their end.

    The function must be importable by name. Raises torch's ChildFailedError if a process fails, and SignalException
    after the processes were told to stop (each has an hour to save and leave). The caller reports either: the
    launcher's own many lines are silenced.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(_LAUNCHER_LOGGERS)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"rforce-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        elastic_launch(config, function)(*arguments)
