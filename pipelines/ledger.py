"""What has been done: one record per stage and unit, in append-only segments.

    ledger/<stage>/<segment>.npz     the clips that came out, arrays and values; written first
    ledger/<stage>/<segment>.jsonl   a header line, then one record per line; it commits the segment
    ledger/<stage>/finished.json     what a group stage was finished with

A record is current when the stage (class, version, settings) and the digest of its input are those
of now. So nothing is redone below a stage whose output did not change, and the number of workers does not
matter. A segment is some thousand units or some seconds of work, never one object per unit. Later segments
win; a damaged or older one is passed over with a warning, and its units are done again.

No more of it is in memory than what is in use: see `pipelines.index`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from infra.json_values import parsed_object
from infra.storage import FolderStorage, Storage, StorageError
from pipelines.blocks import READERS, Blocks
from pipelines.index import PAGE_ROWS, Index, Row, Segment
from pipelines.records import At, Output, Record, Ref, from_lines, members_digest, pairs_digest
from pipelines.segments import (
    DAMAGED,
    SCHEMA,
    ClipFile,
    DamagedArraysError,
    checked,
    encode_clips,
    lines_of,
    read_segment,
    unpack,
    write_segment,
)
from pipelines.stamps import NEVER, after, as_name, stamp_of
from stages.clip import Clip

__all__ = [
    "DAMAGED", "SCHEMA", "At", "ClipFile", "Ledger", "LostSegmentError", "Output", "Record", "Ref",
    "encode_clips", "members_digest", "pairs_digest", "read_segment", "write_segment",
]

log = logging.getLogger(__name__)

BATCH_UNITS = 2048
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 5.0
LISTINGS = 5                                 # while segments vanish, as somebody merges them


class LostSegmentError(Exception):
    """The clips of a segment cannot be read; its records were dropped, plan again."""


class Ledger:
    """Reads and appends records. One writer at a time; see `flush` for what is durable when."""

    def __init__(self, store: Storage) -> None:
        self.store = store
        self._latest: dict[str, datetime] = {}           # stamp of each stage, of what was read or written
        self.told: Callable[[str, Record], None] | None = None   # of every record that is added
        self._index = Index()
        self.unreadable: set[str] = set()                # segments whose records are sound, but not the clips
        self._lost: set[str] = set()                     # segments that turned out to be damaged
        self._pending: dict[str, dict[str, tuple[Record, list[Ref]]]] = {}
        self._since: dict[str, float] = {}
        self._waiting_bytes: dict[str, int] = {}
        self._blocks = Blocks(store, self._bytes_of)
        self._numbers = itertools.count()

    # --- reading -----------------------------------------------------------------------------------------

    def record(self, stage: str, unit: str) -> Record | None:
        """The latest record of a unit."""
        return self.fetch(stage, (unit,)).get(unit)

    def fetch(self, stage: str, units: Sequence[str]) -> dict[str, Record]:
        """`record` of many units at once, those that have one."""
        self._load(stage)
        found: dict[str, Record] = {}
        for start in range(0, len(units), PAGE_ROWS):
            rows = self._index.some(stage, units[start : start + PAGE_ROWS])
            found.update((record.unit, record) for record in self._parsed(rows))
        if pending := self._pending.get(stage):
            found.update((unit, pending[unit][0]) for unit in units if unit in pending)
        return found

    def records(self, stage: str, segment: Segment | None = None) -> Iterator[Record]:
        """The latest record of every unit of a stage, or of a segment of it, in the order of the store."""
        self._load(stage)
        for rows in self._index.all(stage, segment):
            pending = self._pending.get(stage, {})
            yield from (record for record in self._parsed(rows) if record.unit not in pending)
        for record, _ in [] if segment else list(self._pending.get(stage, {}).values()):
            yield record

    def count(self, stage: str) -> int:
        """Units that have a record of a stage."""
        self._load(stage)
        pending = self._pending.get(stage, {})
        return self._index.count(stage) + len(pending) - len(self._index.some(stage, list(pending)))

    def current(self, stage: str, key: str, ref: Ref, barred_key: str = "") -> Record | None:
        """The record of a unit, when it holds for this key (or that of barred units) and this input."""
        record = self.record(stage, ref.id)
        return record if record is not None and holds(record, key, ref, barred_key) else None

    def outputs(self, record: Record) -> list[Ref]:
        """The clips that came out of a unit and go on."""
        return [
            Ref(out.id, out.digest, record.source, out.identity, record.segment, out.at, out.clip)
            for out in record.outputs
            if out.state == "ok"
        ]

    def rejected(self, record: Record) -> list[tuple[Ref, Output]]:
        """The clips that came out of a unit and do not go on."""
        return [
            (Ref(out.id, out.digest, record.source, out.identity, record.segment, out.at, out.clip), out)
            for out in record.outputs
            if out.state != "ok"
        ]

    def load(self, ref: Ref, arrays: Collection[str] | None = None) -> Clip:
        """The clip; with `arrays`, at least these of its arrays. Raises LostSegmentError when it is lost."""
        if ref.clip is not None:
            return ref.clip
        try:
            line = self._line(ref)
            start = ref.at[3] if ref.at else 0
            clip = unpack(line, lambda at, n: self._read(ref.segment, start + at, n), arrays)
            if clip.id != ref.id:
                raise ValueError(f"it holds {clip.id[:100]!r} in the place of {ref.id}")
            return clip
        except (FileNotFoundError, *DAMAGED) as error:
            raise self._is_lost(ref.segment, error) from error

    def clips(self, refs: Sequence[Ref], arrays: Collection[str] | None = None) -> Iterator[Clip]:
        """`load` of each; from a store far away what lies apart is fetched at once."""
        for start in range(0, len(refs), 8 * READERS):
            page = refs[start : start + 8 * READERS]
            with contextlib.suppress(LookupError):       # of a segment that was dropped: `load` tells it
                self._blocks.expect(
                    (_arrays_of(ref.segment), start)
                    for ref in page if ref.clip is None and ref.at is not None
                    for start in (ref.at[0], ref.at[3])[: 2 if arrays != () else 1]
                )  # fmt: skip
            for ref in page:
                yield self.load(ref, arrays)

    def values(self, ref: Ref) -> bytes:
        """The line of a written clip: see `pipelines.segments.unpack`. Raises LostSegmentError."""
        try:
            return self._line(ref)
        except (FileNotFoundError, *DAMAGED) as error:
            raise self._is_lost(ref.segment, error) from error

    def _line(self, ref: Ref) -> bytes:
        if ref.at is None:
            raise ValueError("its place is not known")
        start, length, _, _ = ref.at
        return checked(self._read(ref.segment, start, length), ref.at)

    def _read(self, segment: str, start: int, length: int) -> bytes:
        """A range of the .npz of a segment."""
        return self._blocks.read(_arrays_of(segment), start, length)

    def _bytes_of(self, arrays: str) -> int:
        """Bytes of a .npz. Raises LookupError when its segment was dropped."""
        self._load(arrays.split("/")[1])
        return self._index.segment(arrays.removesuffix("npz") + "jsonl").arrays

    # --- from the store ----------------------------------------------------------------------------------

    def _load(self, stage: str) -> None:
        for attempt in range(LISTINGS):
            if self._index.has(stage):
                return
            try:
                self._load_now(stage)
            except FileNotFoundError as error:           # merged by a run while this one only looks
                self._index.forget(stage)
                if attempt + 1 == LISTINGS:
                    raise LostSegmentError(f"ledger/{stage}") from error

    def _load_now(self, stage: str) -> None:
        self._index.open(stage)
        found = [pair for pair in self._named(stage) if pair[0] not in self._lost]
        for (_, arrays), (key, data) in zip(found, self.fetched([key for key, _ in found]), strict=True):
            try:
                if arrays is None:
                    raise ValueError("no arrays")
                if lines := lines_of(data, key, arrays):
                    self._index.put(stage, key, arrays, lines)
            except DAMAGED as error:
                log.warning("ledger: %s is damaged (%s); its units are done again", key, error)
                if isinstance(error, DamagedArraysError):
                    self.unreadable.add(key)
        self._index.seal(stage)

    def _named(self, stage: str) -> list[tuple[str, int | None]]:
        """`_listed`, of those with a name of ours: another one might come last, whatever is written."""
        named, latest = [], self._latest.get(stage, NEVER)
        for key, arrays in self._listed(stage):
            if (stamp := stamp_of(key)) is None:
                log.warning("ledger: %s is not named as segments are; its units are done again", key)
            else:
                named.append((key, arrays))
                latest = max(latest, stamp)
        self._latest[stage] = latest
        return named

    def _listed(self, stage: str) -> Iterator[tuple[str, int | None]]:
        """(segment, bytes of its arrays), of each that is there, in order."""
        segment = ""
        for entry in self.store.entries(f"ledger/{stage}"):      # a .npz comes right after its .jsonl
            if entry.key.endswith(".npz") and segment == entry.key.removesuffix("npz") + "jsonl":
                yield segment, entry.bytes
                segment = ""
            elif entry.key.endswith(".jsonl"):
                if segment:
                    yield segment, None
                segment = entry.key
        if segment:
            yield segment, None

    def fetched(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """(key, content), in order; from afar some are on their way at once."""
        if isinstance(self.store, FolderStorage):
            yield from ((key, self.store.read(key)) for key in keys)
            return
        with ThreadPoolExecutor(READERS) as threads:
            for start in range(0, len(keys), 2 * READERS):
                some = keys[start : start + 2 * READERS]
                yield from zip(some, threads.map(self.store.read, some), strict=True)

    def _parsed(self, rows: Sequence[Row]) -> list[Record]:
        """Records of rows; none of a segment that was forged: whoever wrote it knew the checksums."""
        keys = [self._index.key(number) for _, number, _ in rows]
        try:
            return _records(rows, keys)
        except DAMAGED:
            return list(itertools.chain.from_iterable(map(self._sound, rows, keys)))

    def _sound(self, row: Row, key: str) -> list[Record]:
        try:
            return _records([row], [key])
        except DAMAGED as error:
            log.warning("ledger: %s is damaged (%s); its units are done again", key, error)
            return []

    def _is_lost(self, segment: str, error: Exception) -> LostSegmentError:
        if isinstance(error, FileNotFoundError):
            log.info("ledger: %s is gone; what there is now is read", segment)
        else:
            log.warning("ledger: %s is damaged (%s); its units are done again", segment, error)
        self.drop(segment)
        return LostSegmentError(segment)

    def drop(self, segment: str) -> None:
        """Forget a segment that turned out to be damaged. One that is gone was merged, or deleted."""
        if segment.count("/") != 2:
            return
        self._lost.add(segment)
        self._blocks.forget(_arrays_of(segment))
        self._index.forget(segment.split("/")[1])
        with contextlib.suppress(StorageError):  # in a store that only reads, it is passed over each time
            self.store.delete(segment)

    # --- for `pipelines.compact` -------------------------------------------------------------------------

    def segments(self, stage: str) -> Iterator[tuple[Segment, int]]:
        """Every sound segment of a stage in the order of the store, with how many of its records count."""
        self._load(stage)
        return self._index.segments(stage)

    def replace(self, stage: str, segment: str, lines: Sequence[str], arrays: int) -> None:
        """Look records up in a segment that was written with what others hold."""
        self._index.put(stage, segment, arrays, lines)

    def delete(self, segments: Sequence[str]) -> None:
        """Delete segments of which nothing counts any more."""
        self.store.delete_all(list(segments))
        self.store.delete_all([_arrays_of(segment) for segment in segments])
        self._index.remove(segments)

    def close(self) -> None:
        """Free the disk; what is not flushed is lost."""
        self._index.close()

    # --- writing -----------------------------------------------------------------------------------------

    def add(self, stage: str, record: Record, clips: Sequence[Clip]) -> list[Ref]:
        """Note a record with the clips of its outputs, in order. Returns those that go on."""
        refs = []
        for out, clip in zip(record.outputs, clips, strict=True):
            out.clip = clip
            refs.append(Ref(out.id, out.digest, record.source, out.identity, clip=clip))
        if self.told is not None:
            self.told(stage, record)
        batch = self._pending.setdefault(stage, {})
        batch[record.unit] = (record, refs)
        self._since.setdefault(stage, time.monotonic())
        self._waiting_bytes[stage] = self._waiting_bytes.get(stage, 0) + sum(map(_size, clips))
        if len(batch) >= BATCH_UNITS or self._waiting_bytes[stage] >= BATCH_BYTES:
            self._write(stage)
        return [ref for ref, out in zip(refs, record.outputs, strict=True) if out.state == "ok"]

    def flush(self, due: bool = False) -> None:
        """Make every record durable; with `due`, only of stages whose batch has waited long enough."""
        now = time.monotonic()
        for stage in list(self._pending):
            if not due or now - self._since[stage] >= BATCH_SECONDS:
                self._write(stage)

    def _write(self, stage: str) -> None:
        batch = list(self._pending[stage].values())
        segment = self._new_name(stage)
        records = [record for record, _ in batch]
        clips = [out.clip for record in records for out in record.outputs if out.clip is not None]
        lines, arrays = write_segment(self.store, segment, records, clips)
        for record, refs in batch:
            record.segment = segment
            for ref, out in zip(refs, record.outputs, strict=True):
                ref.segment, ref.at, ref.clip, out.clip = segment, out.at, None, None
        if self._index.has(stage):
            self._index.put(stage, segment, arrays, lines)
        del self._pending[stage], self._since[stage], self._waiting_bytes[stage]

    def _new_name(self, stage: str) -> str:
        """Of a segment: later than all that are there, whatever the clock says."""
        if stage not in self._latest:
            self._named(stage)
        self._latest[stage] = stamp = after(self._latest[stage], datetime.now(UTC))
        return f"ledger/{stage}/{as_name(stamp)}-{next(self._numbers):06d}-{os.urandom(3).hex()}.jsonl"

    def finished(self, stage: str) -> str:
        """What a group stage was finished with, or ""."""
        key = f"ledger/{stage}/finished.json"
        try:
            digest = parsed_object(self.store.read(key)).get("digest")
        except (FileNotFoundError, ValueError):
            return ""
        return digest if isinstance(digest, str) else ""

    def finish(self, stage: str, digest: str) -> None:
        """Note what a group stage was finished with."""
        self.store.write(f"ledger/{stage}/finished.json", json.dumps({"digest": digest}).encode())


def holds(record: Record, key: str, ref: Ref, barred_key: str = "") -> bool:
    """Whether a record of a unit is current: of this key (or that of barred units) and this input."""
    return record.key in (key, barred_key) and record.input == ref.digest


def _records(rows: Sequence[Row], keys: Sequence[str]) -> list[Record]:
    """Of rows in those segments. Raises what `DAMAGED` names."""
    records = from_lines([line for _, _, line in rows], keys)
    if [record.unit for record in records] != [unit for unit, _, _ in rows]:
        raise ValueError("a record of another unit")
    return records


def in_pages(refs: Iterable[Ref], size: int) -> Iterator[list[Ref]]:
    """The same, `size` at a time."""
    iterator = iter(refs)
    while page := list(itertools.islice(iterator, size)):
        yield page


def _arrays_of(segment: str) -> str:
    return segment.removesuffix("jsonl") + "npz"


def _size(clip: Clip) -> int:
    return 1024 + sum(array.nbytes for array in clip.to_record()[1].values())
