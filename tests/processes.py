"""Several real processes for a test, without starting interpreters."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from reward_forcing.processes import World


def in_processes(count: int, folder: Path, function: Callable[[World], object]) -> None:
    """Run `function(world)` in so many forked processes on the CPU; fails if it fails in any."""
    with tempfile.TemporaryDirectory(dir=folder) as meeting:

        def run(rank: int) -> None:
            dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=count)
            function(World(rank, count, torch.device("cpu")))
            dist.destroy_process_group()

        codes = exit_codes(count, run)
    assert codes == count * [0], f"exit codes {codes}"


def as_torchrun_starts(count: int, function: Callable[[], object]) -> list[int]:
    """Exit codes of `function` in so many forked processes, in the environment that torchrun gives its processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        function()

    return exit_codes(count, run)


def exit_codes(count: int, function: Callable[[int], object]) -> list[int]:
    """Exit codes of `function(rank)` in so many forked processes; 1 where it raises."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                function(rank)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
