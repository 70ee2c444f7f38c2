"""One execution: processes of the real code on a simulated store, and what must be true in the end."""

from __future__ import annotations

import functools
import re
import tempfile
import traceback
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import simulated_work
from simulated_modules import now, running
from simulated_s3 import Client
from simulated_store import Line, MemoryStorage, Objects
from simulated_watch import LATEST, Watch
from simulated_world import Faults, Process, Turns, World

import infra.lease
import pipelines.gc
import pipelines.runner
from infra.lease import LeaseError
from infra.s3 import S3Storage
from infra.storage import Storage, StorageError
from pipelines.records import from_lines
from pipelines.segments import lines_of
from pipelines.workflow import Workflow, load
from stages.dataset import open_dataset

UNREACHABLE = {"refused", "lost", "late", "outage", "pause", "slow", "slow answer"}
COMMITTED = ("aligned/", "shards/", "manifest/", "dataset/")
HOST = "node"

_SETTLED = re.compile(r"ledger/.*\.json$")
_SECONDS = re.compile(rb'"seconds":[^,}]*')

_concluded: set[int] = set()                 # stores from which an undisturbed run was seen to end right


class Simulated(Workflow):
    """Opens the store of the execution."""

    def store(self) -> Storage:
        execution = now()
        assert isinstance(execution, Execution)
        return execution.store()


