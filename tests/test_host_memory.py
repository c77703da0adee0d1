"""Freed tensors' pages are used again, unless the environment says how to allocate."""

import json
import platform
import subprocess
import sys

import pytest

FAULTS = """
import json, resource, torch
from reward_forcing.host_memory import keep_freed_memory
kept = keep_freed_memory() if {keep} else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(24):
    torch.ones(16 << 20)
before = faults()
for _ in range(8):
    torch.ones(16 << 20)
print(json.dumps([kept, faults() - before]))
"""


def faults_of_eight_tensors(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults of eight tensors of 64 MiB, one after the other, in a new process."""
    code = FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    kept, faults = json.loads(done.stdout)
    return kept, faults


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


@glibc
def test_pages_of_freed_tensors_are_not_fetched_again() -> None:
    plain, kept = faults_of_eight_tensors(False), faults_of_eight_tensors(True)
    assert plain == (False, plain[1])
    assert kept[0]
    assert kept[1] < plain[1] / 4


def test_what_the_environment_sets_stays() -> None:
    kept, _ = faults_of_eight_tensors(True, MALLOC_ARENA_MAX="1")
    assert not kept
