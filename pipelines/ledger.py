"""What has been done: one record per stage and unit, in append-only segments.

    ledger/<stage>/<segment>.npz     the clips that came out, arrays and values; written first
    ledger/<stage>/<segment>.jsonl   a header line, then one record per line; it commits the segment
    ledger/<stage>/finished.json     what a group stage was finished with

A record is current when the stage (class, version, settings) and the digest of its input are those
of now. So nothing is redone below a stage whose output did not change, and the number of workers does not
matter. A segment is some hundred units or some seconds of work, never one object per unit. Later segments
win; a damaged or older one is passed over with a warning, and its units are done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from infra.storage import Storage
from stages.clip import Clip

log = logging.getLogger(__name__)

SCHEMA = 1
BATCH_UNITS = 256
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 5.0
OPEN_SEGMENTS = 64

# What reading a segment raises that is not as it was written.
DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError, zipfile.BadZipFile,
    zlib.error,
)


@dataclass(slots=True)
class Output:
    """One clip that came out of a unit."""

    id: str
    digest: str
    state: str = "ok"                        # ok or rejected
    reason: str = ""
    detail: str = ""
    identity: str = ""


@dataclass(slots=True)
class Record:
    """What a stage did to one unit."""

    unit: str
    source: str
    key: str                                 # of the stage
    input: str                               # digest of the clip that went in
    state: str                               # ok, rejected or failed
    reason: str = ""
    detail: str = ""
    attempts: int = 1
    seconds: float = 0.0
    outputs: list[Output] = field(default_factory=list)
    group: str = ""                          # group stages: the group and the digest of all its members
    members: str = ""
    again: bool = False                      # failed, and the next run tries it again
    segment: str = ""                        # where it was read from; not written
    row: int = 0                             # of its first output in the segment


@dataclass(slots=True)
class Ref:
    """A clip that may still be in the store: cheap to hold by the million."""

    id: str
    digest: str
    source: str
    identity: str = ""
    segment: str = ""
    row: int = 0
    clip: Clip | None = None


class LostSegmentError(Exception):
    """The clips of a segment cannot be read; its records were dropped, plan again."""


def encode_clips(clips: Sequence[Clip]) -> bytes:
    """Clips as one npz without pickle; `ClipFile` reads them back."""
    members: dict[str, Any] = {}
    lines = []
    for row, clip in enumerate(clips):
        values, arrays = clip.to_record()
        lines.append(json.dumps(values, separators=(",", ":")))
        members.update({f"{row}.{name}": array for name, array in arrays.items()})
    members["values"] = np.frombuffer("\n".join(lines).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **members)
    return buffer.getvalue()


class ClipFile:
    """The clips of one npz; only what is asked for is read."""

    def __init__(self, data: bytes) -> None:
        self._npz = np.load(io.BytesIO(data), allow_pickle=False)
        text = self._npz["values"].tobytes().decode()
        self._lines = text.split("\n") if text else []
        self._names: dict[int, list[str]] = {}
        for name in self._npz.files:
            row, dot, _ = name.partition(".")
            if dot:
                self._names.setdefault(int(row), []).append(name)

    def __len__(self) -> int:
        return len(self._lines)

    def clip(self, row: int, arrays: Collection[str] | None = None) -> Clip:
        """The clip of a row; with `arrays`, only these of its arrays."""
        fields = {name.partition(".")[2]: name for name in self._names.get(row, [])}
        held = {f: self._npz[name] for f, name in fields.items() if arrays is None or f in arrays}
        return Clip.from_record(json.loads(self._lines[row]), held)


class Ledger:
    """Reads and appends records. One writer at a time; see `flush` for what is durable when."""

    def __init__(self, store: Storage) -> None:
        self.store = store
        self.told: Callable[[str, Record], None] | None = None   # of every record that is added
        self._records: dict[str, dict[str, Record]] = {}
        self._pending: dict[str, list[tuple[Record, list[Ref]]]] = {}
        self._since: dict[str, float] = {}
        self._waiting_bytes: dict[str, int] = {}
        self._open: OrderedDict[str, ClipFile] = OrderedDict()
        self._numbers = itertools.count()
        self._sizes: dict[str, int] = {}

    # --- reading -----------------------------------------------------------------------------------------

    def records(self, stage: str) -> dict[str, Record]:
        """The latest record of every unit of a stage."""
        if stage not in self._records:
            found: dict[str, Record] = {}
            keys = list(self.store.list(f"ledger/{stage}"))
            present = set(keys)
            for key in keys:
                if key.endswith(".jsonl"):
                    found.update((record.unit, record) for record in self._segment(key, present))
            self._records[stage] = found
        return self._records[stage]

    def current(self, stage: str, key: str, ref: Ref, barred_key: str = "") -> Record | None:
        """The record of a unit, when it holds for this key (or that of barred units) and this input."""
        record = self.records(stage).get(ref.id)
        holds = record is not None and record.key in (key, barred_key) and record.input == ref.digest
        return record if holds else None

    def _segment(self, key: str, present: set[str]) -> list[Record]:
        try:
            if key.removesuffix("jsonl") + "npz" not in present:
                raise ValueError("no arrays")
            return read_segment(self.store, key)
        except DAMAGED as error:
            log.warning("ledger: %s is damaged (%s); its units are done again", key, error)
            return []

    def outputs(self, record: Record) -> list[Ref]:
        """The clips that came out of a unit and go on."""
        return [
            Ref(out.id, out.digest, record.source, out.identity, record.segment, record.row + number)
            for number, out in enumerate(record.outputs)
            if out.state == "ok"
        ]

    def load(self, ref: Ref, arrays: Collection[str] | None = None) -> Clip:
        """The clip; with `arrays`, at least these of its arrays. Raises LostSegmentError when it is lost."""
        if ref.clip is not None:
            return ref.clip
        try:
            return self._file(ref.segment).clip(ref.row, arrays)
        except (FileNotFoundError, *DAMAGED) as error:
            self.drop(ref.segment)
            log.warning("ledger: %s is damaged (%s); its units are done again", ref.segment, error)
            raise LostSegmentError(ref.segment) from error

    def _file(self, segment: str) -> ClipFile:
        if segment not in self._open:
            data = self.store.read(segment.removesuffix("jsonl") + "npz")
            header = json.loads(self.store.read(segment).partition(b"\n")[0])
            if hashlib.sha256(data).hexdigest() != header["arrays_sha256"]:
                raise ValueError("checksum of the arrays")
            while len(self._open) >= OPEN_SEGMENTS or self._open_bytes() + len(data) > 4 * BATCH_BYTES:
                if not self._open:
                    break
                self._sizes.pop(self._open.popitem(last=False)[0])
            self._open[segment] = ClipFile(data)
            self._sizes[segment] = len(data)
        self._open.move_to_end(segment)
        return self._open[segment]

    def _open_bytes(self) -> int:
        return sum(self._sizes.values())

    def drop(self, segment: str) -> None:
        """Forget a segment that turned out to be damaged."""
        stage = segment.split("/")[1]
        kept = {unit: r for unit, r in self.records(stage).items() if r.segment != segment}
        self._records[stage] = kept
        with contextlib.suppress(OSError):  # in a store that only reads, it is passed over each time
            self.store.delete(segment)

    # --- writing -----------------------------------------------------------------------------------------

    def add(self, stage: str, record: Record, clips: Sequence[Clip]) -> list[Ref]:
        """Note a record with the clips of its outputs, in order. Returns those that go on."""
        refs = [
            Ref(out.id, out.digest, record.source, out.identity, clip=clip)
            for out, clip in zip(record.outputs, clips, strict=True)
        ]
        self.records(stage)[record.unit] = record
        if self.told is not None:
            self.told(stage, record)
        self._pending.setdefault(stage, []).append((record, refs))
        self._since.setdefault(stage, time.monotonic())
        self._waiting_bytes[stage] = self._waiting_bytes.get(stage, 0) + sum(map(_size, clips))
        if len(self._pending[stage]) >= BATCH_UNITS or self._waiting_bytes[stage] >= BATCH_BYTES:
            self._write(stage)
        return [ref for ref, out in zip(refs, record.outputs, strict=True) if out.state == "ok"]

    def flush(self, due: bool = False) -> None:
        """Make every record durable; with `due`, only of stages whose batch has waited long enough."""
        now = time.monotonic()
        for stage in list(self._pending):
            if not due or now - self._since[stage] >= BATCH_SECONDS:
                self._write(stage)

    def _write(self, stage: str) -> None:
        batch = self._pending[stage]
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        segment = f"ledger/{stage}/{stamp}-{next(self._numbers):06d}-{os.urandom(3).hex()}.jsonl"
        clips = [ref.clip for _, refs in batch for ref in refs if ref.clip is not None]
        write_segment(self.store, segment, [record for record, _ in batch], clips)
        row = 0
        for record, refs in batch:
            record.segment, record.row = segment, row
            for ref in refs:
                ref.segment, ref.row, ref.clip = segment, row, None
                row += 1
        del self._pending[stage], self._since[stage], self._waiting_bytes[stage]

    def finished(self, stage: str) -> str:
        """What a group stage was finished with, or ""."""
        key = f"ledger/{stage}/finished.json"
        if not self.store.exists(key):
            return ""
        try:
            return str(json.loads(self.store.read(key))["digest"])
        except (ValueError, KeyError, TypeError):
            return ""

    def finish(self, stage: str, digest: str) -> None:
        """Note what a group stage was finished with."""
        self.store.write(f"ledger/{stage}/finished.json", json.dumps({"digest": digest}).encode())


def read_segment(store: Storage, key: str) -> list[Record]:
    """The records of a segment, none of one of another version. Raises ValueError, KeyError or TypeError."""
    head, _, body = store.read(key).partition(b"\n")
    header = json.loads(head)
    if header["schema"] != SCHEMA:
        log.warning("ledger: %s is of another version; its units are done again", key)
        return []
    lines = body.splitlines()
    if len(lines) != header["rows"] or hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError("checksum")
    records = [_parse(line, key) for line in lines]
    row = 0
    for record in records:
        record.row = row
        row += len(record.outputs)
    return records


def write_segment(store: Storage, key: str, records: Sequence[Record], clips: Sequence[Clip]) -> None:
    """Records with the clips of all their outputs, in order; the last write commits them."""
    arrays = encode_clips(clips)
    body = "".join(_line(record) for record in records).encode()
    header = {
        "schema": SCHEMA, "stage": key.split("/")[1], "rows": len(records),
        "sha256": hashlib.sha256(body).hexdigest(), "arrays_bytes": len(arrays),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }  # fmt: skip
    store.write(key.removesuffix("jsonl") + "npz", arrays)
    store.write(key, json.dumps(header).encode() + b"\n" + body)


def members_digest(refs: Sequence[Ref]) -> str:
    """sha256 (hex) of ids and digests, whatever their order."""
    text = json.dumps(sorted((ref.id, ref.digest) for ref in refs))
    return hashlib.sha256(text.encode()).hexdigest()


def _line(record: Record) -> str:
    values = asdict(record)
    for name in ("segment", "row"):
        del values[name]
    values["seconds"] = round(record.seconds, 4)
    return json.dumps(values, separators=(",", ":")) + "\n"


def _parse(line: bytes, segment: str) -> Record:
    values = _shared(json.loads(line))
    values["outputs"] = [Output(**_shared(out)) for out in values["outputs"]]
    return Record(**values, segment=segment)


def _shared(values: dict[str, Any]) -> dict[str, Any]:
    """Equal texts once in memory: an output of one stage is the input of the next."""
    return {name: sys.intern(v) if type(v) is str else v for name, v in values.items()}


def _size(clip: Clip) -> int:
    return 1024 + sum(array.nbytes for array in clip.to_record()[1].values())
