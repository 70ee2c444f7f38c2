"""Members of committed shards, read by range: from the store, or from a copy of the shard on this machine.

Safe for use by several threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage

MOST_MEMBER = 1 << 28                        # bytes
MOST_SHARD = 1 << 42
TOMBSTONE = "taken_down"                     # the key whose value names the record below takedown/


class DamagedError(ValueError):
    """What the dataset names is missing, or is not what a stage writes; one line that names the file."""


class TakenDownError(ValueError):
    """What the dataset names was taken down; one line that names the record of it."""


@dataclass
class _Clip:
    """Where the members of a clip lie in its shard."""

    row: dict[str, int]                      # of a member; shared by clips of the same members
    places: NDArray[np.int64]                # [members, 2]: offset, size


@dataclass
class Members:
    """Reads members by the indices of their shards, which are read once."""

    store: Storage
    _indices: dict[str, dict[str, _Clip]] = field(default_factory=dict, repr=False)
    _copies: dict[str, int] = field(default_factory=dict, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False)

    def read(self, tar: str, index: str, clip_id: str, names: Sequence[str]) -> list[bytes]:
        """The members of a clip, in the order of `names`. Raises DamagedError, TakenDownError.

        From the store, what lies between two members is read with them where that costs less than another
        request.
        """
        with naming(self.store, index):
            clip = self._index(index)[clip_id]
            places = [clip.places[clip.row[name]].tolist() for name in names]
        copy = self._copies.get(tar)
        with naming(self.store, tar):
            if copy is not None:
                return [_whole(os.pread(copy, size, at), size) for at, size in places]
            found: dict[int, bytes] = {}
            for start, length, inside in coalesced(places, self.store.request_bytes):
                data = self.store.read_range(tar, start, length)
                found |= {at: data[at - start : at - start + size] for at, size in inside}
            return [found[at] for at, _ in places]

    def use_copy(self, tar: str, copy: int | None) -> None:
        """Read a shard from this descriptor from now on; None: from the store."""
        if copy is None:
            self._copies.pop(tar, None)
        else:
            self._copies[tar] = copy

    def has_copy(self, tar: str) -> bool:
        return tar in self._copies

    def _index(self, key: str) -> dict[str, _Clip]:
        if key not in self._indices:
            with self._locks.setdefault(key, threading.Lock()):  # other shards are not kept waiting
                if key not in self._indices:
                    self._indices[key] = _parse(self.store.read(key))
        return self._indices[key]


def coalesced(
    places: Sequence[Sequence[int]], most_gap: int
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(start, length, places inside) of the ranges to read for places (offset, size).

    Places become one range when no more than `most_gap` bytes lie between them.
    """
    ranges: list[tuple[int, int, list[tuple[int, int]]]] = []
    for at, size in sorted({(at, size) for at, size in places}):
        if ranges and at - sum(ranges[-1][:2]) <= most_gap:
            start, length, inside = ranges.pop()
            ranges.append((start, max(length, at + size - start), [*inside, (at, size)]))
        else:
            ranges.append((at, size, [(at, size)]))
    return ranges


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise EOFError(f"{size} bytes wanted, {len(data)} are there")
    return data


def _parse(data: bytes) -> dict[str, _Clip]:
    rows: dict[str, list[tuple[str, int, int]]] = {}
    for clip_id, name, at, size in json.loads(data)["members"]:
        if not (type(at) is int and type(size) is int and 0 <= at <= MOST_SHARD and 0 <= size <= MOST_MEMBER):
            raise ValueError(f"{name}: {size} bytes at {at}")
        rows.setdefault(clip_id, []).append((name, at, size))
    shared: dict[tuple[str, ...], dict[str, int]] = {}
    clips = {}
    for clip_id, members in rows.items():
        names = tuple(name for name, _, _ in members)
        row = shared.setdefault(names, {name: i for i, name in enumerate(names)})
        clips[clip_id] = _Clip(row, np.array([member[1:] for member in members], np.int64))
    return clips


def taken_down_by(store: Storage, key: str) -> str:
    """The record that took down the shard (key of its manifest, tar or index) or the version; "" for none."""
    stem = key.rpartition("/")[2].split(".", 1)[0]
    key = key if key.startswith("dataset/") else f"manifest/{stem}.json"
    try:
        content = json.loads(store.read(key))
    except (FileNotFoundError, ValueError, RecursionError):
        return ""
    return str(content.get(TOMBSTONE, "")) if isinstance(content, dict) else ""


@contextlib.contextmanager
def naming(store: Storage, key: str) -> Iterator[None]:
    """Turn what reading a lost or damaged file raises into one line that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if record := taken_down_by(store, key):
            raise TakenDownError(
                f"{key} in {store.root} was taken down (see {record}); "
                "`pv3d run` goes on with the version of the dataset that replaced it"
            ) from error
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise DamagedError(
            f"{key} in {store.root} is {what}; bring it back, or make the shards in another storage.root"
        ) from error
