"""Follow every listed video through the records, as a run would, and do nothing: for `status` and plans.

Units stream, some hundred at a time, whatever their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from infra.read_only import read_only
from infra.storage import Storage
from pipelines.groups import groups_of
from pipelines.ledger import Ledger, LostSegmentError, Record, Ref, holds, in_pages, members_digest
from pipelines.listing import listed
from pipelines.policy import Policy
from pipelines.runner import steps_until
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage

PAGE = 256                                   # units whose records are looked up at once
SAMPLE = 2000                                # records of a stage that figures rest on where few were met


@dataclass
class Counts:
    """What came to a stage, by what became of it. A cut counts what came out, so ok is what the next gets."""

    ok: int = 0
    rejected: int = 0
    failed: int = 0
    todo: int = 0
    stale: int = 0                           # of those to do: done before, with other settings or input
    again: int = 0                           # of the failed ones: the next run tries them again
    done: int = 0                            # units, as they came, whose record holds
    sent: int = 0                            # what came out of these and went on
    noted: int = 0                           # records that were met, those of other settings included
    noted_sent: int = 0                      # what came out of these and went on
    timed: int = 0                           # of these, those that say how long they took
    seconds: float = 0.0                     # that they took
    recorded: int = 0                        # units with a record, of any settings; see `look_back`

    @property
    def passes(self) -> float | None:
        """How many units come out of one; None while nothing tells."""
        if self.done and not self.mostly_old:
            return self.sent / self.done
        return self.noted_sent / self.noted if self.noted else None

    @property
    def mostly_old(self) -> bool:
        """Most of its records hold no longer, or are of units that wait for a stage before it."""
        return 2 * self.done < self.recorded

    @property
    def seconds_each(self) -> float | None:
        """Of a unit; None while nothing tells."""
        return self.seconds / self.timed if self.timed else None


@dataclass
class Unit:
    """Where a clip, or a video that was never cut, ended or waits."""

    source: str
    clip: str | None
    stage: str                               # that ended it or that it waits for; the last when all passed it
    state: str
    reason: str = ""
    identity: str = ""
    detail: str = ""
    again: bool = False                      # failed for now: the next run tries it


@dataclass
class Survey:
    """The counts of all stages. Subclasses look at the units as they come."""

    stages: dict[str, Counts] = field(default_factory=dict)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (state, stage, reason)

    def unit(self, unit: Unit) -> None:
        """Every unit, once, where it ended or waits."""

    def begin(self, ledger: Ledger) -> None:
        """Before the first unit; again, when all begins anew."""

    def came(self, ref: Ref) -> None:
        """Every listed video."""

    def record(self, step: Step, ref: Ref, record: Record) -> None:
        """A unit that is done, with its record."""

    def kept(self, ref: Ref) -> None:
        """What came out of the last stage."""

    def to_do(self, step: Step, ref: Ref, before: Record | None) -> None:
        """A unit that is to be done, with the record that no longer holds."""

    def over(self, ledger: Ledger) -> None:
        """All units were seen."""


S = TypeVar("S", bound=Survey)


def survey(workflow: Workflow, make: Callable[[], S], until: str | None = None) -> S:
    """Reads records, never an array of a clip that went on. Writes nothing, and deletes nothing."""
    store = read_only(workflow.store())
    ledger = Ledger(store)
    while True:
        walk = _Walk(workflow, store, ledger, make(), until)
        try:
            walk.all()
            walk.found.over(walk.ledger)
        except LostSegmentError:
            continue  # its records are dropped
        return walk.found


class _Walk(Generic[S]):
    def __init__(
        self, workflow: Workflow, store: Storage, ledger: Ledger, found: S, until: str | None
    ) -> None:
        self.workflow, self.store, self.ledger, self.found = workflow, store, ledger, found
        self.policy = Policy(workflow, store)
        self.steps = steps_until(workflow, until)
        self.counts = [found.stages.setdefault(step.name, Counts()) for step in self.steps]
        cuts = [n for n, step in enumerate(self.steps) if "frame_times_s" in step.stage.writes]
        self._cut = cuts[0] if cuts else len(self.steps)     # what comes to later steps are clips

    def all(self) -> None:
        self.found.begin(self.ledger)
        refs: Iterable[Ref] = self._listed()
        index = 0
        while index < len(self.steps):
            if isinstance(self.steps[index].stage, GroupStage):
                refs, index = self._group(refs, index), index + 1
                continue
            end = index
            while end < len(self.steps) and not isinstance(self.steps[end].stage, GroupStage):
                end += 1
            refs, index = self._chain(refs, index, end), end
        for ref in refs:
            if self._goes_on(ref, index):
                clip, stage = self._clip(ref, index), self.steps[-1].name
                self.found.kept(ref)
                self._say(Unit(ref.source, clip, stage, "ok", "", ref.identity))
            else:
                self.counts[-1].ok -= 1

    def _listed(self) -> Iterator[Ref]:
        for ref in listed(self.workflow, self.store, self.policy):
            self.found.came(ref)
            yield ref

    def _chain(self, refs: Iterable[Ref], start: int, end: int) -> Iterator[Ref]:
        """Through the per-clip steps start..end-1; yields what comes out of the last."""
        for page in in_pages(refs, PAGE):
            for at in range(start, end):
                came = [ref for ref in page if self._goes_on(ref, at)]
                pairs = list(self.policy.pairs(self.ledger, self.steps[at], came))
                page = list(self._counted(at, pairs))
            yield from page

    def _group(self, refs: Iterable[Ref], at: int) -> Iterator[Ref]:
        step = self.steps[at]
        came = (ref for ref in refs if self._goes_on(ref, at))
        for _, members in groups_of(step, self.ledger, came):
            digest = members_digest(members)
            pages = [members[start : start + PAGE] for start in range(0, len(members), PAGE)]
            # Twice over the records, so that those of a large group are never in memory together.
            done = all(None not in self._of_group(step, page, digest) for page in pages)
            for page in pages:
                records = self._of_group(step, page, digest) if done else [None] * len(page)
                yield from self._counted(at, list(zip(page, records, strict=True)))

    def _of_group(self, step: Step, page: list[Ref], digest: str) -> list[Record | None]:
        """The records of some members of a group, None where one is not of these very members."""
        found = self.ledger.fetch(step.name, [ref.id for ref in page])
        records = [found.get(ref.id) for ref in page]
        return [
            record if record and record.members == digest and holds(record, step.key, ref) else None
            for ref, record in zip(page, records, strict=True)
        ]

    def _counted(self, at: int, pairs: list[tuple[Ref, Record | None]]) -> Iterator[Ref]:
        """Note what became of some units at a step. Yields what came out and goes on."""
        stage = self.steps[at].name
        before = self.ledger.fetch(stage, [ref.id for ref, record in pairs if record is None])
        for ref, record in pairs:
            yield from self._count(at, ref, record, before.get(ref.id))

    def _goes_on(self, ref: Ref, at: int) -> bool:
        """Whether the policy lets a unit through to a step, or out of the last; else it ends there."""
        reason = self.policy.stops(ref, self.ledger)
        if reason:
            where = min(at, len(self.steps) - 1)
            self.counts[where].rejected += 1
            clip, stage = self._clip(ref, at), self.steps[where].name
            self._say(Unit(ref.source, clip, stage, "rejected", reason, ref.identity))
        return not reason

    def _count(self, at: int, ref: Ref, record: Record | None, before: Record | None) -> list[Ref]:
        counts, stage, clip = self.counts[at], self.steps[at].name, self._clip(ref, at)
        if record is None:
            counts.todo += 1
            counts.stale += before is not None
            note(counts, before)
            self.found.to_do(self.steps[at], ref, before)
            self._say(Unit(ref.source, clip, stage, "todo", "", ref.identity))
            return []
        note(counts, record)
        counts.done += 1
        self.found.record(self.steps[at], ref, record)
        if not record.outputs:
            counts.failed += record.state == "failed"
            counts.rejected += record.state != "failed"
            counts.again += record.again
            self._say(
                Unit(
                    ref.source, clip, stage, record.state, record.reason, ref.identity, record.detail,
                    record.again,
                )
            )  # fmt: skip
        for out in record.outputs:
            if out.state != "ok":
                counts.rejected += 1
                identity = out.identity or ref.identity
                self._say(Unit(ref.source, out.id, stage, out.state, out.reason, identity, out.detail))
        outputs = self.ledger.outputs(record)
        counts.ok += len(outputs)
        counts.sent += len(outputs)
        return outputs

    def _clip(self, ref: Ref, at: int) -> str | None:
        return ref.id if at > self._cut else None

    def _say(self, unit: Unit) -> None:
        if unit.reason:
            self.found.reasons[unit.state, unit.stage, unit.reason] += 1
        self.found.unit(unit)


def look_back(stages: dict[str, Counts], ledger: Ledger) -> None:
    """Where what is to do comes before a stage, few of its records were met: look at them as they are."""
    for stage, counts in stages.items():
        counts.recorded = ledger.count(stage)
        if counts.mostly_old:
            counts.noted = counts.noted_sent = counts.timed = 0
            counts.seconds = 0.0
            for record in islice(ledger.records(stage), SAMPLE):
                note(counts, record)


def note(counts: Counts, record: Record | None) -> None:
    """Add what a unit took and gave."""
    if record is None:
        return
    counts.noted += 1
    counts.noted_sent += sum(out.state == "ok" for out in record.outputs)
    if record.seconds > 0 or record.state == "ok":           # who lost its worker told no time
        counts.timed += 1
        counts.seconds += record.seconds
