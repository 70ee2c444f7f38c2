"""One run at a time per store, by numbered leases. It saves work; what is right rests on create-only commits.

    lease/<n>.json          create-only: who holds the store since when
    lease/<n>.beat.json     rewritten every few seconds for as long as the run lives
    lease/<n>.end.json      the run has ended: whoever comes next creates n + 1

No two clocks are compared. Who finds a lease that has not ended watches its beat, by a clock of his own: when
it changes the run lives, and when it does not for as long as the lease allows, the next lease is created. A
run of this machine whose process is gone is followed at once. A run that finds itself followed stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from infra import interrupts
from infra.json_values import is_number, parsed_object
from infra.storage import Storage, StorageError
from infra.words import printable

log = logging.getLogger(__name__)

FOLDER = "lease"
EXPIRES_S = 45.0                             # longer than a store is usually out of reach
LEAST_S, MOST_S = 0.5, 86400.0               # that a lease of somebody else can last
MOST_BEAT_S = 5.0                            # between beats; for so long a second run may not know

_held: set[str] = set()                      # runs of this process that have a lease

_NUMBER = re.compile(rf"{FOLDER}/(\d+)\.")


class LeaseError(StorageError):
    """Another run has the store."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, as `lease/<n>.json` says."""

    what: str = "a run"                      # the command
    run: str = ""
    host: str = "an unknown host"
    pid: int = 0
    place: str = ""                          # machine since its start, and pid namespace; "" for unknown
    process: str = ""                        # when that pid was started: a pid is used again
    started: str = ""                        # by the clock of the host
    expires_s: float = EXPIRES_S

    def __str__(self) -> str:
        what, host, started = (printable(text, 80) for text in (self.what, self.host, self.started))
        return f"{what} on {host} (pid {self.pid}) since {started}"

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, where processes can be looked up from here."""
        return bool(self.place and self.process) and self.place == _place()

    @property
    def alive(self) -> bool:
        """Of one that is here: whether its process is, and has not given it back in vain."""
        return _process(self.pid) == self.process and (self.pid != os.getpid() or self.run in _held)


class Lease:
    """A lease that is held; see `hold`, which keeps it alive by a thread."""

    def __init__(self, store: Storage, number: int, owner: Owner) -> None:
        self.store, self.number, self.owner = store, number, owner
        self.lost_to: Owner | None = None    # who came next while we were held up
        self._over = threading.Event()
        self._beats = 0
        self._main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    def start(self) -> None:
        """Beat from now on, until `release`."""
        self._thread.start()

    def beat(self) -> None:
        """Show that the run lives, and look whether another one has followed it."""
        self._beats += 1
        beat = {"count": self._beats, "at": _now()}
        self.store.write(_key(self.number, "beat"), json.dumps(beat).encode())
        if self.store.exists(_key(self.number + 1)):
            self.lost_to = _owner(self.store, self.number + 1)

    def check(self) -> None:
        """Raise LeaseError when another run has followed this one."""
        if self.lost_to is not None:
            raise LeaseError(
                f"storage.root: {self.store.root} was taken over by {self.lost_to}, which saw no sign of "
                f"this run for {self.owner.expires_s:g} s; what is done is kept"
            )

    def release(self) -> None:
        """End it. A store that cannot be reached is no error: the next run waits a little."""
        self._over.set()
        _held.discard(self.owner.run)
        if self._thread.is_alive():
            self._thread.join(timeout=MOST_BEAT_S)
        try:
            if self._thread.is_alive():      # in a call that the store does not answer
                raise StorageError("the store gives no answer")
            self.store.write(_key(self.number, "end"), json.dumps({"at": _now()}).encode())
        except (StorageError, OSError) as error:
            wait_s = self.owner.expires_s
            log.warning("the lease cannot be ended (%s); the next run waits %g s", error, wait_s)

    def _live(self) -> None:
        while not self._over.wait(min(MOST_BEAT_S, self.owner.expires_s / 6)):
            try:
                self.beat()
            except (StorageError, OSError) as error:
                log.warning("the lease cannot be renewed (%s); trying again", error)
            if self.lost_to is not None:
                self._interrupt()
                return

    def _interrupt(self) -> None:
        """As Ctrl-C does; `hold` turns it into what `check` says."""
        if self._main and not self._over.is_set():
            interrupts.stop_main()


@contextlib.contextmanager
def hold(
    store: Storage, what: str, *, expires_s: float = EXPIRES_S, wait: bool = False
) -> Iterator[Lease]:
    """Hold the store while the context lasts. `what`: the command, for whoever comes second.

    Raises LeaseError when another run has it, unless `wait`, and when another one took it over meanwhile.
    """
    with interrupts.caught():
        lease = acquire(store, what, expires_s=expires_s, wait=wait)
        try:
            lease.start()
            yield lease
        except KeyboardInterrupt:
            lease.check()
            raise
        finally:
            lease.release()


def acquire(store: Storage, what: str, *, expires_s: float = EXPIRES_S, wait: bool = False) -> Lease:
    """As `hold`, but for the thread: the caller beats, and releases it."""
    pid = os.getpid()
    me = Owner(
        what, os.urandom(4).hex(), socket.gethostname(), pid, _place(), _process(pid), _now(), expires_s
    )
    with contextlib.ExitStack() as undone:
        _held.add(me.run)
        undone.callback(_held.discard, me.run)
        while True:
            number = last_number(store.list(FOLDER))
            if number and not _over(store, number, wait):
                continue                     # yet another run was quicker
            if store.create(_key(number + 1), json.dumps(asdict(me)).encode()):
                undone.pop_all()
                return Lease(store, number + 1, me)


def last_number(keys: Iterator[str] | Collection[str]) -> int:
    """The highest number of a lease among keys, 0 for none."""
    found = (_NUMBER.match(key) for key in keys)
    return max((int(match[1]) for match in found if match), default=0)


def number_of(key: str) -> int:
    """The number of the lease that an object belongs to, 0 for another object."""
    return last_number([key])


def _over(store: Storage, number: int, wait: bool) -> bool:
    """Wait until a lease is over: True; False when it was followed meanwhile. Raises LeaseError."""
    owner = _owner(store, number)
    seen: bytes | None = None
    since = time.monotonic()
    told = False
    while True:
        keys = set(store.list(FOLDER))
        if last_number(keys) != number:
            return False
        if _key(number, "end") in keys:
            return True
        if owner.here and not owner.alive:
            log.warning("%s is gone without a word; taking over", owner)
            return True
        asked = time.monotonic()             # an answer may be under way for longer than a lease lasts
        beat = _read(store, _key(number, "beat"))
        lives = owner.here or (seen is not None and beat != seen)
        if lives and not wait:
            raise LeaseError(
                f"storage.root: {store.root} is in use by {owner}; wait for its end (--wait), or stop it"
            )
        if lives or seen is None:
            since = time.monotonic()
        elif asked - since > owner.expires_s:
            log.warning("no sign of %s for %g s; taking over", owner, owner.expires_s)
            return True
        seen = beat
        if not told:
            what = "waiting for its end" if wait else f"looking for at most {owner.expires_s:g} s if it lives"
            log.info("%s is in use by %s; %s", store.root, owner, what)
            told = True
        time.sleep(min(1.0, owner.expires_s / 20))


def owner_of(data: bytes) -> Owner:
    """What the object of a lease says. A field of a wrong type is as one that is not there: another version
    may have written it, and its beat tells enough."""
    try:
        values = parsed_object(data)
    except ValueError:
        return Owner()
    found = {f.name: values[f.name] for f in fields(Owner) if isinstance(values.get(f.name), str)}
    found = {name: value for name, value in found.items() if name not in ("pid", "expires_s")}
    pid, expires_s = values.get("pid"), values.get("expires_s")
    if isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 31:
        found["pid"] = pid
    if is_number(expires_s):
        found["expires_s"] = min(max(float(expires_s), LEAST_S), MOST_S)  # type: ignore[arg-type]
    return Owner(**found)


def _owner(store: Storage, number: int) -> Owner:
    return owner_of(_read(store, _key(number)))


def _read(store: Storage, key: str) -> bytes:
    try:
        return store.read(key)
    except FileNotFoundError:
        return b""


def _key(number: int, part: str = "") -> str:
    return f"{FOLDER}/{number:08d}.{part}.json" if part else f"{FOLDER}/{number:08d}.json"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _place() -> str:
    """Where a pid means the same process: this start of this kernel and this pid namespace. "" off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """When a process was started, in ticks of the kernel; "" for none, and for one that only waits to be
    buried."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]  # proc(5): state is field 3, starttime 22
