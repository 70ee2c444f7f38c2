"""Manners towards the servers we download from: one token bucket and circuit breaker per egress address.

A server sees addresses, not workers. All workers that leave through one address ask the same `Egress`
before each request; when one of them is told to slow down, all of them pause. With Ray the `Egress` is a
named actor, otherwise an object of this process.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

PROBE_S = 300.0                  # how long the one request that tests a closed road may take
ACTOR_NAMESPACE = "pv3d"


class CircuitOpenError(Exception):
    """The address has to pause for longer than the caller wants to wait. `wait_s` says how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"asked to slow down; the next request may go in {wait_s:.0f} s")
        self.wait_s = wait_s


class Gate(Protocol):
    """What a worker needs of an `Egress`, near or far."""

    def ask(self) -> float: ...
    def throttled(self, pause_s: float | None = None) -> float: ...
    def succeeded(self) -> None: ...


class Egress:
    """Token bucket and circuit breaker of one address. Safe for threads.

    `requests_per_minute`: how many may start, in the long run (0: no limit); `burst`: how many may start at
    once. The first throttling closes the road for `pause_s`, each further one for twice as long, up to
    `longest_pause_s`; after the pause one request goes ahead, and all others wait for what it reports.
    """

    def __init__(
        self,
        requests_per_minute: float = 30.0,
        burst: int = 1,
        pause_s: float = 60.0,
        longest_pause_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._filled_at = clock()
        self._open_until: float | None = None        # None: the road is free
        self._probe_until = 0.0                      # a probe is under way until then
        self._throttlings = 0                        # since the last success
        self.configure(requests_per_minute, burst, pause_s, longest_pause_s)

    def configure(
        self, requests_per_minute: float, burst: int, pause_s: float, longest_pause_s: float
    ) -> None:
        """Change the limits; tokens and a pause that is under way stay. Raises ValueError."""
        for name, value in [("requests_per_minute", requests_per_minute), ("pause_s", pause_s)]:
            if value < 0:
                raise ValueError(f"{name}: {value} is negative; give 0 or more")
        if burst < 1:
            raise ValueError(f"burst: {burst} lets nothing through; give 1 or more")
        with self._lock:
            self._per_s, self._burst = requests_per_minute / 60.0, burst
            self._pause_s, self._longest_s = pause_s, max(pause_s, longest_pause_s)

    def ask(self) -> float:
        """0.0: go, a token is taken. Otherwise seconds after which to ask again."""
        with self._lock:
            now = self._clock()
            if self._open_until is not None:
                if now < self._open_until:
                    return self._open_until - now
                if now < self._probe_until:
                    return min(self._probe_until - now, 5.0)     # the probe may report any moment
            wait = self._take(now)
            if wait == 0.0 and self._open_until is not None:
                self._probe_until = now + PROBE_S
            return wait

    def _take(self, now: float) -> float:
        if self._per_s == 0.0:
            return 0.0
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._tokens >= 1.0 - 1e-9:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s

    def throttled(self, pause_s: float | None = None) -> float:
        """A server said slow down: pause everybody, for `pause_s` at least, as far as the longest pause goes.

        Returns seconds until the next request.
        Answers that arrive while the road is closed are of requests that left before: they count once.
        """
        with self._lock:
            now = self._clock()
            if self._open_until is None or now >= self._open_until:
                self._throttlings += 1
                pause = min(self._pause_s * 2.0 ** (self._throttlings - 1), self._longest_s)
                self._open_until, self._probe_until = now + pause, 0.0
            wish = min(pause_s or 0.0, self._longest_s)          # one odd server must not stop us for days
            self._open_until = max(self._open_until, now + wish)
            return self._open_until - now

    def succeeded(self) -> None:
        """A request went well. It frees the road, unless it left before the pause began."""
        with self._lock:
            now = self._clock()
            if self._open_until is None or now >= self._open_until:
                self._open_until, self._probe_until, self._throttlings = None, 0.0, 0

    def state(self) -> dict[str, float]:
        """Seconds of pause left and throttlings in a row, for reports."""
        with self._lock:
            left = max(0.0, self._open_until - self._clock()) if self._open_until is not None else 0.0
            return {"pause_s": left, "throttlings": float(self._throttlings)}


def wait_for(
    gate: Gate,
    longest_s: float,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> float:
    """Sleep until `gate` lets one request go; seconds slept.

    Raises CircuitOpenError instead of sleeping more than `longest_s`.
    """
    slept = 0.0
    while (wait := gate.ask()) > 0.0:
        # Workers that sleep equally long would come back all at once.
        wait = wait * (1.0 + 0.1 * jitter()) + 0.001
        if slept + wait > longest_s:
            raise CircuitOpenError(wait)
        sleep(wait)
        slept += wait
    return slept


_local: dict[str, Egress] = {}
_local_lock = threading.Lock()


class _Actor:
    """A `Gate` that asks the named actor, and finds it again when it was lost."""

    def __init__(self, name: str, limits: dict[str, Any]) -> None:
        self._name, self._limits = name, limits
        self._handle: Any = None
        self._call("configure", **limits)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError

        for last in (False, True):
            if self._handle is None:
                # Detached, so that it outlives the worker that came first. It costs no CPU.
                named = {"name": self._name, "namespace": ACTOR_NAMESPACE, "get_if_exists": True}
                actor = ray.remote(Egress).options(**named, lifetime="detached", num_cpus=0)
                self._handle = actor.remote(**self._limits)
            try:
                return ray.get(getattr(self._handle, method).remote(*args, **kwargs))
            except RayActorError:
                self._handle = None
                if last:
                    raise
        return None

    def ask(self) -> float:
        return float(self._call("ask"))

    def throttled(self, pause_s: float | None = None) -> float:
        return float(self._call("throttled", pause_s))

    def succeeded(self) -> None:
        self._call("succeeded")


def connect(
    address: str, requests_per_minute: float, burst: int, pause_s: float, longest_pause_s: float
) -> Gate:
    """The `Egress` of `address`, made when it is the first use: one per Ray cluster, else one per process.

    `address` is any short name, such as that of a proxy. Limits of the last caller hold.
    """
    limits: dict[str, Any] = {
        "requests_per_minute": requests_per_minute, "burst": burst,
        "pause_s": pause_s, "longest_pause_s": longest_pause_s,
    }
    name = "egress-" + re.sub(r"[^A-Za-z0-9_.-]", "-", address)
    if _ray_runs():
        return _Actor(name, limits)
    with _local_lock:
        if name not in _local:
            _local[name] = Egress(**limits)
        found = _local[name]
    found.configure(**limits)
    return found


def _ray_runs() -> bool:
    # Whoever runs under Ray has imported it; importing it here would cost seconds without it.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
