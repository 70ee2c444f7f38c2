"""A store in memory whose calls can fail in every way, as a folder; `simulated_s3` stands below `S3Storage`.

What can happen to a call, as plans name it:

    crash before, crash after       its process dies before or after it acts
    refused                         it does not act, and says so
    lost                            it acts, and its answer is lost
    late                            its answer is lost, and it acts a while later
    sent twice                      boto3 lost the first answer, and has sent it again
    slow, slow answer               it, or its answer, is under way for long while others go on
    pause                           its whole process stands still before it
    interrupt                       Ctrl-C, in its main thread
    outage                          for a while the store answers nobody
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from botocore.exceptions import ClientError
from simulated_world import World

from infra.storage import Entry, Storage, StorageError
from infra.storage import check_key as really_check_key

T = TypeVar("T")

check_key = functools.cache(really_check_key)            # there are a few hundred keys

ACTS = ("write", "create", "delete")
FAULTS = (
    "crash before", "crash after", "refused", "lost", "late", "sent twice", "slow", "slow answer", "pause",
    "interrupt", "outage",
)  # fmt: skip


class Objects:
    """What there is. `watch` is told of every change before it is made."""

    def __init__(self, world: World, held: dict[str, bytes], watch: Any) -> None:
        self.world, self.watch = world, watch
        self.held = dict(held)
        self.modified_s = dict.fromkeys(held, world.now_s)

    def put(self, key: str, data: bytes) -> None:
        self.watch.write(self, key, data)
        self._keep(key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        if key in self.held:
            self.watch.events["create lost"] += key.startswith("manifest/")
            return False
        self.watch.create(self, key, data)
        self._keep(key, data)
        return True

    def _keep(self, key: str, data: bytes) -> None:
        self.held[key] = data
        self.modified_s[key] = self.world.now_s

    def get(self, key: str) -> bytes:
        try:
            return self.held[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def delete(self, key: str) -> None:
        self.watch.delete(self, key)
        if self.held.pop(key, None) is not None:
            del self.modified_s[key]

    def below(self, prefix: str) -> list[str]:
        return sorted([key for key in self.held if key.startswith(prefix)])


@functools.lru_cache(64)
def _file_of(data: bytes) -> Any:
    """A file that holds these bytes, for whoever only reads it."""
    file = tempfile.NamedTemporaryFile(prefix="pv3d-")  # noqa: SIM115 - it goes when it is let go of
    file.write(data)
    file.flush()
    return file


class Line:
    """What lies between an actor and the objects."""

    def __init__(self, world: World, objects: Objects, random: Random) -> None:
        self.world, self.objects, self.random = world, objects, random
        self.down_until_s = 0.0

    def call(
        self, op: str, key: str, act: Callable[[], T], error: Callable[[str, str, bool], Exception],
        again: Callable[[], T] | None = None,
    ) -> T:  # fmt: skip
        """Act once, never or twice, and answer or not. `error`: of op and key, that did not act or did."""
        world = self.world
        fault = world.me.process.faults.fault(world.me, op, key)
        if world.trace is not None:
            world.note(f"{op} {key}{f'   [{fault}]' if fault else ''}")
        if not fault and not self.down_until_s:
            world.call()
            answer = act()
            world.call(acted=True)
            return answer
        if fault == "crash before":
            world.crash()
        elif fault == "pause":
            world.pause(self.random.uniform(1, 40))
        elif fault == "slow":
            world.sleep(self.random.uniform(0, 20))
        elif fault == "interrupt":
            world.interrupt(world.me.process)
        elif fault == "outage":
            self.down_until_s = world.now_s + self.random.uniform(1, 400)
        world.call()
        if fault == "refused" or world.now_s < self.down_until_s:
            raise error(op, key, False)
        if fault == "late":
            if op in ACTS:
                world.after(self.random.uniform(0, 20), lambda: self._late(op, key, act))
            raise error(op, key, True)
        try:
            answer, no = act(), None
            if fault == "sent twice" and again is not None:
                world.call()
                answer = again()
        except (ClientError, FileNotFoundError) as said:     # an answer as well
            no = said
        if fault == "crash after":
            world.crash()
        if fault == "slow answer":
            world.sleep(self.random.uniform(0, 20))
        world.call()
        if fault == "lost":
            raise error(op, key, True)
        if no is not None:
            raise no
        return answer

    def _late(self, op: str, key: str, act: Callable[[], object]) -> None:
        self.world.note(f"{op} {key}   [that was late]")
        with contextlib.suppress(ClientError, FileNotFoundError):
            act()

    def sight(self, prefix: str) -> list[str]:
        """Keys as a listing sees them that takes a while: what comes or goes meanwhile is in it, or not."""
        before = self.objects.below(prefix)
        self.world.call()
        after = self.objects.below(prefix)
        if before == after:
            return after
        moved = sorted(set(before) ^ set(after))
        return sorted({*before, *after} - {key for key in moved if self.random.random() < 0.5})


class MemoryStorage(Storage):
    """As `FolderStorage`: what fails says so at once, and nothing is tried again."""

    root = "memory"

    def __init__(self, line: Line) -> None:
        self._line = line

    def _call(self, op: str, key: str, act: Callable[[], T]) -> T:
        return self._line.call(op, check_key(key), act, self._error)

    @staticmethod
    def _error(op: str, key: str, acted: bool) -> Exception:
        return StorageError(f"storage.root: cannot {op} {key} (simulated)")

    @property
    def _objects(self) -> Objects:
        return self._line.objects

    def read(self, key: str) -> bytes:
        return self._call("read", key, lambda: self._objects.get(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        data = self._call("read", key, lambda: self._objects.get(key))[start : start + length]
        if len(data) != length:
            raise EOFError(key)
        return data

    def write(self, key: str, data: bytes) -> None:
        self._call("write", key, lambda: self._objects.put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self._call("create", key, lambda: self._objects.put_new(key, data))

    def upload(self, key: str, path: Path) -> None:
        self.write(key, path.read_bytes())

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        yield Path(_file_of(self.read(key)).name)

    def list(self, prefix: str = "") -> Iterator[str]:
        base = f"{check_key(prefix)}/" if prefix else ""
        yield from self._call("list", prefix or ".", lambda: self._line.sight(base))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        held, times = self._objects.held, self._objects.modified_s
        for key in self.list(prefix):
            if key in held:
                yield Entry(key, len(held[key]), times[key])

    def unfinished(self) -> Iterator[tuple[Entry, Callable[[], None]]]:
        return iter(())

    def exists(self, key: str) -> bool:
        return self._call("exists", key, lambda: key in self._objects.held)

    def size(self, key: str) -> int:
        return len(self.read(key))

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._objects.delete(key))

    def check_writable(self) -> None:
        self.write(".writable", b"")
        self.delete(".writable")