@functools.cache
def workflow(role: str, count: int = 3) -> Simulated:
    """One per role: two runs share no stage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "workflow.yaml")
        path.write_text(simulated_work.WORKFLOW.format(root=Path(folder, "store")))
        return Simulated(**vars(load(path, None, (f"source.count={count}",))))


@dataclass(frozen=True)
class Setting:
    """What an execution begins with."""

    s3: bool = False
    leases: bool = False
    apart: bool = False                      # processes on machines of their own
    start: Mapping[str, bytes] = field(default_factory=dict)
    page: int = 1000                         # keys of one answer of a listing


class Execution:
    """A world with one store."""

    def __init__(
        self, setting: Setting, turns: Turns, seed: int, right: Mapping[str, bytes], trace: bool = False
    ) -> None:
        self.setting, self.right = setting, right
        self.random = Random(seed)
        self.again = bool(setting.start)     # pids of runs that are over may be used again
        self.trace: list[str] | None = [] if trace else None
        self.world = World(turns, self.trace)
        self.watch = Watch(self.world, right)
        self.objects = Objects(self.world, dict(setting.start), self.watch)
        self.line = Line(self.world, self.objects, self.random)
        self.client = Client(self.line, setting.page)
        self.right_too: Mapping[str, bytes] = {}         # of a run over an older list
        self.hasty = False                   # a collection without a grace time is among the processes
        self.calm = False                    # the last run is under way

    @property
    def violations(self) -> list[str]:
        """None where a collection without a grace time met a run that had been silent."""
        return [] if self.hasty and self.watch.followed_alive else self.world.violations

    def store(self) -> Storage:
        s3 = self.setting.s3 and not self.calm
        return S3Storage("s3://simulated/run") if s3 else MemoryStorage(self.line)

    def add(self, name: str, body: Callable[[], Any], faults: Faults | None = None) -> Process:
        host = f"{HOST}-{name}" if self.setting.apart else HOST
        return self.world.process(name, body, host, faults)

    def add_run(self, name: str, faults: Faults | None = None, wait: bool = False, count: int = 3) -> Process:
        """`pv3d run --until WriteShards`, or without its lease."""

        def body() -> Any:
            mine = workflow(name, count)
            if not self.setting.leases:
                return pipelines.runner.prepare(mine, in_process=True)
            store = mine.store()
            with infra.lease.hold(store, "pv3d run", expires_s=mine.storage.lease_s, wait=wait):
                return pipelines.runner.prepare(mine, in_process=True)

        return self.add(name, body, faults)

    def add_gc(self, grace: str, faults: Faults | None = None, wait: bool = False) -> Process:
        """`pv3d gc`."""
        self.watch.collecting, self.hasty = True, grace == "0"
        return self.add("gc", lambda: pipelines.gc.gc(workflow("gc"), grace=grace, wait=wait), faults)

    def add_reader(self, times: int = 4) -> Process:
        """Opens the dataset again and again: it is there as a whole, or not at all."""

        def body() -> None:
            for _ in range(times):
                there = LATEST in self.objects.held
                try:
                    data = open_dataset(self.store())
                except ValueError as error:
                    if there or "no shards" not in str(error):
                        raise
                else:
                    for sample in data.samples:
                        assert data.record(sample) == {"clip": sample.clip_id}
                self.world.sleep(self.random.uniform(0, 5))

        return self.add("reader", body)

    def run(self) -> None:
        running.append(self)
        processes = {actor.process for actor in self.world.actors}
        mains = {process: process.actors[0] for process in processes}
        try:
            self.world.run()
        finally:
            running.pop()
        for process, actor in mains.items():
            self._judge(process, actor.error)

    def _judge(self, process: Process, error: BaseException | None) -> None:
        """What a process may end with: nothing else than what was done to it."""
        done = process.faults.done
        unreachable = bool(done & UNREACHABLE) or self.line.down_until_s > 0
        if error is None:
            process.outcome = "dead" if process.actors[0].unwound else "done"
        elif isinstance(error, LeaseError):
            process.outcome = "refused"
            if set(self.watch.owners.values()) <= {process} or f"(pid {process.pid})" in str(error):
                self.world.violation(f"{process} stands in its own way: {error}")
        elif isinstance(error, StorageError) and unreachable:
            process.outcome = "store out of reach"
        elif isinstance(error, KeyboardInterrupt) and "interrupt" in done:
            process.outcome = "interrupted"
        else:
            process.outcome = "error"
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.world.violation(f"{process}: {type(error).__name__} at {where}: {error}")

    # --- the end -----------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """One undisturbed run, and what must be true after it.

        From a store that differs in nothing but times from one where that was seen, it is not seen again.
        """
        self.world.settle()
        self.line.down_until_s = 0.0
        before = hash(self._state())
        if self.world.violations or before in _concluded or (self.hasty and self.watch.followed_alive):
            return
        self.watch.collecting = False
        final = self._alone(lambda: self.add_run("final", wait=True))
        if not self.violations and final.outcome != "done":
            self.world.violation(f"an undisturbed run ends as: {final.outcome}")
        if not self.violations:
            self._compare()
            self._states()
        if not self.violations:
            _concluded.add(before)

    def _state(self) -> Hashable:
        """What decides how the next run goes."""
        held, lease = self.objects.held, infra.lease.last_number(self.objects.held)
        over = f"lease/{lease:08d}.end.json" in held
        records = [
            (key.split("/")[1], _SECONDS.sub(b"", held[key].partition(b"\n")[2]))
            for key in sorted(held) if key.startswith("ledger/") and key.endswith(".jsonl")
        ]  # fmt: skip
        begun = tuple(key for key in self.setting.start if key.startswith("dataset/"))
        settled = tuple(item for item in sorted(held.items()) if _SETTLED.match(item[0]))
        committed = frozenset(key for key in held if key.startswith(COMMITTED))
        latest = held.get(LATEST)
        leases = (self.setting.leases, self.setting.apart, lease > 0, over)
        return leases, tuple(records), settled, committed, begun, latest

    def _alone(self, add: Callable[[], Process]) -> Process:
        self.world.turns, self.calm = Turns(), True
        process = add()
        self.run()
        return process

    def _compare(self) -> None:
        begun = {key: data for key, data in self.setting.start.items() if key.startswith(COMMITTED)}
        wanted = {**begun, **{key: data for key, data in self.right.items() if key.startswith(COMMITTED)}}
        found = {key: data for key, data in self.objects.held.items() if key.startswith(COMMITTED)}
        for key in sorted(wanted.keys() | found.keys()):
            if key not in found:
                self.world.violation(f"{key} is missing in the end")
            elif key not in wanted and self.right_too.get(key) != found[key]:
                self.world.violation(f"{key} is left over in the end")
            elif key in self.right and found[key] != self.right[key]:
                self.world.violation(f"{key} differs in the end")

    def _states(self) -> None:
        """Every listed unit is in exactly one state."""
        found: dict[str, dict[str, str]] = {stage: {} for stage in simulated_work.STATES}
        for key in sorted(self.objects.held):
            if key.startswith("ledger/") and key.endswith(".jsonl"):
                states = found.setdefault(key.split("/")[1], {})
                lines = lines_of(self.objects.held[key], key)
                for record in from_lines(lines, [key] * len(lines)):
                    states[record.unit] = ": ".join(filter(None, (record.state, record.reason)))
        if found != simulated_work.STATES:
            self.world.violation(f"{found} instead of {simulated_work.STATES}")
