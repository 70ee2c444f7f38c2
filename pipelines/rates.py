"""How fast units end, and how long what is left will take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 60.0
_FEWEST = 5                                  # units that a rate rests on, where there are so many


class Rate:
    """Units per second: over the last minute, or over the last few units where they take longer."""

    def __init__(self, now_s: float) -> None:
        self.started_s, self.done = now_s, 0
        self._marks: deque[tuple[float, int]] = deque([(now_s, 0)])   # (when, units done by then)

    def add(self, units: int, now_s: float) -> None:
        self.done += units
        when, _ = self._marks[-1]
        if len(self._marks) > 1 and now_s - when < 0.5:               # some hundred marks at most
            self._marks[-1] = (when, self.done)
        else:
            self._marks.append((now_s, self.done))
        self._forget(now_s)

    def now(self, now_s: float) -> float:
        """Of late. It falls while nothing ends."""
        self._forget(now_s)
        when, done = self._marks[0]
        return (self.done - done) / max(now_s - when, 1e-3)

    def mean(self, now_s: float) -> float:
        """Since the first unit was expected."""
        return self.done / max(now_s - self.started_s, 1e-3)

    def _forget(self, now_s: float) -> None:
        while len(self._marks) > _FEWEST and self._marks[1][0] < now_s - WINDOW_S:
            self._marks.popleft()


@dataclass
class Ahead:
    """What a stage has before it."""

    left: float                              # units that wait for it or are under way now
    passes: float = 1.0                      # what comes out of one unit and goes on
    per_s: float = 0.0                       # units; 0 for unknown
    group: bool = False                      # begins when all before it is done


def units_ahead(stages: Sequence[Ahead]) -> list[float]:
    """Units per stage that are still to come through it, those included that earlier stages will send."""
    found, coming = [], 0.0
    for stage in stages:
        found.append(stage.left + coming)
        coming = found[-1] * stage.passes
    return found


def times_left(stages: Sequence[Ahead]) -> tuple[list[float | None], float | None]:
    """Seconds until each stage has done all that will come to it, None for unknown; and for those that are
    known together, None when that is none of them.

    Stages work at the same time, so none is done before those ahead of it; a group stage begins after them.
    """
    found: list[float | None] = []
    before, certain = 0.0, True
    for stage, units in zip(stages, units_ahead(stages), strict=True):
        if units and stage.per_s:
            alone = units / stage.per_s
            before = before + alone if stage.group else max(before, alone)
        certain = certain and not (units and not stage.per_s)
        found.append(0.0 if not units else before if certain else None)
    return found, before if before or certain else None


def duration(seconds: float) -> str:
    """"40 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if not seconds < 1e11:
        return "thousands of years"
    whole = round(seconds)
    for big, small, unit, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {unit} {rest} {part}" if rest else f"{whole // big} {unit}"
    return f"{whole} s"


def per_second(rate: float) -> str:
    """"12/s", "3.4/s"; "7/min" where a unit takes seconds. Seven characters."""
    if rate >= 1000:
        return f"{rate:.0f}/s"
    if rate >= 1 or not rate:
        return f"{rate:.3g}/s"
    return f"{rate * 60:.2g}/min" if rate >= 1 / 60 else f"{rate * 3600:.2g}/h"


def how_far(done: int, to_come: float, per_s: float, left_s: float | None, more: str = "") -> str:
    """"12 done, 28 to come, 1.2/s, 23 s left". `more`: after what is to come, as long as that is not all."""
    units = round(to_come)
    come = f", {units} to come{more}" if units or more else ""
    left = f", {duration(left_s)} left" if left_s and units else ""
    return f"{done} done{come}{f', {per_second(per_s)}' if done else ''}{left}"
