"""Keeps the memory of freed tensors in the process, where glibc would give it back. Knows no tensor."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names and numbers of the two settings, `man mallopt`."""
FROM = 1 << 30
"""Bytes from which on an allocation still gets pages of its own, and the free end of the heap is given back."""


def keep_freed_memory() -> bool:
    """Let this process use the pages of freed tensors again; tells whether that was set.

    By default glibc returns tensors of 32 MiB and more to the system, and fetches their pages anew, filled with zeros,
    in every operator of every pass: with network A on a CPU that takes a third of a stream's time. The process's
    largest size stays as it is, but it stays that large. Nothing is set without glibc, or where the environment says
    how it is to allocate (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, FROM)) and bool(mallopt(M_TRIM_THRESHOLD, FROM))
