"""Scratch space on the local disk, for what may come by the million and must not be held in memory."""

from __future__ import annotations

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

CACHE_KB = 4096
HELD = 1024                                  # values that `Shelf` holds
_BATCH = 256


def temporary_database(cache_kb: int = CACHE_KB) -> sqlite3.Connection:
    """A database in an unnamed file of $TMPDIR, which goes when it is closed or the process ends.

    It keeps no journal: nothing in it outlives an error.
    """
    database = sqlite3.connect("", isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{cache_kb}"):
        database.execute(f"PRAGMA {pragma}")
    return database


def put_all(database: sqlite3.Connection, statement: str, rows: Iterable[Sequence[object]]) -> int:
    """Execute a statement for every row. Returns how many changed something."""
    before = database.total_changes
    database.execute("BEGIN")
    database.executemany(statement, rows)
    database.execute("COMMIT")
    return database.total_changes - before


class Seen:
    """Names that came already."""

    def __init__(self) -> None:
        self._db = temporary_database(2 * CACHE_KB)
        self._db.execute("CREATE TABLE seen (name TEXT PRIMARY KEY, page INTEGER) WITHOUT ROWID")
        self._page = 0

    def again(self, names: Sequence[str]) -> str | None:
        """Note some hundred names. Returns one that came before, or comes twice among them."""
        self._page += 1
        rows = ((name, self._page) for name in names)
        if put_all(self._db, "INSERT OR IGNORE INTO seen VALUES (?, ?)", rows) == len(names):
            return None
        twice = [name for name, count in Counter(names).items() if count > 1]
        marks = ",".join("?" * len(names))
        before = f"SELECT name FROM seen WHERE name IN ({marks}) AND page < ?"
        return next(iter(twice), None) or str(self._db.execute(before, (*names, self._page)).fetchone()[0])


class Shelf(Generic[T]):
    """Values by name, most of them on the disk. `made` gives that of a name that has none."""

    def __init__(self, made: Callable[[], T], write: Callable[[T], str], read: Callable[[str], T]) -> None:
        self._db = temporary_database(2 * CACHE_KB)
        self._db.execute("CREATE TABLE shelf (name BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._held: OrderedDict[str, T] = OrderedDict()
        self._made, self._write, self._read = made, write, read

    def __getitem__(self, name: str) -> T:
        """The value; what is changed in it is kept."""
        value = self._held.get(name)
        if value is None:
            row = self._db.execute("SELECT value FROM shelf WHERE name = ?", (_bytes(name),)).fetchone()
            value = self._made() if row is None else self._read(row[0])
            self._held[name] = value
            if len(self._held) > HELD + _BATCH:
                gone = [self._held.popitem(last=False) for _ in range(_BATCH)]
                rows = [(_bytes(name), self._write(value)) for name, value in gone]
                put_all(self._db, "INSERT OR REPLACE INTO shelf VALUES (?, ?)", rows)
        else:
            self._held.move_to_end(name)
        return value


def _bytes(name: str) -> bytes:
    """Of any name, also of a file's that is no text."""
    return name.encode(errors="surrogatepass")
