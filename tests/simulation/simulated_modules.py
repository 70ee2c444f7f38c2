"""What stands in for modules of the standard library, and for boto3, in the modules that are simulated."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from simulated_s3 import Client
from simulated_scratch import lender
from simulated_world import Actor, World

import infra.lease
import infra.s3
import infra.s3_errors
import infra.scratch
import pipelines.blocks
import pipelines.compact
import pipelines.gc
import pipelines.index
import pipelines.ledger
import pipelines.runner
import pipelines.spool
import stages.shards
from infra.storage import check_key
from pipelines.compact import compact
from pipelines.ledger import Ledger
from pipelines.progress import Progress
from stages.provenance import config_hash

SMALL = 256                                  # bytes of a filter that is made for millions of names


class Running(Protocol):
    """The execution that goes on now."""

    world: World
    client: Client
    random: Random
    again: bool                              # runs were there before it


running: list[Running] = []
_hashes: dict[int, tuple[Sequence[Any], str]] = {}       # of histories, by their identity


def now() -> Running:
    return running[-1]


class Clock:
    """`time`, of the world that is simulated now."""

    def monotonic(self) -> float:
        world = now().world
        return world.now_s + 1000.0 * world.me.process.pid       # no two clocks agree

    def time(self) -> float:
        """Hours apart from machine to machine, and backwards from a run to the next."""
        return now().world.now_s - 3600.0 * (now().world.me.process.pid % 4)

    def perf_counter(self) -> float:
        return now().world.now_s

    def sleep(self, seconds: float) -> None:
        now().world.sleep(seconds)


class Threading:
    """`threading`, as far as a lease needs it."""

    def current_thread(self) -> Actor:
        return now().world.me

    def main_thread(self) -> Actor:
        return now().world.me.process.actors[0]

    def Event(self) -> Event:  # noqa: N802 - as it is called there
        return Event(now().world)

    def Thread(self, *, target: Callable[[], Any], name: str, daemon: bool) -> Thread:  # noqa: N802
        return Thread(now().world, target, name)


class Event:
    def __init__(self, world: World) -> None:
        self._world, self._set = world, False
        self._waiters: list[Actor] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for actor in self._waiters:
            actor.wake_s = min(actor.wake_s, self._world.now_s)

    def wait(self, timeout: float) -> bool:
        self._waiters.append(self._world.me)
        if not self._set:
            self._world.sleep(timeout)
        self._waiters.remove(self._world.me)
        return self._set


class Thread:
    def __init__(self, world: World, target: Callable[[], Any], name: str) -> None:
        self._world, self._target, self._name = world, target, name
        self._actor: Actor | None = None

    def start(self) -> None:
        self._actor = self._world.start(self._world.me.process, self._name, self._target)

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.over

    def join(self, timeout: float) -> None:
        if self._actor is not None and not self._actor.over:
            self._actor.waiters.append(self._world.me)
            self._world.sleep(timeout)


class _Inline:
    """`ThreadPoolExecutor`: what it does at once is done one after the other, between which others come."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def map(self, function: Callable[..., Any], *columns: Any) -> Iterator[Any]:
        return map(function, *columns)

    def submit(self, function: Callable[..., Any], *values: Any) -> Future[Any]:
        """A process that dies, or is interrupted, goes no further than this."""
        job: Future[Any] = Future()
        try:
            job.set_result(function(*values))
        except Exception as error:  # noqa: BLE001 - kept for whoever asks, as a pool does
            job.set_exception(error)
        return job


def _process(pid: int) -> str:
    """As `infra.lease._process`: when it was started, "" for one that is gone."""
    process = now().world.processes.get(pid)
    return f"{now().again}" if process is not None and process.alive else ""


def _config_hash(history: Sequence[Any]) -> str:
    """As `stages.provenance.config_hash`, once per workflow."""
    if id(history) not in _hashes:
        _hashes[id(history)] = history, config_hash(history)
    return _hashes[id(history)][1]


def _compact(ledger: Ledger, stages: Iterable[str], least: int = 2) -> int:
    return compact(ledger, stages, least)


def _quick_folder() -> str | None:
    """Where small files cost no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The modules of the product get their clock, threads, names and server from the simulation."""
    clock, threading = Clock(), Threading()

    def urandom(size: int) -> bytes:
        return now().random.randbytes(size)

    def pid() -> int:
        return now().world.me.process.pid

    machine = SimpleNamespace(urandom=urandom, getpid=pid)
    dates = SimpleNamespace(now=lambda zone: datetime.fromtimestamp(clock.time(), zone))
    session = SimpleNamespace(client=lambda *_, **__: now().client)
    jitter = SimpleNamespace(uniform=lambda low, high: now().random.uniform(low, high))
    console: Any = SimpleNamespace(is_terminal=False)
    dull = functools.partial(Progress, console=console)
    fakes: list[tuple[Any, str, Any]] = [
        (infra.lease, "time", clock), (infra.lease, "threading", threading), (infra.lease, "os", machine),
        (infra.lease, "_process", _process), (infra.lease, "_place", lambda: now().world.me.process.host),
        (infra.lease, "_now", lambda: f"{now().world.now_s:.0f}"),
        (infra.lease, "interrupts", SimpleNamespace(
            caught=contextlib.nullcontext, stop_main=lambda: now().world.interrupt(now().world.me.process))),
        (infra.s3, "boto3", SimpleNamespace(Session=lambda **_: session)),
        (infra.s3, "Config", lambda **_: None),
        (infra.s3, "check_key", functools.cache(check_key)),
        (infra.s3_errors, "time", clock),
        (infra.s3_errors, "_JITTER", jitter),
        (pipelines.ledger, "time", clock), (pipelines.ledger, "os", machine),
        (pipelines.ledger, "datetime", dates), (pipelines.ledger, "ThreadPoolExecutor", _Inline),
        (pipelines.blocks, "ThreadPoolExecutor", _Inline),
        (pipelines.runner, "Progress", dull), (pipelines.runner, "settled", contextlib.nullcontext),
        (pipelines.compact, "LEAST", 2), (pipelines.runner, "MANY", 3),      # else a small run merges nothing
        (pipelines.runner, "compact", _compact),
        *((module, "temporary_database", lender()) for module in
          (infra.scratch, pipelines.index, pipelines.spool)),
        (infra.scratch, "_FILTER_BYTES", SMALL), (infra.scratch, "_FILTER_MASK", 8 * SMALL - 1),
        (pipelines.gc, "time", clock), (stages.shards, "config_hash", _config_hash),
    ]  # fmt: skip
    level, threshold = logging.root.manager.disable, gc.get_threshold()
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()                              # of what is there already nothing goes
    gc.set_threshold(50_000, 50, 1000)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", _quick_folder())
            for module, name, fake in fakes:
                if hasattr(module, name):
                    patch.setattr(module, name, fake)
            yield
    finally:
        logging.disable(level)
        gc.set_threshold(*threshold)
        gc.unfreeze()
