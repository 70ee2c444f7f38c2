"""Progress per stage on stderr: bars on a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from pipelines.rates import Ahead, Rate, how_far, times_left, units_ahead

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0
_LAST = 5                                    # failures that are kept to be told


@dataclass
class _Count:
    known: int = 0                           # units that need this stage, as far as seen
    done: int = 0
    sent: int = 0                            # what went on to the next stage
    states: Counter[str] = field(default_factory=Counter)
    rate: Rate | None = None                 # since the first unit was expected
    said: int = -1                           # units done when it was last told


@dataclass(frozen=True)
class Figures:
    """Where a stage stands in this run."""

    known: int
    done: int
    sent: int
    states: dict[str, int]
    per_s_now: float
    per_s: float
    to_come: float                           # units, with what earlier stages will send
    eta_s: float | None                      # None while unknown


class Progress:
    """Counts units per stage and shows rates and time left. `listing`: more units are still being found."""

    def __init__(self, stages: list[str], console: Console | None = None, *, listing: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.counts = {stage: _Count() for stage in stages}
        self._failures: deque[dict[str, str]] = deque(maxlen=_LAST)
        self.listing = listing
        self.crew: dict[str, Any] = {}       # per pool, as the executor says
        self._said = self._told = time.monotonic()
        self._asked = 0.0
        self.told: Callable[[Mapping[str, float]], None] | None = None   # units to come, now and then
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()        # `pipelines.live` reads from a thread of its own

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)), BarColumn(bar_width=12),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)), console=self.console,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._tell()
        if self._bars is not None:
            self._show()
            self._bars.stop()
        elif kind is None and any(count.done for count in self.counts.values()):
            self._say()

    def expect(self, stage: str, units: int = 1) -> None:
        """More units need this stage."""
        with self._lock:
            count = self.counts[stage]
            count.rate = count.rate or Rate(time.monotonic())
            count.known += units

    def all_listed(self) -> None:
        """No units come any more but those that stages send on."""
        self.listing = False

    def done(self, stage: str, units: int = 1, state: str = "") -> None:
        """Units have ended at this stage, in one state."""
        with self._lock:
            count, now_s = self.counts[stage], time.monotonic()
            count.rate = count.rate or Rate(now_s)
            count.rate.add(units, now_s)
            count.done += units
            if state:
                count.states[state] += units

    def sends(self, stage: str, units: int) -> None:
        """Of a unit that has ended, what came out and goes on."""
        with self._lock:
            self.counts[stage].sent += units

    def again(self) -> None:
        """All is planned anew: what was expected and is not done will be expected once more."""
        with self._lock:
            for count in self.counts.values():
                count.known = count.done

    def failed(self, stage: str, unit: str, reason: str) -> None:
        """A unit was given up; the last few are told."""
        with self._lock:
            self._failures.append({"stage": stage, "unit": unit, "reason": reason})

    def last_failures(self) -> list[dict[str, str]]:
        """Stage, unit and reason of each, the last one at the end."""
        with self._lock:
            return list(self._failures)

    def tick(self, crew: Callable[[], dict[str, Any]] | None = None) -> None:
        """Say where things stand, when it is time to; call it often. `crew`: tells of the workers."""
        now_s = time.monotonic()
        if crew is not None and now_s - self._asked >= 1.0:
            self._asked, self.crew = now_s, crew()
            self._tell()
        if self._bars is not None and now_s - self._told >= 0.25:
            self._told = now_s
            self._show()
        if self._bars is None and now_s - self._said >= PLAIN_SECONDS:
            self._say()

    def _tell(self) -> None:
        if self.told is not None:
            self.told({stage: found.to_come for stage, found in self.figures().items()})

    def figures(self) -> dict[str, Figures]:
        """Of the stages that something has come to."""
        with self._lock:
            now_s = time.monotonic()
            seen = {name: (count, count.rate) for name, count in self.counts.items() if count.rate}
            ahead = [
                Ahead(
                    count.known - count.done, count.sent / count.done if count.done else 1.0, rate.now(now_s)
                )
                for count, rate in seen.values() if rate
            ]  # fmt: skip
            left = times_left(ahead)[0]
            return {
                name: Figures(
                    count.known, count.done, count.sent, dict(count.states), rate.now(now_s),
                    rate.mean(now_s), units, None if self.listing else eta,
                )
                for (name, (count, rate)), units, eta in zip(
                    seen.items(), units_ahead(ahead), left, strict=True
                ) if rate
            }  # fmt: skip

    def _show(self) -> None:
        if self._bars is None:
            return
        for stage, found in self.figures().items():
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=found.known, text="")
            text = self._text(found)
            self._bars.update(self._tasks[stage], total=found.known, completed=found.done, text=text)

    def _say(self) -> None:
        self._said = time.monotonic()
        for stage, found in self.figures().items():
            count = self.counts[stage]
            if found.known and count.said != found.done:
                count.said = found.done
                log.info("%s: %s", stage, self._text(found))

    def _text(self, found: Figures) -> str:
        """As `how_far`; "28 to come so far" while units are still being found."""
        over = not round(found.to_come) and not self.listing
        rate, more = found.per_s if over else found.per_s_now, " so far" if self.listing else ""
        return how_far(found.done, found.to_come, rate, found.eta_s, more)
