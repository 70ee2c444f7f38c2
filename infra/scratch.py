"""Scratch space on the local disk, for what may come by the million and must not be held in memory."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from infra.storage import StorageError

T = TypeVar("T")

CACHE_KB = 4096                              # of pages, and for sorting: little, so that it is soon used up
HELD = 1024                                  # values that `Shelf` holds
_FLUSHED = 1 << 16                           # names that are held before they go to the disk, sorted
_FILTER_BYTES = 1 << 22
_FILTER_MASK = 8 * _FILTER_BYTES - 1


_OF_DISKS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


class _Database(sqlite3.Connection):
    """Tells the errors of the disk in one line."""

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        with _told():
            return super().execute(*statement)

    def executemany(self, *statement: Any) -> sqlite3.Cursor:
        with _told():
            return super().executemany(*statement)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _OF_DISKS:
            raise                            # a bug of whoever asks
        raise StorageError(
            f"TMPDIR: cannot keep what waits in {tempfile.gettempdir()} ({error}); make room, or set TMPDIR "
            "to a folder that has it"
        ) from error


def temporary_database(cache_kb: int = CACHE_KB) -> sqlite3.Connection:
    """A database in an unnamed file of $TMPDIR, which goes when it is closed or the process ends.

    It keeps no journal: nothing in it outlives an error. Raises StorageError when the disk is full.
    """
    database = sqlite3.connect("", isolation_level=None, factory=_Database)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{cache_kb}"):
        database.execute(f"PRAGMA {pragma}")
    return database


def put_all(database: sqlite3.Connection, statement: str, rows: Iterable[Sequence[object]]) -> int:
    """Execute a statement for every row. Returns how many changed something.

    Where a row raises an error, those before it are kept: without a journal there is no way back.
    """
    before = database.total_changes
    database.execute("BEGIN")
    try:
        database.executemany(statement, rows)
    except BaseException:
        with contextlib.suppress(StorageError, sqlite3.Error):
            database.execute("COMMIT")
        raise
    database.execute("COMMIT")
    return database.total_changes - before


class _Filter:
    """Of fixed size: whether a name may have come. Above some millions it often says so."""

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BYTES)

    def add(self, name: str) -> bool:
        """Note a name. Returns whether it may have come before."""
        place = hash(name) & _FILTER_MASK    # one is enough: a wrong yes is a look at the disk
        byte, bit = place >> 3, 1 << (place & 7)
        if self._bits[byte] & bit:
            return True
        self._bits[byte] |= bit
        return False


class Seen:
    """Names that came already."""

    def __init__(self) -> None:
        self._db = temporary_database(CACHE_KB // 2)
        self._db.execute("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")
        self._filter = _Filter()
        self._last: set[str] = set()

    def again(self, name: str) -> bool:
        """Note a name. Returns whether it came before."""
        if self._filter.add(name) and (name in self._last or self._on_disk(name)):
            return True
        self._last.add(name)
        if len(self._last) >= _FLUSHED:
            # In order, so that each page of the table is written once.
            put_all(self._db, "INSERT INTO seen VALUES (?)", ((_bytes(name),) for name in sorted(self._last)))
            self._last.clear()
        return False

    def _on_disk(self, name: str) -> bool:
        return self._db.execute("SELECT 1 FROM seen WHERE name = ?", (_bytes(name),)).fetchone() is not None


class Shelf(Generic[T]):
    """Values by name, most of them on the disk. `made` gives that of a name that has none."""

    def __init__(self, made: Callable[[], T], write: Callable[[T], str], read: Callable[[str], T]) -> None:
        self._db = temporary_database(CACHE_KB // 2)
        self._db.execute("CREATE TABLE shelf (name BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._filter = _Filter()
        self._held: OrderedDict[str, T] = OrderedDict()
        self._texts: dict[str, str] = {}                 # on their way to the disk
        self._made, self._write, self._read = made, write, read

    def __getitem__(self, name: str) -> T:
        """The value; what is changed in it is kept while it is one of the last `HELD` that were asked for."""
        held = self._held
        if name in held:
            held.move_to_end(name)
            return held[name]
        text = self._text(name) if self._filter.add(name) else None
        held[name] = value = self._made() if text is None else self._read(text)
        if len(held) > HELD:
            gone, last = held.popitem(last=False)
            self._texts[gone] = self._write(last)
            if len(self._texts) >= _FLUSHED // 4:
                rows = ((_bytes(name), text) for name, text in sorted(self._texts.items()))
                put_all(self._db, "INSERT OR REPLACE INTO shelf VALUES (?, ?)", rows)
                self._texts.clear()
        return value

    def _text(self, name: str) -> str | None:
        if name in self._texts:
            return self._texts.pop(name)
        row = self._db.execute("SELECT value FROM shelf WHERE name = ?", (_bytes(name),)).fetchone()
        return None if row is None else str(row[0])


def _bytes(name: str) -> bytes:
    """Of any name, also of a file's that is no text."""
    return name.encode(errors="surrogatepass")
