"""Real file systems of a few kilobytes, that tests fill, and make read-only. Linux, as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


class Disk:
    """A tmpfs: what is written to it takes whole pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def leave(self, pages: int) -> None:
        """Fill it, but for so many pages."""
        self.free()
        found = os.statvfs(self.path)
        with self._filler.open("wb") as file:
            file.write(bytes(max(0, found.f_bavail - pages) * PAGE))

    def free(self) -> None:
        """Nobody fills it any more."""
        self._filler.unlink(missing_ok=True)

    def read_only(self, whether: bool = True) -> None:
        """Make it so; a file that is being written holds it up."""
        command = ["mount", "-o", "remount,ro" if whether else "remount,rw", str(self.path)]
        for _ in range(200):
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.01)
        raise AssertionError(f"cannot remount {self.path}")


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int = 4096) -> Iterator[Disk]:
    """A disk at `path` while the context lasts; skips the test where none can be mounted."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    path.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
