"""The CPU allocator that PyTorch's large tensors need.

glibc maps every block over 32 MB afresh and unmaps it on free, so each large result pays page faults. Call
`tune_allocator` at the start of a command, before the first tensor; a library must not.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def tune_allocator() -> str:
    """Keep large blocks in the heap (Linux with glibc). Returns the name of what is active, for reports."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if name in preloaded:
            return name
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return "system"
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    accepted = [libc.mallopt(option, value) for option, value in settings]  # 1 means accepted
    return "glibc-heap" if all(accepted) else "system"
