import platform
import subprocess
import sys

import pytest

from infra.allocator import give_back, one_heap

CODE = """
import numpy as np
from infra.allocator import give_back
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
held = [np.ones(12_000) for _ in range(2_000)]     # 190 MB of blocks too small to be mapped alone
kept = held[::50]                                  # between them the heap cannot shrink
del held
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_holes_in_the_heap_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 100e6


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.allocator._glibc", lambda: False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no C library is asked"))
    give_back()
    one_heap()
