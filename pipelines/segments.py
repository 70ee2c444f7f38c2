"""Segments: a file of records, and beside it one of the clips that came out, each of which can be read alone.

    <segment>.jsonl   a header line, then one record per line; it is written last and commits the segment
    <segment>.npz     two arrays of bytes: `arrays`, those of the clips one after the other, and `values`, one
                      line of JSON per clip: its values, and of each array dtype, shape, offset and crc

A record says where the line of a clip is, (start, length, crc, start of its arrays) in the file, so a clip
costs one or two reads of a range, however large the segment. Nothing in it is ever run: no pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from infra.json_text import encoder
from infra.storage import Storage
from pipelines.records import At, Record, from_lines, to_line
from stages.clip import Array, Clip

log = logging.getLogger(__name__)

SCHEMA = 2
_encode = encoder(compact=True)
_ALIGNED = 16                                # bytes: arrays begin at multiples
_LONGEST_DTYPE = 16                          # characters of what an array is made of, such as <f4
_MOST_ROWS = 1 << 40                         # of an array, in each direction

# What reading a segment raises that is not as it was written.
DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)


class DamagedArraysError(ValueError):
    """The arrays beside a segment are not those that were written."""


Bytes = Callable[[int, int], bytes]          # (start, length) of a file


# --- clips -----------------------------------------------------------------------------------------------


def encode_clips(clips: Sequence[Clip]) -> bytes:
    """Clips as one npz without pickle; `ClipFile` reads them back."""
    return pack([encode(clip) for clip in clips])[0]


def pack(rows: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, list[At]]:
    """(the file, where each clip is) of clips as (line, arrays), from `encode` or `raw`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        arrays = _member(file, buffer, "arrays", b"".join(arrays for _, arrays in rows))
        values = _member(file, buffer, "values", b"\n".join(line for line, _ in rows))
    places = []
    for line, held in rows:
        places.append((values, len(line), zlib.crc32(line), arrays))
        values, arrays = values + len(line) + 1, arrays + len(held)
    return buffer.getvalue(), places


def _member(file: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> int:
    """Write an array of bytes as np.savez does; returns where in the file it begins."""
    told = {"descr": "|u1", "fortran_order": False, "shape": (len(data),)}
    with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, told)
        start = buffer.tell()
        member.write(data)
    return start


def encode(clip: Clip) -> tuple[bytes, bytes]:
    values, arrays = clip.to_record()
    held, told = bytearray(), {}
    for name, array in arrays.items():
        if array.dtype.hasobject or array.dtype.names:
            raise ValueError(f"{clip.id}: field {name!r} holds {array.dtype}; give an array of plain numbers")
        data = array.tobytes()
        told[name] = [array.dtype.str, array.shape, len(held), zlib.crc32(data)]
        held += data
        held += bytes(-len(held) % _ALIGNED)
    return _encode({"values": values, "arrays": told}).encode(), bytes(held)


def unpack(line: bytes, arrays_of: Bytes, wanted: Collection[str] | None = None) -> Clip:
    """The clip of a line; of its arrays those `wanted`, None for all, which `arrays_of` reads."""
    told = json.loads(line)
    arrays = {
        name: _array(place, arrays_of) for name, place in told["arrays"].items()
        if wanted is None or name in wanted
    }  # fmt: skip
    return Clip.from_record(told["values"], arrays)


def _array(place: Sequence[Any], arrays_of: Bytes) -> Array:
    name, shape, start, crc = place
    if type(name) is not str or len(name) > _LONGEST_DTYPE:
        raise ValueError("an array of no type")
    if type(start) is not int or start < 0 or not all(type(n) is int and 0 <= n < _MOST_ROWS for n in shape):
        raise ValueError("an array in a place or of a shape that is none")
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    data = arrays_of(start, size := dtype.itemsize * math.prod(shape))
    if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError("checksum of an array")
    return np.ndarray(shape, dtype, data)


