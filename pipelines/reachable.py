"""Which records of the ledger still count, and which objects of the store their clips name.

A record counts when it is the latest of its unit in its stage, and the unit still comes out of the stage
before. Settings do not matter: a mistyped one costs nothing. In doubt a record counts: of a stage that the
workflow does not have, of a video of which something on the way is still to be done, of one no longer listed.
"""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from infra.storage import Storage
from pipelines.ledger import Ledger, Record

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)

# In the values of a clip, as JSON has them. Whatever field a stage has put it in.
_NAME = re.compile(rb'"(?:store:)?((?:aligned|manifest|shards)/[^"\\]*)"')


@dataclass
class Reachable:
    """What must stay."""

    segments: set[str] = field(default_factory=set)          # keys, of those with a record that counts
    names: set[str] = field(default_factory=set)             # keys that clips of such records name
    complete: bool = True                    # False: some clips could not be read, so names are missing


def reachable(store: Storage, stages: Sequence[str]) -> Reachable:
    """Everything that counts. `stages`: the names of the workflow's, in its order. Reads the whole ledger."""
    found = Reachable()
    for other in sorted({key.split("/")[1] for key in store.list("ledger")} - set(stages)):
        _note(found, store, Ledger(store).records(other).values())
    known: set[str] = set()                  # videos that the first stage has a record of
    open_: set[str] = set()                  # videos of which not all is known that comes of them
    came: dict[str, str] = {}                # unit -> its video
    for number, stage in enumerate(stages):
        records = Ledger(store).records(stage)
        if number == 0:
            counting = list(records.values())
            known = {record.source for record in counting}
        else:
            open_.update(source for unit, source in came.items() if unit not in records)
            counting = [r for r in records.values()
                        if r.unit in came or r.source in open_ or r.source not in known]  # fmt: skip
        open_.update(record.source for record in counting if record.again)
        came = {out.id: r.source for r in counting for out in r.outputs if out.state == "ok"}
        _note(found, store, counting)
    return found


def _note(found: Reachable, store: Storage, records: Iterable[Record]) -> None:
    rows: dict[str, list[int]] = {}
    for record in records:
        rows.setdefault(record.segment, []).extend(range(record.row, record.row + len(record.outputs)))
    for segment, wanted in sorted(rows.items()):
        found.segments.add(segment)
        lines = _values(store, segment) if wanted else []
        if lines is None or len(lines) <= max(wanted, default=-1):
            log.warning("ledger: the clips of %s are damaged; what they name cannot be told", segment)
            found.complete = False
            continue
        found.names.update(name.decode() for row in wanted for name in _NAME.findall(lines[row]))


def _values(store: Storage, segment: str) -> list[bytes] | None:
    """The values of the clips of a segment, one JSON object per row, without reading its arrays."""
    try:
        with (
            io.BufferedReader(_Ranged(store, segment.removesuffix("jsonl") + "npz"), 1 << 16) as file,
            np.load(file, allow_pickle=False) as held,
        ):
            lines: list[bytes] = held["values"].tobytes().split(b"\n")
            return lines
    except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


class _Ranged(io.RawIOBase):
    """An object of the store as a file that is read by ranges."""

    def __init__(self, store: Storage, key: str) -> None:
        self._store, self._key = store, key
        self._size, self._at = store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._at))
        if length:
            view[:length] = self._store.read_range(self._key, self._at, length)
        self._at += length
        return length
