"""Where everything a run makes is kept: a folder or an S3 prefix, behind the same few calls.

Keys are relative, `/`-separated and never leave the root. `write` replaces atomically; `create` succeeds for
exactly one of several writers and is the only call that commits rest on.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.paths import expanded
from infra.words import printable

log = logging.getLogger(__name__)

_TEMPORARY = ".tmp-"
_KEY = re.compile(r"[A-Za-z0-9_.=+@-]+(/[A-Za-z0-9_.=+@-]+)*")


class StorageError(Exception):
    """The store cannot do what was asked; the message names the place, the cause and the cure."""


# A place that is full, above a quota, read-only or broken; whatever is kept there.
_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}                 # of folders, on some file systems


def fault_of_place(error: OSError) -> str:
    """What is wrong with the disk that an error came from, and the cure; "" for an error of another kind."""
    import tempfile

    if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
        return "no folder for temporary files can be written; make room, or set TMPDIR to one that can"
    if error.errno not in _FAULTS:
        return ""
    temporary = tempfile.gettempdir()
    place = str(error.filename or f"a file below {temporary}")
    own = error.filename is None or place.startswith(temporary)
    cure = "set TMPDIR to another folder" if own else "choose another place"
    return f"cannot use {place} ({error.strerror}); make room or permit it, or {cure}"


def check_key(key: str) -> str:
    """Return `key`, or raise ValueError when it could leave the root or cannot be a file name."""
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise ValueError(f"storage key {key!r}: use letters, digits and _.=+@- between slashes, no '..'")
    return key


_strange: set[tuple[str, str]] = set()       # folders of roots that were warned of


def is_key(key: str, root: str) -> bool:
    """Whether a name that was found below a root can be a key: others are of no use to anybody, are left
    alone and warned of, once per folder."""
    try:
        check_key(key)
    except ValueError:
        folder, _, name = key.rpartition("/")
        if name and (root, folder) not in _strange:          # without one it is S3's sign of a folder
            _strange.add((root, folder))
            log.warning("%s in %s is no file of pv3d; it stays, unread", printable(key), printable(root))
        return False
    return True


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, as a listing tells it."""

    key: str
    bytes: int
    modified_s: float                        # since 1970, by the clock of the store


