"""Ranges of many objects of a store, read by blocks that are kept for a while.

What lies together is read once, and what lies apart costs no more than a block each; from a store far away
several come at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from infra.storage import FolderStorage, Storage

BLOCK_BYTES = 64 << 10
BLOCKS = 512                                 # that are kept
READERS = 8                                  # objects that are fetched at once from a store far away

Place = tuple[str, int]                      # key, number of a block


class Blocks:
    """`size_of` tells how many bytes an object has. Raises what it and `Storage.read_range` raise."""

    def __init__(self, store: Storage, size_of: Callable[[str], int]) -> None:
        self._store, self._size_of = store, size_of
        self._blocks: OrderedDict[Place, bytes] = OrderedDict()

    def read(self, key: str, start: int, length: int) -> bytes:
        """A range. Raises EOFError where the object does not have it, before anything is read."""
        if start < 0 or length < 0 or start + length > self._size_of(key):
            raise EOFError(f"{key}: {length} bytes wanted at {start}, the object has {self._size_of(key)}")
        first, last = start // BLOCK_BYTES, max(start, start + length - 1) // BLOCK_BYTES
        if last - first > BLOCKS // 4:
            return self._store.read_range(key, start, length)
        blocks = [self._block((key, number)) for number in range(first, last + 1)]
        begin = start - first * BLOCK_BYTES
        joined = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        return joined[begin : begin + length]

    def expect(self, starts: Iterable[tuple[str, int]]) -> None:
        """Fetch the blocks of some (key, start) that will be read next, where it takes long.

        What cannot be had is told when it is read.
        """
        if isinstance(self._store, FolderStorage):
            return
        places = {(key, start // BLOCK_BYTES) for key, start in starts} - self._blocks.keys()
        with ThreadPoolExecutor(READERS) as threads:
            jobs = []
            for place in sorted(places):
                start, length = self._range(place)
                if length > 0:
                    jobs.append((place, threads.submit(self._store.read_range, place[0], start, length)))
        for place, job in jobs:
            if not isinstance(job.exception(), (FileNotFoundError, EOFError)):
                self._keep(place, job.result())

    def forget(self, key: str) -> None:
        """Keep nothing of an object."""
        for place in [place for place in self._blocks if place[0] == key]:
            del self._blocks[place]

    def _block(self, place: Place) -> bytes:
        if place not in self._blocks:
            start, length = self._range(place)
            self._keep(place, self._store.read_range(place[0], start, length) if length > 0 else b"")
        self._blocks.move_to_end(place)
        return self._blocks[place]

    def _range(self, place: Place) -> tuple[int, int]:
        start = place[1] * BLOCK_BYTES
        return start, min(BLOCK_BYTES, self._size_of(place[0]) - start)

    def _keep(self, place: Place, block: bytes) -> None:
        while len(self._blocks) >= BLOCKS:
            self._blocks.popitem(last=False)
        self._blocks[place] = block
