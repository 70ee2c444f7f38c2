"""Copies of objects on the disk of a machine, shared by its processes: each is fetched once.

A copy is named by where its object is and what it holds, so a changed object is another copy. Locks are the
kernel's (flock), and whoever is killed holds none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FORGET_S = 24 * 3600.0                       # a copy that nobody used for so long goes, room or not
_PART, _LOCK, _ROOM = "part-", "lock-", "room"   # names; a copy's is the hash of what it is of


class ObjectCache:
    """Keeps at most `most_bytes` in `folder`; what was not used for the longest time goes first.

    Copies in use stay, also beyond the limit. Raises OSError where the folder cannot be used.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    @contextlib.contextmanager
    def copy(self, what: str, size: int, suffix: str, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """A path of the object while the context lasts; read only. `what` names the object and its content.

        `fetch` writes it, `size` bytes, to the path it is given: once, however many processes ask at once.
        """
        digest = hashlib.sha256(what.encode()).hexdigest()[:40]
        target = self.folder / f"{digest}{suffix}"
        handle = _lock(target, fcntl.LOCK_SH)
        while handle is None:
            handle = self._bring(digest, target, size, fetch) or _lock(target, fcntl.LOCK_SH)
        try:
            os.utime(handle)
            yield target
        finally:
            os.close(handle)

    def _bring(self, digest: str, target: Path, size: int, fetch: Callable[[Path], None]) -> int | None:
        """Fetch it and return a lock on it; None when another process had it ready first."""
        self._make_folder()
        part, lock = self.folder / f"{_PART}{digest}", self.folder / f"{_LOCK}{digest}"
        with _locked(lock):
            if target.exists():
                return None
            try:
                self._reserve(part, size, self.most_bytes)
                try:
                    fetch(part)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    self._reserve(part, size, 0)     # the disk is smaller than the limit
                    fetch(part)
                handle = _lock(part, fcntl.LOCK_SH)  # before anybody can take it for old
                part.replace(target)
            finally:
                _remove_parts(part)
                lock.unlink(missing_ok=True)
            return handle

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "somebody else's", str(self.folder))

    def _reserve(self, part: Path, size: int, most_bytes: int) -> None:
        """Make room, and hold it by a file of this size without content."""
        with _locked(self.folder / _ROOM):
            _remove_parts(part)
            self._make_room(size, most_bytes)
            with part.open("wb") as file:
                file.truncate(size)

    def _make_room(self, size: int, most_bytes: int) -> None:
        found = []
        for path in self.folder.iterdir():
            half = path.name.startswith(_PART) and path.suffix   # what it will be renamed to counts already
            if not half and not path.name.startswith((_LOCK, _ROOM)):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        used = size + sum(copy_bytes for _, copy_bytes, _ in found)
        for last_used_s, copy_bytes, path in sorted(found):
            if used <= most_bytes and time.time() - last_used_s < FORGET_S:
                return
            if self._drop(path):
                used -= copy_bytes

    def _drop(self, path: Path) -> bool:
        """Remove a copy, or what a killed process left of one; False when it is in use."""
        part = path.name.startswith(_PART)
        guard = path.with_name(path.name.replace(_PART, _LOCK, 1)) if part else path
        handle = _lock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB, create=part)
        if handle is None:
            return not path.exists()
        try:
            if part:
                _remove_parts(path)
            guard.unlink(missing_ok=True)
        finally:
            os.close(handle)
        return True


def machine_cache(most_bytes: int) -> ObjectCache:
    """The one that this user's processes share, below TMPDIR."""
    return ObjectCache(Path(tempfile.gettempdir(), f"pv3d-objects-{os.getuid()}"), most_bytes)


def _remove_parts(part: Path) -> None:
    """`part`, and beside it what boto3 writes before it renames."""
    for path in part.parent.glob(f"{part.name}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = _lock(path, fcntl.LOCK_EX, create=True)
    assert handle is not None
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path, how: int, create: bool = False) -> int | None:
    """A descriptor that locks the file; None when it is absent, or, asked not to wait, in use."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        try:
            handle = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, how)
            except BlockingIOError:
                return None
            # Whoever had the lock may have removed the file, and another may have been made.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    stack.pop_all()
                    return handle
