"""Where every listed video of a run went, for the report: counts of all, and samples of a fixed size."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.ledger import Ledger, Record, Ref
from pipelines.losses import Losses
from pipelines.survey import Counts, Survey, Unit, survey
from pipelines.workflow import Step, Workflow
from stages.takedown import TAKEN_DOWN

T = TypeVar("T")

FIGURE_CLIPS = 2000  # kept clips whose numbers are read
SCORED = 500  # rejected clips whose similarities are read
SHEET_CLIPS = 8  # per stage and reason
MOST_REASONS = 200  # of a stage; a stage of one's own may put numbers into them
UNITS_SHOWN = 1000


class Sample(Generic[T]):
    """The `size` items with the least keys of all that were offered, whatever their order."""

    def __init__(self, size: int) -> None:
        self.size, self.offered = size, 0
        self._heap: list[tuple[_Reversed, int, T]] = []

    def offer(self, key: Any, item: T) -> None:
        self.offered += 1
        entry = (_Reversed(key), -self.offered, item)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif self._heap[0] < entry:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[T]:
        """By key."""
        return [item for _, _, item in sorted(self._heap, key=lambda e: (e[0].key, -e[1]))]


@dataclass(slots=True)
class _Reversed:
    key: Any

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.key < self.key)


def chance(text: str) -> bytes:
    """A key for `Sample` that chooses evenly, and the same ones every time."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]


@dataclass
class Sheet:
    """What one stage did not pass on for one reason, and a sample of it."""

    stage: str
    state: str
    reason: str
    count: int = 0
    chosen: Sample[tuple[Ref, str]] = field(default_factory=lambda: Sample(SHEET_CLIPS))  # with the detail


@dataclass
class Tally:
    """What came to a stage, beyond the counts of the survey."""

    step: Step
    counts: Counts = field(default_factory=Counts)
    retried: int = 0  # units that took more than one attempt
    seconds: array[float] = field(default_factory=lambda: array("f"))  # of every unit, in a worker
    slowest: tuple[float, str] = (0.0, "")
    sheets: dict[tuple[str, str], Sheet] = field(default_factory=dict)  # by state and reason
    passed: Sample[Ref] = field(default_factory=lambda: Sample(FIGURE_CLIPS))  # of what came out

    @property
    def lost(self) -> int:
        return self.counts.rejected + self.counts.failed

    def sheet(self, state: str, reason: str) -> Sheet:
        """The one of a reason; beyond the most, one for all the others."""
        if (state, reason) not in self.sheets and len(self.sheets) >= MOST_REASONS:
            reason = "other reasons"
        return self.sheets.setdefault((state, reason), Sheet(self.step.name, state, reason))

    def by_count(self) -> list[Sheet]:
        return sorted(self.sheets.values(), key=lambda s: (-s.count, s.state, s.reason))


@dataclass
class Walk(Survey):
    """What the report keeps of the units that pass by. It does not grow with their number, but for a number
    per unit and stage, and a counter of people."""

    steps: tuple[Step, ...] = ()
    expect: Callable[[int], None] = lambda records: None  # told once how many there are at most
    tick: Callable[[], None] = lambda: None  # called for each
    listed: int = 0
    clips: int = 0  # kept: out of the last stage
    people: Counter[str] = field(default_factory=Counter)  # kept clips per identity
    figures: Sample[Ref] = field(default_factory=lambda: Sample(FIGURE_CLIPS))  # of the kept ones
    scored: Sample[Ref] = field(default_factory=lambda: Sample(SCORED))  # rejected for their similarities
    units: Sample[Unit] = field(default_factory=lambda: Sample(UNITS_SHOWN))
    losses: Losses = field(default_factory=Losses)
    _tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def tallies(self) -> list[Tally]:
        """Of all stages, in their order."""
        return [self._tally(step.name) for step in self.steps]

    @property
    def shown(self) -> tuple[str, Sample[Ref]]:
        """The kept clips; while there are none, the stage that clips have come out of last, and those."""
        reached = [tally for tally in self.tallies if tally.passed.offered]
        if self.clips or not reached:
            return "", self.figures
        return reached[-1].step.name, reached[-1].passed

    def begin(self, ledger: Ledger) -> None:
        self.expect(sum(ledger.count(step.name) for step in self.steps))

    def came(self, ref: Ref) -> None:
        self.listed += 1

    def unit(self, unit: Unit) -> None:
        self.losses.add(unit)
        self.units.offer((unit.source, unit.clip or ""), unit)
        if unit.state in ("rejected", "failed"):
            self._tally(unit.stage).sheet(unit.state, unit.reason).count += 1

    def record(self, step: Step, ref: Ref, record: Record) -> None:
        self.tick()
        tally = self._tally(step.name)
        tally.seconds.append(record.seconds)
        tally.slowest = max(tally.slowest, (record.seconds, record.unit))
        tally.retried += record.attempts > 1
        if not record.outputs:
            self._show(tally, ref, record.state, record.reason, record.detail)
        for out in record.outputs:
            at = Ref(
                out.id,
                out.digest,
                record.source,
                out.identity or ref.identity,
                record.segment,
                out.at,
                out.clip,
            )
            if out.state != "ok":
                self._show(tally, at, out.state, out.reason, out.detail)
                if "verification" in step.stage.writes:
                    self.scored.offer(chance(out.id), at)
            else:
                tally.passed.offer(chance(out.id), at)

    def kept(self, ref: Ref) -> None:
        self.clips += 1
        self.people.update([ref.identity] if ref.identity else [])
        self.figures.offer(chance(ref.id), ref)

    def _tally(self, stage: str) -> Tally:
        if stage not in self._tallies:
            step = next(step for step in self.steps if step.name == stage)
            self._tallies[stage] = Tally(step, self.stages[stage])
        return self._tallies[stage]

    def _show(self, tally: Tally, ref: Ref, state: str, reason: str, detail: str) -> None:
        if reason != TAKEN_DOWN:  # whose pictures nobody may see
            tally.sheet(state, reason).chosen.offer(chance(ref.id), (ref, detail))


def walk(
    workflow: Workflow,
    expect: Callable[[int], None] = lambda records: None,
    tick: Callable[[], None] = lambda: None,
) -> Walk:
    """Follow every listed video through the current records; `expect` and `tick` as in `Walk`."""
    return survey(workflow, lambda: Walk(steps=workflow.steps, expect=expect, tick=tick))
