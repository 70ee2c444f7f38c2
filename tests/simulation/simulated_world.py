"""Processes and threads that take turns, a clock that only they move, and faults: all from one seed.

An actor is a thread of a simulated process. It runs on a thread of this process, but only while it holds the
baton; at every call of the store and at every sleep it may have to hand it on. So a seed decides everything.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Any

MOST_CALLS = 20_000                          # of one execution; a run that comes to no end is a violation


class Unwind(BaseException):
    """Thrown into an actor that has to end: its process is dead, or the execution is over."""


class Faults:
    """What goes wrong in a process: here nothing."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def fault(self, actor: Actor, op: str, key: str) -> str:
        """What happens to a call, "" for nothing; see `simulated_store`."""
        return ""


class Turns:
    """Who is next, and how time passes: here whoever is at it goes on."""

    acted = False                            # whether the moment is one after a call has acted

    def choose(self, current: Actor | None, ready: list[Actor]) -> Actor:
        return current if current in ready else ready[0]

    def seconds(self) -> float:
        """How long half a call takes."""
        return 0.02


class Process:
    """What dies as a whole. `host`: where its pid can be looked up."""

    def __init__(self, name: str, number: int, host: str) -> None:
        self.name, self.pid, self.host = name, 1000 + number, host
        self.alive = True
        self.interrupted = False             # a signal that its main thread has still to take
        self.actors: list[Actor] = []
        self.faults = Faults()
        self.outcome = ""

    def __repr__(self) -> str:
        return self.name


class Actor:
    """A thread of a process."""

    def __init__(self, process: Process, name: str, body: Callable[[], Any]) -> None:
        self.process, self.name, self.body = process, name, body
        self.wake_s = 0.0
        self.over = False
        self.unwound = False                 # it was not its own doing that it ended
        self.error: BaseException | None = None
        self.waiters: list[Actor] = []
        self.thread: _Thread | None = None
        process.actors.append(self)

    @property
    def main(self) -> bool:
        return self.process.actors[0] is self


