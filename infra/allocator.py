"""The CPU allocator that PyTorch's large tensors need.

glibc maps every block over 32 MB afresh and unmaps it on free, so each large result pays page faults. Call
`tune_allocator` at the start of a command, before the first tensor; a library must not. Smaller ones come
from the heap, whose holes it keeps: work of many like pieces calls `one_heap` first, and `give_back` now and
then.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def tune_allocator() -> str:
    """Keep large blocks in the heap (Linux with glibc). Returns the name of what is active, for reports."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if name in preloaded:
            return name
    if not _glibc():
        return "system"
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    accepted = [libc.mallopt(option, value) for option, value in settings]  # 1 means accepted
    return "glibc-heap" if all(accepted) else "system"


def one_heap() -> None:
    """Let threads that start from now on share one heap (Linux with glibc; elsewhere nothing is done). Those
    of a decoder, new for every video, would each leave holes in one of their own."""
    if _glibc():
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Return the free memory inside the heap to the system (Linux with glibc; elsewhere nothing is done)."""
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
