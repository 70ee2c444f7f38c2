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

_COLUMNS = "grp, mark, id, digest, source, identity, segment, start, length, crc, arrays, listed"
_Row = tuple[Any, ...]
_Waiting = tuple[str, str, Ref]              # group, mark


class Spool:
    """Refs with the group that each belongs to, and a mark. Those that are not written yet wait until they
    are."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._db = temporary_database()
        self._db.execute(f"CREATE TABLE refs (n INTEGER PRIMARY KEY, {_COLUMNS})")
        self._waiting: list[_Waiting] = []
        self.count = 0

    def add(self, ref: Ref, group: str = "", mark: str = "") -> None:
        """One more."""
        self.count += 1
        self._waiting.append((group, mark, ref))
        if self.count % BATCH == 0:
            self._put(one for one in self._waiting if one[2].clip is None)
            self._waiting = [one for one in self._waiting if one[2].clip is not None]
            if len(self._waiting) > MOST_WAITING:
                self._settle()

    def _put(self, some: Iterable[_Waiting]) -> None:
        marks = ",".join("?" * 12)
        put_all(self._db, f"INSERT INTO refs ({_COLUMNS}) VALUES ({marks})", map(_row, some))

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

    def marked(self) -> set[str]:
        """The groups that are marked, each member of them, with the `members_digest` of the group."""
        self._settle()
        found: set[str] = set()
        rows = self._db.execute("SELECT grp, id, digest, mark FROM refs ORDER BY grp, id, digest")
        for group, members in groupby(rows, itemgetter(0)):
            marks: set[str] = set()
            digest = pairs_digest(_pairs(members, marks))        # which fills in the marks
            if marks == {digest}:
                found.add(group)
        return found

    def keep(self, groups: set[str]) -> None:
        """Let go of all other groups."""
        self._delete("NOT IN", groups)

    def drop(self, groups: set[str]) -> None:
        """Let go of these groups."""
        self._delete("IN", groups)

    def _delete(self, which: str, groups: set[str]) -> None:
        self._settle()
        self._db.execute("CREATE TABLE named (grp PRIMARY KEY) WITHOUT ROWID")
        put_all(self._db, "INSERT INTO named VALUES (?)", ((group,) for group in groups))
        self.count -= self._db.execute(f"DELETE FROM refs WHERE grp {which} named").rowcount
        self._db.execute("DROP TABLE named")

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


def _pairs(rows: Iterable[_Row], marks: set[str]) -> Iterator[tuple[str, str]]:
    for _, unit, digest, mark in rows:
        marks.add(mark)
        yield unit, digest


def _row(one: _Waiting) -> _Row:
    group, mark, ref = one
    listed = None if ref.clip is None else json.dumps(ref.clip.to_record()[0])
    at = ref.at or (None, None, None, None)
    return group, mark, ref.id, ref.digest, ref.source, ref.identity, ref.segment, *at, listed


def _ref(row: _Row) -> Ref:
    _, _, unit, digest, source, identity, segment, start, length, crc, arrays, listed = row
    clip = None if listed is None else Clip.from_record(json.loads(listed), {})
    at = None if start is None else (start, length, crc, arrays)
    return Ref(unit, digest, source, identity, segment, at, clip)