class Storage:
    """The calls that stages and pipelines use. `FolderStorage` and `S3Storage` differ in nothing else."""

    root: str
    request_bytes: int = 0
    """What a request costs beside its bytes, in bytes: rather than ask twice, so many are read in vain."""
    cache_bytes: int = 0
    """How much of a machine's disk copies of objects may take. 0: there are none."""
    s3: Mapping[str, Any] = {}
    """What `open_storage` was told of S3: other buckets are reached the same way."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        raise NotImplementedError

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on. Raises FileNotFoundError, EOFError when it is shorter."""
        raise NotImplementedError

    def write(self, key: str, data: bytes) -> None:
        """Create or replace, atomically: readers see the old object or the new one."""
        raise NotImplementedError

    def create(self, key: str, data: bytes) -> bool:
        """Write only when no object has this key; exactly one of several writers gets True."""
        raise NotImplementedError

    def upload(self, key: str, path: Path) -> None:
        """`write` of a local file, which stays where it is."""
        raise NotImplementedError

    def local(self, key: str) -> AbstractContextManager[Path]:
        """A local path of the object while the context lasts. Read only. Raises FileNotFoundError."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys below `prefix` (a folder, without a closing slash), sorted."""
        raise NotImplementedError

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """As `list`, with size and age."""
        raise NotImplementedError

    def unfinished(self) -> Iterator[tuple[Entry, Callable[[], None]]]:
        """What writers that were killed left behind, which `list` does not show; the call removes it."""
        raise NotImplementedError

    def exists(self, key: str) -> bool:
        raise NotImplementedError

    def size(self, key: str) -> int:
        """Bytes. Raises FileNotFoundError."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""
        raise NotImplementedError

    def delete_all(self, keys: Sequence[str]) -> None:
        """`delete` of many, in this order."""
        for key in keys:
            self.delete(key)

    def check_writable(self) -> None:
        """Raise StorageError, naming root, cause and cure, unless an object can be made here now."""
        raise NotImplementedError


class FolderStorage(Storage):
    """A folder. Atomic by temporary file and rename; create-only by hard link."""

    def __init__(self, root: str | Path) -> None:
        try:
            self.root = str(expanded(root).resolve())
        except RuntimeError:                 # what pathlib raises for links in a circle
            raise StorageError(
                f"storage.root: {root} leads through links in a circle; name another folder"
            ) from None

    def path(self, key: str) -> Path:
        return Path(self.root, check_key(key))

    @contextlib.contextmanager
    def _reached(self, action: str, key: str, passes: type[OSError] = FileNotFoundError) -> Iterator[None]:
        """Raise StorageError, naming root, cause and cure, for what is wrong with the place."""
        try:
            yield
        except passes:
            raise
        except OSError as error:
            raise StorageError(
                f"storage.root: cannot {action} {key} below {self.root} ({error.strerror}); "
                "make room or permit it, or choose another folder"
            ) from error

    def read(self, key: str) -> bytes:
        with self._reached("read", key):
            return self.path(key).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._reached("read", key), self.path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise EOFError(f"{key}: {length} bytes wanted at {start}, the object ends after {len(data)}")
        return data

    @contextlib.contextmanager
    def _written(self, key: str, blocks: Iterator[bytes]) -> Iterator[tuple[Path, Path]]:
        """(temporary file that holds the blocks, target). Raises StorageError when it cannot be written."""
        target = self.path(key)
        temporary = target.parent / f"{_TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}"
        with self._reached("write", key, FileExistsError):
            try:
                _fill(temporary, blocks)
                yield temporary, target
                _sync_folder(target.parent)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def write(self, key: str, data: bytes) -> None:
        with self._written(key, iter([data])) as (temporary, target):
            temporary.replace(target)

    def create(self, key: str, data: bytes) -> bool:
        with contextlib.suppress(FileExistsError), self._written(key, iter([data])) as (temporary, target):
            os.link(temporary, target)
            return True
        return False

    def upload(self, key: str, path: Path) -> None:
        with path.open("rb") as source:
            blocks = iter(lambda: source.read(1 << 22), b"")
            with self._written(key, blocks) as (temporary, target):
                temporary.replace(target)

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self.path(key)
        if not path.is_file():
            raise FileNotFoundError(str(path))
        yield path

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self.path(prefix) if prefix else Path(self.root)
        found = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith(_TEMPORARY))
        keys = (path.relative_to(self.root).as_posix() for path in found)
        yield from sorted(key for key in keys if is_key(key, self.root))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for key in self.list(prefix):
            with contextlib.suppress(FileNotFoundError):
                yield self._entry(self.path(key))

    def unfinished(self) -> Iterator[tuple[Entry, Callable[[], None]]]:
        for path in sorted(Path(self.root).rglob(f"{_TEMPORARY}*")):
            with contextlib.suppress(FileNotFoundError):
                yield self._entry(path), functools.partial(path.unlink, missing_ok=True)

    def _entry(self, path: Path) -> Entry:
        found = path.stat()
        return Entry(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def exists(self, key: str) -> bool:
        with self._reached("read", key):
            return self.path(key).is_file()

    def size(self, key: str) -> int:
        with self._reached("read", key):
            return self.path(key).stat().st_size

    def delete(self, key: str) -> None:
        with self._reached("delete", key):
            self.path(key).unlink(missing_ok=True)

    def check_writable(self) -> None:
        root = Path(self.root)
        absent = [folder for folder in (root, *root.parents) if not os.path.lexists(folder)]
        try:
            self.write(".writable", bytes(4096))     # of a full disk an empty file would tell nothing
            self.delete(".writable")
        except StorageError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            raise StorageError(
                f"storage.root: cannot write to {self.root} ({reason}); make room or permit it, or choose "
                "another folder"
            ) from None
        finally:
            with contextlib.suppress(OSError):  # a run that is refused later leaves no folder behind
                for folder in absent:
                    folder.rmdir()


def _fill(path: Path, blocks: Iterator[bytes]) -> None:
    """Write a new file, and its folder, to the disk itself."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    # Not `tempfile`, whose files only their owner may read.
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut: a manifest must not be there before its shard."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def check_root(root: str) -> str:
    """Return `root`, or raise ValueError for what looks like no folder but would make one."""
    if re.match(r"[sS]3:(?!//[^/])|[A-Za-z][A-Za-z0-9+.-]*:/(?!/)", root):
        raise ValueError(f"{printable(root)!r} is neither a folder nor s3://bucket/prefix")
    if root.startswith("~") and str(expanded(root)).startswith("~"):
        user = Path(root).parts[0]
        raise ValueError(f"{printable(root)!r}: there is no user {printable(user)}; write the whole path")
    return root


def open_storage(root: str, **options: Any) -> Storage:
    """The store at `root`: a folder, or `s3://bucket/prefix`, which the options of `S3Storage` are for."""
    store: Storage
    if root.startswith("s3://"):
        from infra.s3 import S3Storage

        store = S3Storage(root, **options)
    elif "://" in root and not root.startswith("file://"):
        raise ValueError(f"storage.root: {root!r} is neither a folder nor s3://bucket/prefix")
    else:
        try:
            folder = check_root(root.removeprefix("file://"))
        except ValueError as error:
            raise ValueError(f"storage.root: {error}") from None
        store = FolderStorage(folder)
    store.s3 = options
    return store
