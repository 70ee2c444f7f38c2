"""Where the latest record of every unit is: an index on the local disk, made anew from the segments.

The segments in the store are the truth; this is a temporary file of SQLite that goes with the process, so
that a million units need no more memory than a thousand.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.scratch import put_all, temporary_database
from pipelines.record_types import check_ids
from pipelines.records import unit_of

PAGE_ROWS = 512                              # that are read at a time, where all are


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a stage, as it was read or written."""

    number: int                              # of the index
    key: str
    arrays: int                              # bytes of its .npz
    rows: int                                # records that it was written with
    first: int                               # of its rows in the index; the others follow it


Row = tuple[str, int, str]                   # unit, number of the segment, line


class Index:
    """Lines of segments by stage and unit. A line that is put later takes the place of an earlier one."""

    def __init__(self) -> None:
        self._db = temporary_database()
        self._db.execute(
            "CREATE TABLE segments (number INTEGER PRIMARY KEY, stage TEXT, key TEXT, arrays INTEGER, "
            "rows INTEGER, first INTEGER)"
        )
        self._db.execute("CREATE UNIQUE INDEX segments_key ON segments (key)")
        self._tables: dict[str, str] = {}                # of the stages that were read
        self._sealed: set[str] = set()
        self._made = 0
        self._next = 1
        self.segment = functools.lru_cache(1024)(self._segment)
        self.key = functools.lru_cache(1024)(self._key)

    # --- filling -----------------------------------------------------------------------------------------

    def open(self, stage: str) -> None:
        """Begin with a stage, which has no records then."""
        self.forget(stage)
        self._made += 1
        self._tables[stage] = f"stage_{self._made}"
        self._db.execute(
            f"CREATE TABLE {self._tables[stage]} (n INTEGER PRIMARY KEY, unit TEXT NOT NULL, "
            "segment INTEGER NOT NULL, line TEXT NOT NULL)"
        )

    def has(self, stage: str) -> bool:
        """Whether a stage was read."""
        return stage in self._tables

    def put(self, stage: str, key: str, arrays: int, lines: Sequence[str]) -> None:
        """The lines of one more segment. Raises ValueError for one without a unit id; then nothing is put."""
        units = [unit_of(line) for line in lines]
        check_ids(units)
        table = self._tables[stage]
        if stage in self._sealed:
            put_all(self._db, f"DELETE FROM {table} WHERE unit = ?", ((unit,) for unit in units))
        first = self._next                               # never again: a segment knows its rows by it
        self._next += len(lines)
        number = self._db.execute(
            "INSERT INTO segments (stage, key, arrays, rows, first) VALUES (?, ?, ?, ?, ?)",
            (stage, key, arrays, len(lines), first),
        ).lastrowid
        numbered = enumerate(zip(units, lines, strict=True), first)
        rows = ((n, unit, number, line) for n, (unit, line) in numbered)
        put_all(self._db, f"INSERT INTO {table} (n, unit, segment, line) VALUES (?, ?, ?, ?)", rows)

    def seal(self, stage: str) -> None:
        """All segments of the store were put: find units from now on. Sorting once is quicker than always."""
        table = self._tables[stage]
        self._db.execute(f"CREATE INDEX {table}_unit ON {table} (unit)")
        twice = f"SELECT unit FROM {table} GROUP BY unit HAVING count(*) > 1"
        self._db.execute(
            f"DELETE FROM {table} AS old WHERE unit IN ({twice}) AND n < "
            f"(SELECT max(n) FROM {table} AS new WHERE new.unit = old.unit)"
        )
        self._sealed.add(stage)

    def remove(self, keys: Sequence[str]) -> None:
        """Segments without a row are no more."""
        put_all(self._db, "DELETE FROM segments WHERE key = ?", ((key,) for key in keys))
        self.segment.cache_clear()
        self.key.cache_clear()

    def forget(self, stage: str) -> None:
        """As if the stage had not been read."""
        self._sealed.discard(stage)
        if table := self._tables.pop(stage, None):
            self._db.execute(f"DROP TABLE {table}")
            self._db.execute("DELETE FROM segments WHERE stage = ?", (stage,))
            self.segment.cache_clear()
            self.key.cache_clear()

    def close(self) -> None:
        """Free the disk."""
        self._db.close()

    # --- asking ------------------------------------------------------------------------------------------

    def some(self, stage: str, units: Sequence[str]) -> list[Row]:
        """The rows of some hundred units, those that there are, in any order."""
        marks = ",".join("?" * len(units))
        return self._db.execute(
            f"SELECT unit, segment, line FROM {self._tables[stage]} WHERE unit IN ({marks})", units
        ).fetchall()

    def all(self, stage: str, segment: Segment | None = None) -> Iterator[list[Row]]:
        """All rows of a stage, or of a segment of it, in the order of the store, a page at a time."""
        last = segment.first - 1 if segment else 0
        end = segment.first + segment.rows if segment else sys.maxsize
        while True:
            rows = self._db.execute(
                f"SELECT unit, segment, line, n FROM {self._tables[stage]} WHERE n > ? AND n < ? "
                "ORDER BY n LIMIT ?", (last, end, PAGE_ROWS),
            ).fetchall()
            if not rows:
                return
            last = rows[-1][3]
            yield [row[:3] for row in rows]

    def count(self, stage: str) -> int:
        """Units that have a record."""
        found: int = self._db.execute(f"SELECT count(*) FROM {self._tables[stage]}").fetchone()[0]
        return found

    def segments(self, stage: str) -> Iterator[tuple[Segment, int]]:
        """Every segment of a stage in the order of the store, with how many of its records are the latest."""
        table = self._tables[stage]
        rows = self._db.execute(
            f"SELECT number, key, arrays, rows, first, coalesce(live, 0) FROM segments LEFT JOIN "
            f"(SELECT segment, count(*) AS live FROM {table} GROUP BY segment) ON segment = number "
            "WHERE stage = ? ORDER BY key", (stage,),
        )
        return ((Segment(*row[:5]), row[5]) for row in rows)

    def _segment(self, key: str) -> Segment:
        row = self._db.execute(
            "SELECT number, key, arrays, rows, first FROM segments WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            raise LookupError(f"{key} was dropped")
        return Segment(*row)

    def _key(self, number: int) -> str:
        found: str = self._db.execute("SELECT key FROM segments WHERE number = ?", (number,)).fetchone()[0]
        return found
