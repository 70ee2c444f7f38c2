"""Objects of a bucket as files of this machine: copies that its processes share, or one of one's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.object_cache import machine_cache
from infra.storage import StorageError

_CHANGES = 3                                 # an object that changes more often is fetched as it comes


class _ChangedError(Exception):
    """An object was replaced while it was fetched."""


@dataclass(frozen=True)
class Copies:
    """Copies by name. With `cache_bytes` of 0, or of an object larger than that, nothing is shared."""

    place: str                               # endpoint and bucket
    setting: str                             # what error messages name
    cache_bytes: int
    state: Callable[[str], tuple[int, str]]  # (bytes, ETag) of an object: what changes with its content
    download: Callable[[str, Path], None]

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A path while the context lasts, read only. Raises FileNotFoundError, StorageError."""
        with contextlib.ExitStack() as stack:
            try:
                path = self._shared(name, stack) or stack.enter_context(self._own(name))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageError(
                    f"{self.setting}: cannot keep a copy of {name} in {tempfile.gettempdir()} "
                    f"({error.strerror}); make room there, or set TMPDIR"
                ) from None
            yield path

    def _shared(self, name: str, stack: contextlib.ExitStack) -> Path | None:
        """The machine's copy, of the object as it is now; None where there can be none."""
        cache = machine_cache(self.cache_bytes)
        for _ in range(_CHANGES if self.cache_bytes else 0):
            now = size, etag = self.state(name)
            if not etag or size > self.cache_bytes:
                return None

            def fetch(path: Path, before: tuple[int, str] = now) -> None:
                self.download(name, path)
                if self.state(name) != before:
                    raise _ChangedError

            what = f"{self.place} {name} {size} {etag}"
            with contextlib.suppress(_ChangedError):
                return stack.enter_context(cache.copy(what, size, _suffix(name), fetch))
        return None

    @contextlib.contextmanager
    def _own(self, name: str) -> Iterator[Path]:
        handle, path = tempfile.mkstemp(prefix="pv3d-", suffix=_suffix(name))
        os.close(handle)
        try:
            self.download(name, Path(path))
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)


def _suffix(name: str) -> str:
    return Path(name).suffix[:16]            # programs look at it
