"""Several real processes for a test, without starting interpreters."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from reward_forcing.processes import World


def in_processes(count: int, folder: Path, function: Callable[[World], object]) -> None:
    """Run `function(world)` in so many forked processes on the CPU; fails if it fails in any."""
    with tempfile.TemporaryDirectory(dir=folder) as meeting:
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                try:
                    dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=count)
                    function(World(rank, count, torch.device("cpu")))
                    dist.destroy_process_group()
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == count * [0], f"exit codes {codes}"
