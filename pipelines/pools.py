"""Pools of workers and what waits for them: planned once, the same for every executor."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from pipelines.ledger import Ref
from pipelines.work import Piece
from pipelines.workflow import Step
from stages.base import GroupStage, Resources, Stage


@dataclass(eq=False)
class Work:
    """One unit, or one group of units, for one pool."""

    pool: Pool
    first: int                               # position in the pool's chain
    refs: list[Ref]                          # one, or the members of `group`
    group: str | None = None
    alone: bool = False                      # its worker died before: one stage, in a process of its own
    quiet: bool = False                      # nothing else runs meanwhile: there was not memory for both
    attempts: int = 1
    moves: int = 0                           # times that it was lost through no fault of its own
    fed: Ref | None = None                   # the unit whose video it is; see `pipelines.videos`
    anew: bool = False                       # it brings a video again that was there before

    @property
    def last(self) -> int:
        return self.first if self.alone else len(self.pool.steps) - 1

    @property
    def timeout_s(self) -> float:
        return sum(step.timeout_s for step in self.pool.steps[self.first : self.last + 1])


@dataclass(eq=False)
class Pool:
    """A chain of adjacent stages with equal needs, so that a clip stays with one worker as long as it can."""

    steps: list[Step]
    offset: int                              # of the first step in the workflow
    queue: deque[Work] = field(default_factory=deque)
    next: Pool | None = None                 # the pool that takes what comes out

    @property
    def name(self) -> str:
        return "+".join(step.name for step in self.steps)

    @property
    def resources(self) -> Resources:
        return self.steps[0].resources

    @property
    def has_setup(self) -> bool:
        """Whether workers hold something, and so must live on."""
        base = GroupStage if isinstance(self.steps[0].stage, GroupStage) else Stage
        return any(type(step.stage).setup is not base.setup for step in self.steps)

    def room_below(self, window: int) -> bool:
        """Whether the next pool can take more; a full one holds this one back."""
        return self.next is None or len(self.next.queue) < window


def make_pools(steps: Sequence[Step], offset: int) -> list[Pool]:
    """Fuse adjacent per-clip steps of equal needs and time limits. A step that cuts ends its pool: it
    multiplies units. One that fetches has one of its own: what comes out is seen."""
    pools: list[Pool] = []
    for number, step in enumerate(steps):
        before = pools[-1].steps[-1] if pools else None
        fits = before and _needs(before) == _needs(step)
        fetches = any(isinstance(one.stage, Stage) and one.stage.fetches for one in (step, before) if one)
        if fits and before and "frame_times_s" not in before.stage.writes and not fetches:
            pools[-1].steps.append(step)
        else:
            pools.append(Pool([step], offset + number))
    for pool, after in pairwise(pools):
        pool.next = after
    return pools


def _needs(step: Step) -> tuple[object, ...]:
    """A work's time limit is the sum of its steps': beside a long one a short one would not be kept."""
    return step.resources, step.workers, step.timeout_s


@dataclass
class Outcome:
    """What became of a work: its pieces, or why the worker was lost."""

    work: Work
    pieces: list[Piece]
    lost: str = ""
    detail: str = ""                         # where it was then
    again: bool = False                      # no fault of its own: the next run tries it again


Crew = dict[str, dict[str, int]]             # by name of the pool: workers, busy, nodes, queued


class Executor(Protocol):
    """Where work is done."""

    @property
    def window(self) -> int:
        """Units that may wait between two pools."""

    def schedule(self, pools: list[Pool]) -> None:
        """Take work from the queues as far as there are workers for it."""

    def poll(self) -> list[Outcome]:
        """What has ended; waits a moment when nothing has."""

    @property
    def busy(self) -> bool:
        """Whether work is under way."""

    def crew(self, pools: list[Pool]) -> Crew:
        """How many workers each pool has and needs, for people."""

    def release(self, pools: list[Pool]) -> None:
        """Free the workers of pools that have nothing more to do."""

    def close(self) -> None:
        """Free every worker."""
