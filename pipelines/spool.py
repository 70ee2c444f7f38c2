"""Clips on their way from a stage to a group stage, and from there on: on the local disk, by the million."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from infra.scratch import put_all, temporary_database
from pipelines.ledger import Ledger
from pipelines.records import Ref, pairs_digest
from pipelines.segments import unpack
from stages.clip import Clip

BATCH = 512
MOST_WAITING = 8 * BATCH

_COLUMNS = "grp, id, digest, source, identity, segment, start, length, crc, arrays, listed"
_Row = tuple[Any, ...]


class Spool:
    """Refs with the group that each belongs to. Those that are not written yet wait until they are."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._db = temporary_database()
        self._db.execute(f"CREATE TABLE refs (n INTEGER PRIMARY KEY, {_COLUMNS})")
        self._waiting: list[tuple[str, Ref]] = []
        self.count = 0

    def add(self, ref: Ref, group: str = "") -> None:
        """One more."""
        self.count += 1
        self._waiting.append((group, ref))
        if self.count % BATCH == 0:
            self._put(pair for pair in self._waiting if pair[1].clip is None)
            self._waiting = [pair for pair in self._waiting if pair[1].clip is not None]
            if len(self._waiting) > MOST_WAITING:
                self._settle()

    def _put(self, pairs: Iterable[tuple[str, Ref]]) -> None:
        marks = ",".join("?" * 11)
        put_all(self._db, f"INSERT INTO refs ({_COLUMNS}) VALUES ({marks})", map(_row, pairs))

    def _settle(self) -> None:
        if self._waiting:
            self._ledger.flush()
            self._put(self._waiting)
            self._waiting = []

    def __iter__(self) -> Iterator[Ref]:
        """All, as they came; ends the spool."""
        self._settle()
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM refs ORDER BY n"):
            yield _ref(row)
        self.close()

    def groups(self) -> Iterator[tuple[str, list[Ref]]]:
        """Each group with its members sorted by id; groups are sorted, too. Ends the spool."""
        self._settle()
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM refs ORDER BY grp, id")
        for group, members in groupby(rows, itemgetter(0)):
            yield group, [_ref(row) for row in members]
        self.close()

    def digest(self) -> str:
        """As `members_digest` of all."""
        self._settle()
        return pairs_digest(self._db.execute("SELECT id, digest FROM refs ORDER BY id, digest"))

    def clips(self) -> Iterator[Clip]:
        """All, sorted by id, without their arrays. Raises LostSegmentError."""
        self._settle()
        values = temporary_database()
        values.execute("CREATE TABLE clips (id, line)")
        refs = map(_ref, self._db.execute(f"SELECT {_COLUMNS} FROM refs ORDER BY n"))    # as in the store
        put_all(values, "INSERT INTO clips VALUES (?, ?)", ((ref.id, self._line(ref)) for ref in refs))
        for (line,) in values.execute("SELECT line FROM clips ORDER BY id"):
            yield unpack(line, _nothing, ())
        values.close()

    def _line(self, ref: Ref) -> bytes:
        if ref.clip is None:
            return self._ledger.values(ref)
        return json.dumps({"values": ref.clip.to_record()[0], "arrays": {}}).encode()

    def close(self) -> None:
        """Free the disk."""
        self._db.close()


def _nothing(start: int, length: int) -> bytes:
    raise AssertionError("no array is asked for")


def _row(pair: tuple[str, Ref]) -> _Row:
    group, ref = pair
    listed = None if ref.clip is None else json.dumps(ref.clip.to_record()[0])
    at = ref.at or (None, None, None, None)
    return group, ref.id, ref.digest, ref.source, ref.identity, ref.segment, *at, listed


def _ref(row: _Row) -> Ref:
    _, unit, digest, source, identity, segment, start, length, crc, arrays, listed = row
    clip = None if listed is None else Clip.from_record(json.loads(listed), {})
    at = None if start is None else (start, length, crc, arrays)
    return Ref(unit, digest, source, identity, segment, at, clip)