class _Thread(threading.Thread):
    """Kept from one execution to the next: to start one takes longer than to simulate some calls."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="simulated")
        self.baton = threading.Lock()
        self.baton.acquire()
        self.job: Callable[[], None] = lambda: None
        self.start()

    def run(self) -> None:
        while True:
            self.baton.acquire()
            self.job()


_threads: list[_Thread] = []


class World:
    """One execution."""

    def __init__(self, turns: Turns, trace: list[str] | None = None) -> None:
        self.turns = turns
        self.now_s = 1_000_000.0
        self.actors: list[Actor] = []
        self.processes: dict[int, Process] = {}          # by pid, also those that ended
        self.current: Actor | None = None
        self.calls = 0
        self.trace = trace
        self.violations: list[str] = []
        self.over = False
        self.late: list[tuple[float, int, Callable[[], None]]] = []  # requests that nobody waits for
        self._numbers = itertools.count()
        self._pids = itertools.count()
        self._done = threading.Lock()
        self._done.acquire()

    # --- what scenarios use ------------------------------------------------------------------------------

    def process(self, name: str, body: Callable[[], Any], host: str, faults: Faults | None = None) -> Process:
        process = Process(name, next(self._pids), host)
        process.faults = faults or Faults()
        self.processes[process.pid] = process
        self.start(process, "main", body)
        return process

    def start(self, process: Process, name: str, body: Callable[[], Any]) -> Actor:
        actor = Actor(process, name, body)
        actor.wake_s = self.now_s
        actor.thread = _threads.pop() if _threads else _Thread()
        actor.thread.job = lambda: self._perform(actor)
        self.actors.append(actor)
        return actor

    def run(self) -> None:
        """Until every actor has ended. Requests that are late may still be under way: see `settle`."""
        self.current = self._next(None)
        assert self.current.thread is not None
        self.current.thread.baton.release()
        self._done.acquire()

    def settle(self) -> None:
        """Let the requests act that nobody waits for any more."""
        while self.late:
            self.now_s = max(self.now_s, self.late[0][0])
            heapq.heappop(self.late)[2]()

    def violation(self, text: str) -> None:
        self.violations.append(text)
        self.note(f"VIOLATION {text}")
        self.over = True

    def note(self, text: str) -> None:
        if self.trace is not None:
            who = "" if self.current is None else f"{self.current.process.name}/{self.current.name}"
            self.trace.append(f"{self.now_s - 1e6:9.2f} s  {who:<12} {text}")

    # --- what actors use ---------------------------------------------------------------------------------

    @property
    def me(self) -> Actor:
        assert self.current is not None, "called from outside of an actor"
        return self.current

    def call(self, acted: bool = False) -> None:
        """The moment before or after a call acts: time passes, and others may come between."""
        self.turns.acted = acted
        self.calls += 1
        if self.calls > MOST_CALLS and not self.over:
            self.violation(f"no end after {MOST_CALLS} calls")
        self.now_s += self.turns.seconds()
        while self.late and self.late[0][0] <= self.now_s:
            heapq.heappop(self.late)[2]()
        self.point()

    def point(self) -> None:
        """Hand the baton on, perhaps, and go on when it comes back."""
        me = self.current
        assert me is not None
        chosen = self._next(me)
        if chosen is not me:
            self._hand(me, chosen)
        if self.over or not me.process.alive or me.process.interrupted:
            self._check(me)

    def sleep(self, seconds: float) -> None:
        self.me.wake_s = self.now_s + max(seconds, 0.0)
        self.point()

    def pause(self, seconds: float) -> None:
        """All threads of the process stand still."""
        self.note(f"stands still for {seconds:.0f} s")
        for actor in self.me.process.actors:
            actor.wake_s = max(actor.wake_s, self.now_s + seconds)
        self.point()

    def crash(self) -> None:
        """The process of this actor is gone, between two of its instructions."""
        self.note("dies")
        process = self.me.process
        process.alive = False
        for actor in process.actors:
            actor.wake_s = self.now_s
        raise Unwind

    def interrupt(self, process: Process) -> None:
        """A signal for its main thread, which wakes it."""
        self.note(f"interrupts {process.name}")
        process.interrupted = True
        process.actors[0].wake_s = self.now_s

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.late, (self.now_s + seconds, next(self._numbers), act))

    # --- turns -------------------------------------------------------------------------------------------

    def _next(self, current: Actor | None) -> Actor:
        """Who goes on. The actors that ended are no longer among `actors`."""
        if self.over:                        # everybody unwinds, one after the other
            return current if current is not None and not current.over else self.actors[0]
        now_s = self.now_s
        if len(self.actors) == 1:
            alone = self.actors[0]
            self.now_s = max(now_s, alone.wake_s)
            return alone
        ready = [actor for actor in self.actors if actor.wake_s <= now_s]
        if not ready:
            now_s = self.now_s = min(actor.wake_s for actor in self.actors)
            ready = [actor for actor in self.actors if actor.wake_s <= now_s]
        return ready[0] if len(ready) == 1 else self.turns.choose(current, ready)

    def _hand(self, me: Actor, other: Actor) -> None:
        assert me.thread is not None
        assert other.thread is not None
        self.current = other
        other.thread.baton.release()
        me.thread.baton.acquire()

    def _check(self, me: Actor) -> None:
        if self.over or not me.process.alive:
            raise Unwind
        if me.main and me.process.interrupted:
            me.process.interrupted = False
            raise KeyboardInterrupt

    def _perform(self, actor: Actor) -> None:
        """On the thread of the actor."""
        try:
            self._check(actor)
            actor.body()
        except Unwind:
            actor.unwound = True
        except BaseException as error:  # noqa: BLE001 - judged by the scenario, whatever it is
            actor.error = error
        actor.over = True
        self.actors.remove(actor)
        for waiter in actor.waiters:
            waiter.wake_s = min(waiter.wake_s, self.now_s)
        if actor.main:                       # its daemons end with it
            for other in actor.process.actors:
                other.wake_s = self.now_s
            actor.process.alive = False
        thread, actor.thread = actor.thread, None
        assert thread is not None
        _threads.append(thread)
        if self.actors:
            self.current = self._next(None)
            assert self.current.thread is not None
            self.current.thread.baton.release()
        else:
            self.current = None
            self._done.release()