def arrays_bytes(line: bytes) -> int:
    """How many bytes the arrays of a clip take in the file."""
    ends = [start + np.dtype(dtype).itemsize * math.prod(shape)
            for dtype, shape, start, _ in json.loads(line)["arrays"].values()]  # fmt: skip
    end = max(ends, default=0)
    return end + -end % _ALIGNED


def checked(line: bytes, at: At) -> bytes:
    """The line, when it is what was written. Raises ValueError."""
    if len(line) != at[1] or zlib.crc32(line) != at[2]:
        raise ValueError("checksum of a clip")
    return line


class ClipFile:
    """All clips of one npz, by row."""

    def __init__(self, data: bytes) -> None:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            text = held["values"].tobytes()
            self._arrays: bytes = held["arrays"].tobytes()
        self._lines = text.split(b"\n") if text else []
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + arrays_bytes(line))

    def __len__(self) -> int:
        return len(self._lines)

    def clip(self, row: int, arrays: Collection[str] | None = None) -> Clip:
        """The clip of a row; with `arrays`, only these of its arrays."""
        first = self._starts[row]
        return unpack(self._lines[row], lambda at, n: self._arrays[first + at : first + at + n], arrays)

    def raw(self, row: int) -> tuple[bytes, bytes]:
        """As `pack` takes it."""
        return self._lines[row], self._arrays[self._starts[row] : self._starts[row + 1]]


# --- records ---------------------------------------------------------------------------------------------


def lines_of(data: bytes, key: str, arrays: int | None = None) -> list[str]:
    """The lines of a segment that was read, none of one of another version. Raises what `DAMAGED` names.

    `arrays`: how many bytes its .npz has; None when nobody looked.
    """
    head, _, body = data.partition(b"\n")
    header = json.loads(head)
    if header["schema"] != SCHEMA:
        log.warning("ledger: %s is of another version; its units are done again", key)
        return []
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError("checksum")
    if arrays is not None and arrays != header["arrays_bytes"]:
        raise DamagedArraysError(f"{arrays} of {header['arrays_bytes']} bytes of arrays")
    lines = body.decode().split("\n")[:-1]
    if len(lines) != header["rows"]:
        raise ValueError("number of records")
    return lines


def read_segment(store: Storage, key: str) -> list[Record]:
    """The records of a segment, none of one of another version. Raises what `DAMAGED` names."""
    lines = lines_of(store.read(key), key)
    return from_lines(lines, [key] * len(lines))


def rows_of(records: Sequence[Record]) -> Iterator[tuple[Record, range]]:
    """Each record of a whole segment with the rows of its outputs in the `ClipFile`."""
    row = 0
    for record in records:
        yield record, range(row, row + len(record.outputs))
        row += len(record.outputs)


def write_segment(
    store: Storage, key: str, records: Sequence[Record], clips: Sequence[Clip]
) -> tuple[list[str], int]:
    """Records with the clips of all their outputs, in order; the last write commits them.

    Sets where the outputs are. Returns the lines, and the bytes of the arrays.
    """
    return write_packed(store, key, records, [encode(clip) for clip in clips])


def write_packed(
    store: Storage, key: str, records: Sequence[Record], rows: Sequence[tuple[bytes, bytes]]
) -> tuple[list[str], int]:
    """As `write_segment`, of clips as `pack` takes them."""
    arrays, places = pack(rows)
    outputs = [out for record in records for out in record.outputs]
    for out, at in zip(outputs, places, strict=True):
        out.at = at
    lines = [to_line(record) for record in records]
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {
        "schema": SCHEMA, "stage": key.split("/")[1], "rows": len(records),
        "sha256": hashlib.sha256(body).hexdigest(), "arrays_bytes": len(arrays),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }  # fmt: skip
    store.write(key.removesuffix("jsonl") + "npz", arrays)
    store.write(key, json.dumps(header).encode() + b"\n" + body)
    return lines, len(arrays)
