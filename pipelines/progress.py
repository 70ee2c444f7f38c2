"""Progress per stage on stderr: bars on a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0


@dataclass
class _Count:
    known: int = 0                           # units that need this stage, as far as seen
    done: int = 0
    started: float = 0.0
    said: int = -1                           # units done when it was last told

    @property
    def rate(self) -> float:
        """Units per second since the first one was seen."""
        return self.done / max(time.monotonic() - self.started, 1e-9)


class Progress:
    """Counts units per stage and shows rate and time left."""

    def __init__(self, stages: list[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.counts = {stage: _Count() for stage in stages}
        self._said = time.monotonic()
        self._bars: Bars | None = None
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif kind is None and any(count.done for count in self.counts.values()):
            self._say()

    def expect(self, stage: str, units: int = 1) -> None:
        """More units need this stage."""
        count = self.counts[stage]
        count.started = count.started or time.monotonic()
        count.known += units
        self._show(stage)

    def done(self, stage: str, units: int = 1) -> None:
        """Units have ended at this stage, in whatever state."""
        self.counts[stage].done += units
        self._show(stage)

    def tick(self) -> None:
        """Say where things stand, when it is time to; call it often."""
        if self._bars is None and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._say()

    def _show(self, stage: str) -> None:
        if self._bars is None:
            return
        count = self.counts[stage]
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=count.known, rate="")
        self._bars.update(
            self._tasks[stage], total=count.known, completed=count.done, rate=f"{count.rate:.2g}/s"  # type: ignore[arg-type]
        )

    def _say(self) -> None:
        self._said = time.monotonic()
        for stage, count in self.counts.items():
            if count.known and count.said != count.done:
                count.said = count.done
                left = (count.known - count.done) / count.rate if count.done else 0.0
                eta = f", {left:.0f} s left" if count.done < count.known and count.done else ""
                log.info("%s: %d of %d, %.2g/s%s", stage, count.done, count.known, count.rate, eta)
