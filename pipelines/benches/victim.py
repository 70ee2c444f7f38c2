"""A command that is there to be killed, of whole or in parts; used by the bench `chaos`.

Its processes are known by their session, which it has for itself, and never by a name.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from infra.storage import FolderStorage
from stages.dataset import LATEST

COMMAND = "from pipelines.cli import main; main()"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")     # of Ray itself
IDLE = "ray::IDLE"
WATCH_S = 0.001                  # between looks at a store
LOOK_S = 0.2                     # between looks at the processes


class Victim:
    """One command, with a session of its own, by which its processes are known."""

    def __init__(self, folder: Path, name: str, workflow: Path, in_process: bool) -> None:
        self.store = FolderStorage(folder / name)
        self.driver_killed = self.worker_killed = False
        self._open_at_start = self.open_shards()
        self._names_at_start = self._names()
        self._committed_at_start = set(self.store.list("manifest"))
        self._log = folder / f"{name}.log"
        words = [sys.executable, "-c", COMMAND, "run", str(workflow), "--until", "WriteShards"]
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._began = time.monotonic()
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [*words, *(["--in-process"] if in_process else [])], stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
            )  # fmt: skip
        self._known: dict[int, str] = {}
        self._looked = 0.0

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self._began

    def wait(self, timeout_s: float = 3600.0) -> int:
        """Its status; it is ended when it takes longer."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with self._log.open("a") as log:
                log.write(f"\nno end after {timeout_s:g} s\n")
            self.end()
            return self.process.wait()

    def ended(self, at: float = 0.0, within: float = 0.0) -> bool:
        """Whether it has ended `at` seconds after its start, or `within` seconds from now."""
        try:
            self.process.wait(max(at - self.seconds, within))
        except subprocess.TimeoutExpired:
            return False
        return True

    def tail(self) -> str:
        """The last line it said."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing said"

    # --- its processes -----------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """pid -> command line of every process of the session."""
        self.process.poll()
        return session(self.process.pid)

    def look(self) -> dict[int, str]:
        """`processes`, as they were a moment ago."""
        if time.monotonic() - self._looked > LOOK_S:
            self._known = self.processes()
            self._looked = time.monotonic()
        return self._known

    def workers(self) -> list[int]:
        """Those that do something, or all when none does."""
        found = {p: line for p, line in self.look().items() if line.startswith("ray::") and not _agent(line)}
        return sorted(pid for pid, line in found.items() if not line.startswith(IDLE)) or sorted(found)

    def kill(self, kind: str, chance: random.Random) -> bool:
        """Kill a part of it at once; False when it is gone by itself."""
        driver, workers = self.process.pid, self.workers()
        if self.process.poll() is not None or (kind == "worker" and not workers):
            return False
        if kind == "worker":
            self.worker_killed = True
            return self._kill(chance.choice(workers))
        self.driver_killed = True
        if kind == "group":
            os.killpg(driver, signal.SIGKILL)
        elif kind == "driver":
            self._kill(driver)
        else:                                # what writes comes first: it would go on without the others
            for pid in [*workers, driver, *(self.look().keys() - {driver, *workers})]:
                self._kill(pid)
            self.end()
        return True

    def _kill(self, pid: int) -> bool:
        try:
            if os.getsid(pid) == self.process.pid:           # a number that was free is given again
                os.kill(pid, signal.SIGKILL)
                return True
        except ProcessLookupError:
            pass
        return False

    def end(self) -> None:
        """Kill all that is left of it."""
        while left := self.processes():
            for pid in left:
                self._kill(pid)
            time.sleep(0.01)

    # --- its commits -------------------------------------------------------------------------------------

    def open_shards(self) -> set[tuple[str, int]]:
        """(name, time of change) of every file of a shard without a manifest, unfinished ones too."""
        committed = {Path(key).stem for key in self.store.list("manifest")}
        found = set()
        for file in self._shards():
            with contextlib.suppress(FileNotFoundError):     # it has just got its name
                if file.name.partition(".")[0] not in committed:
                    found.add((file.name, file.stat().st_mtime_ns))
        return found

    def begun(self) -> set[str]:
        """Tars that this run has written, or writes."""
        return self._names() - self._names_at_start

    def _names(self) -> set[str]:
        return {file.name for file in self._shards() if not file.name.endswith(".json")}

    def _shards(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(Path(self.store.root, "shards")) as files:
                yield from files
        except FileNotFoundError:
            return

    def left_inside_commit(self, manifests: set[str], at_kill: set[tuple[str, int]]) -> bool:
        """Whether this run has begun a shard, or the version of all `manifests`, and not committed it.

        `at_kill`: the open shards when it was killed. What a worker that lives has in hand is none of them,
        or is committed by now.
        """
        if (self.open_shards() & at_kill) - self._open_at_start:
            return True
        done = self.driver_killed and set(self.store.list("manifest")) >= manifests
        return done and not self._committed_at_start >= manifests and not self.store.exists(LATEST)


def session(number: int) -> dict[int, str]:
    """pid -> command line of the processes of a session, those apart that only wait to be buried."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == number and fields[0] != "Z":        # proc(5): session is field 6, state 3
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = line.strip()
        except OSError:                      # it has just ended
            continue
    return found


def _agent(line: str) -> bool:
    return line.startswith(AGENTS)
