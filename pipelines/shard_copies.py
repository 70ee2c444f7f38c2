"""Whole shards on this machine's disk, brought in the background while the trainer reads by range.

Shards in a folder are read where they are. From elsewhere a shard is brought when this costs less than what
is still to be read of it by range: when

    frames that this worker will draw x (bytes of a frame + what a request costs) >= bytes of the shards

and as long as the shards fit into the store's cache (`storage.s3.cache_gb`). They are those whose keys come
first: the same for all workers, so that none drives out another's. Every other shard is read by range for
good. Where a frame comes from never decides which frame it is.

The copies are those of `infra.object_cache`: shared by the processes of a machine, named by their sha256,
checked while they are fetched, and gone in the order of their last use when others need the room.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from infra.object_cache import machine_cache
from infra.storage import FolderStorage, StorageError
from stages.dataset import Dataset

log = logging.getLogger(__name__)

PART_BYTES = 16 << 20                        # of a shard, fetched at once
FREE_BYTES = 2 << 30                         # that stay free on the disk: checkpoints and others need some


class _ClosedError(Exception):
    """Nobody needs it any more."""


class _ChecksumError(Exception):
    """The shard is not what its manifest says."""


class ShardCopies:
    """Brings the shards `tars` of a dataset; the dataset reads those from the disk that are there."""

    def __init__(self, dataset: Dataset, tars: list[str], *, rank: int = 0) -> None:
        self.dataset, self._rank = dataset, rank
        self.tars = fitting(dataset, tars, dataset.store.cache_bytes)[: most_open()]
        self._wanted = sorted(set(tars) & dataset.shards.keys())
        self._cache = machine_cache(dataset.store.cache_bytes)
        self._held = contextlib.ExitStack()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = False
        self.damaged: dict[str, str] = {}
        """Why, by the key of the shard."""

    def start(self, draws: int) -> None:
        """Begin, if it is worth while for so many frames that this worker is going to draw."""
        store = self.dataset.store
        if self._started:
            return
        self._started = True
        if isinstance(store, FolderStorage):
            for tar in self._wanted[: most_open()]:
                with contextlib.suppress(OSError):           # told when it is read
                    self._use(tar, store.path(tar))
        elif self.tars and worth_copying(self.dataset, draws):
            turned = self._rank % len(self.tars)             # workers of a machine begin at different ones
            order = self.tars[turned:] + self.tars[:turned]
            self._thread = threading.Thread(target=self._bring, args=(order,), name="shards", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until everything is there that will be."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Stop, and let the copies go. Nobody may read them then."""
        self._closing.set()
        self.wait()
        for tar in self._wanted:
            self.dataset.members.use_copy(tar, None)
        self._held.close()

    def _bring(self, tars: list[str]) -> None:
        for tar in tars:
            try:
                self._bring_one(tar)
            except _ClosedError:
                return
            except _ChecksumError as error:
                self.damaged[tar] = str(error)
                log.warning("%s; it is read by range, and what does not decode is replaced", error)
            except (OSError, StorageError) as error:
                reason = getattr(error, "strerror", None) or error
                log.warning("no copies of shards on this machine (%s); they are read by range", reason)
                return

    def _bring_one(self, tar: str) -> None:
        shard = self.dataset.shards[tar]
        path = self._held.enter_context(
            self._cache.copy(f"sha256 {shard.sha256}", shard.bytes, ".tar", self._fetch(tar))
        )
        self._use(tar, path)

    def _use(self, tar: str, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._held.callback(os.close, handle)
        if os.fstat(handle).st_size == self.dataset.shards[tar].bytes:
            self.dataset.members.use_copy(tar, handle)

    def _fetch(self, tar: str) -> Callable[[Path], None]:
        shard, store = self.dataset.shards[tar], self.dataset.store

        def fetch(path: Path) -> None:
            free = shutil.disk_usage(path.parent).free
            if free < shard.bytes + FREE_BYTES:      # the cache makes room, and asks once more
                raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free in {path.parent}")
            digest = hashlib.sha256()
            with path.open("r+b") as file:
                for start in range(0, shard.bytes, PART_BYTES):
                    if self._closing.is_set():
                        raise _ClosedError
                    try:
                        data = store.read_range(tar, start, min(PART_BYTES, shard.bytes - start))
                    except EOFError:
                        break                        # told as a wrong checksum
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != shard.sha256:
                raise _ChecksumError(f"{tar} in {store.root} does not have the sha256 of its manifest")

        return fetch


def most_open() -> int:
    """Shards that may be open at once, each with its lock: half of the files that the system allows."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4


def fitting(dataset: Dataset, tars: list[str], most_bytes: int) -> list[str]:
    """The first shards, by key, that fit together."""
    chosen, used = [], 0
    for tar in sorted(set(tars)):
        shard = dataset.shards.get(tar)
        if shard is not None and used + shard.bytes <= most_bytes:
            chosen.append(tar)
            used += shard.bytes
    return chosen


def worth_copying(dataset: Dataset, draws: int) -> bool:
    """Whether whole shards cost less than `draws` frames by range."""
    whole = sum(shard.bytes for shard in dataset.shards.values())
    frames = sum(sample.frame_count for sample in dataset.samples)
    return draws * (whole / max(frames, 1) + dataset.store.request_bytes) >= whole
