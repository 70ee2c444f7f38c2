"""Run the data stages over everything that the ledger does not have yet.

One loop plans and records; an executor (`pipelines.in_process` here, `pipelines.ray_runner` on Ray) does the
work.
Units stream from pool to pool through bounded windows; a group stage waits until all before it is done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from infra.garbage import settled
from infra.storage import Storage
from pipelines.compact import compact
from pipelines.groups import Division, in_storage_order, is_light, restore
from pipelines.in_process import InProcess
from pipelines.ledger import Ledger, LostSegmentError, Record, Ref, members_digest
from pipelines.limits import Limits
from pipelines.listing import listed
from pipelines.live import Live
from pipelines.lost import Lost
from pipelines.policy import Policy
from pipelines.pools import Executor, Outcome, Pool, Work, make_pools
from pipelines.progress import Progress
from pipelines.spool import Spool
from pipelines.stage_keys import remember
from pipelines.videos import Videos
from pipelines.weights import check_steps
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage, LostInputError, LostOutputError, Stage
from stages.takedown import TAKEN_DOWN

log = logging.getLogger(__name__)

MANY = 1000                                  # small segments of a stage that a run does not begin with
PAGE = 128                                   # units that are listed and looked up at a time


@dataclass
class Prepared:
    """What `prepare` did."""

    kept: int = 0                            # clips that came out of the last stage
    redone: dict[str, int] = field(default_factory=dict)  # units per stage that had to be done
    taken_down: bool = False                 # units that were made already turned out to be taken down


def prepare(
    workflow: Workflow, *, until: str | None = None, in_process: bool = False, ray_address: str | None = None,
    live: Live | None = None,
) -> Prepared:  # fmt: skip
    """Run the data stages, up to and including `until`. What is done already is not done again.

    Raises StorageError for a store that cannot be written, SetupError for a stage that cannot start,
    TooManyFailedError for one that fails too often, and StageBugError, naming stage and clip, for one that
    raises what it should not.
    """
    store = workflow.store()
    store.check_writable()
    from pipelines import takedown

    takedown.sweep_if_due(workflow, store)
    steps = steps_until(workflow, until)
    ledger = Ledger(store)
    lost = Lost(ledger, store, steps)

    def start() -> Executor:
        first = next((i for i, step in enumerate(steps) if progress.counts[step.name].known), 0)
        if in_process or not (ray_address or os.environ.get("RAY_ADDRESS")):
            check_steps(steps[first:])       # before a Ray starts; nodes of a cluster have files of their own
        if in_process:
            return InProcess(store, ledger)
        from pipelines.metrics import to_do_gauge, unit_counter
        from pipelines.ray_runner import OnRay

        executor = OnRay(workflow, ledger, ray_address)
        ledger.told, progress.told = unit_counter(), to_do_gauge()
        return executor

    with settled(), Progress([step.name for step in steps], listing=True) as progress:
        if live is not None:
            live.progress = progress
        while True:
            progress.again()
            run = _Run(workflow, steps, store, ledger, start, progress)
            try:
                compact(ledger, run.prepared.redone, MANY)
                prepared = run.all()
                break
            except LostSegmentError:
                continue  # its records are dropped: plan again
            except LostInputError as error:
                lost.bring_back(error)
            finally:
                run.close()
    compact(ledger, prepared.redone)
    if prepared.taken_down:
        takedown.sweep(workflow, store)
    return prepared


def steps_until(workflow: Workflow, until: str | None) -> tuple[Step, ...]:
    """The steps up to and including the one of this name; all of them for None."""
    if until is None:
        return workflow.steps
    names = [step.name for step in workflow.steps]
    return workflow.steps[: names.index(until) + 1]


class _Run:
    """One pass over the workflow."""

    def __init__(
        self,
        workflow: Workflow,
        steps: tuple[Step, ...],
        store: Storage,
        ledger: Ledger,
        start: Callable[[], Executor],
        progress: Progress,
    ) -> None:
        self.workflow = workflow
        self.steps = steps
        self.store = store
        self.ledger = ledger
        self.progress = progress
        self.policy = Policy(workflow, store)
        self.prepared = Prepared(redone={step.name: 0 for step in steps})
        self.limits = Limits({step.name: step.max_failed_fraction for step in steps})
        self._start = start
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        """Started when there is something to do, so that a run with nothing to do is quick."""
        if self._executor is None:
            remember(self.store, self.steps)
            self._executor = self._start()
        return self._executor

    def all(self) -> Prepared:
        refs: Iterable[Ref] | Spool = self._listed()
        index = 0
        while index < len(self.steps):
            end = index
            while end < len(self.steps) and isinstance(self.steps[end].stage, Stage):
                end += 1
            into = Division(self.steps[end], self.ledger) if end < len(self.steps) else Spool(self.ledger)
            if end > index:
                self._stream(iter(refs), index, end, into.add)
            else:
                for ref in self._admitted(refs, index):
                    into.add(ref)
            refs = self._group_step(self.steps[end], end, into) if isinstance(into, Division) else into
            index = end + 1
        if isinstance(refs, Spool) and not self.policy.takedown:
            self.prepared.kept = refs.count
        else:
            self.prepared.kept = sum(1 for _ in self._admitted(refs, index))
        return self.prepared

    def _listed(self) -> Iterator[Ref]:
        yield from listed(self.workflow, self.store, self.policy)
        self.progress.all_listed()

    def _admitted(self, refs: Iterable[Ref], index: int) -> Iterator[Ref]:
        """Those that the policy lets through to a step."""
        if index > 0 and not self.policy.takedown:
            return iter(refs)
        return (ref for ref in refs if self._passes(ref, index))

    def _passes(self, ref: Ref, index: int) -> bool:
        if index > 0 and not self.policy.takedown:       # other reasons were known at the start
            return True
        reason = self.policy.stops(ref, self.ledger)
        self.prepared.taken_down |= index > 0 and reason == TAKEN_DOWN
        return not reason

    def close(self) -> None:
        """Keep what is done, whatever happened, and free the workers."""
        try:
            self.ledger.flush()
        finally:
            if self._executor is not None:
                self._executor.close()

    # --- per-clip stages ---------------------------------------------------------------------------------

    def _stream(self, source: Iterator[Ref], start: int, end: int, give: Callable[[Ref], None]) -> None:
        """Send units through the steps start..end-1, and give away what comes out of the last."""
        pools = make_pools(self.steps[start:end], start)
        pool_of = [pool for pool in pools for _ in pool.steps]
        videos = Videos(self.steps, start, end, self.workflow.steps, self.ledger, self.store)

        def queue(ref: Ref, at: int, fed: Ref | None, alone: bool = False, anew: bool = False) -> None:
            pool = pool_of[at - start]
            self.progress.expect(self.steps[at].name)
            position = at - pool.offset
            careful = alone and position > 0  # the next pool starts afresh
            work = Work(pool, position, [ref], alone=careful, attempts=1 + careful, fed=fed, anew=anew)
            pool.queue.append(work)
            videos.began(fed)

        def advance(refs: list[Ref], index: int, after: Work | None = None, idle: bool = False) -> None:
            """Follow units through what is done already, and queue them where work begins, unless `idle`."""
            fed, alone = (after.fed, after.alone) if after else (None, False)
            put = _nowhere if idle else queue
            pairs = [(ref, fed) for ref in refs]
            for at in range(index, end):
                pairs = list(self._past(at, pairs, videos, start, put, alone))
            for ref in self._admitted((ref for ref, _ in pairs), end):
                give(ref)
            videos.settle()

        more = True
        while True:
            while more and len(pools[0].queue) < self._window:
                page = list(islice(source, PAGE))
                more = bool(page)
                advance(page, start)
            if not any(pool.queue for pool in pools) and not self._busy:
                if not more:
                    break
                continue
            self._turn(pools, lambda outcome: videos.ended(outcome.work.fed, self._settle(outcome, advance)))
        if self._executor is not None:
            self._executor.release(pools)

    def _past(
        self, at: int, pairs: list[tuple[Ref, Ref | None]], videos: Videos, start: int,
        queue: Callable[..., object], alone: bool,
    ) -> Iterator[tuple[Ref, Ref | None]]:  # fmt: skip
        """What came out of a step for units that it is done with, each with the unit of its video; the others
        are queued."""
        step = self.steps[at]
        latest = self.ledger.fetch(step.name, [ref.id for ref, _ in pairs])
        for given, fed in pairs:
            if not self._passes(given, at):
                continue
            fed = given if at == videos.at else fed
            if at == videos.at + 1 > start:
                videos.came(fed, given)
            ref, record = self.policy.judge(self.ledger, step, given, latest.get(given.id))
            if record is None or record.again:
                queue(ref, at, fed, alone)
                continue
            outputs = list(self._admitted(self.ledger.outputs(record), at + 1))
            if at == videos.at and self._to_do(outputs, at + 1, videos) and videos.lost(outputs):
                queue(self.policy.allowed_part(self.ledger, ref), at, fed, False, True)
            else:
                yield from ((out, fed) for out in outputs)

    def _to_do(self, refs: list[Ref], index: int, videos: Videos) -> bool:
        """Whether anything that came of a video is still to be done, from its pixels."""
        waiting = [(ref, index) for ref in refs]
        while waiting:
            ref, at = waiting.pop()
            if not videos.used_from(at) or not self._passes(ref, at):
                continue
            ref, record = self.policy.current(self.ledger, self.steps[at], ref)
            if record is None or record.again:
                return True
            waiting.extend((out, at + 1) for out in self.ledger.outputs(record))
        return False

    @property
    def _window(self) -> int:
        return self._executor.window if self._executor is not None else 4

    @property
    def _busy(self) -> bool:
        return self._executor is not None and self._executor.busy

    def _turn(self, pools: list[Pool], settle: Callable[[Outcome], None]) -> None:
        """One round of the loop: hand out, take in, write down, tell."""
        self.executor.schedule(pools)
        for outcome in self.executor.poll():
            settle(outcome)
        self.ledger.flush(due=True)
        self.progress.tick(lambda: self.executor.crew(pools))
        self.limits.check()

    def _settle(self, outcome: Outcome, advance: Callable[..., None]) -> bool | None:
        """Record what a work came to, and send on what came out of it. Returns whether the next run does it
        again, None when this one does."""
        work = outcome.work
        pool, step, ref = work.pool, work.pool.steps[work.first], work.refs[0]
        if outcome.lost and not work.alone:
            log.warning("%s: %s at %s; trying it alone", ref.id, outcome.lost, pool.name)
            pool.queue.appendleft(replace(work, alone=True, attempts=work.attempts + 1))
            return None
        if work.anew and not any(out.state == "ok" for piece in outcome.pieces[:1] for out in piece.outputs):
            why = outcome.lost or outcome.pieces[0].reason
            log.warning("%s: its video does not come again (%s); what needs it stays to do", ref.id, why)
            self._count(step, "failed" if outcome.lost else outcome.pieces[0].state, why)
            before = self.ledger.record(step.name, ref.id)
            assert before is not None
            advance(self.ledger.outputs(before), pool.offset + work.first + 1, work, idle=True)
            return True
        if outcome.lost:
            log.warning("%s: %s at %s; it is given up", ref.id, outcome.lost, step.name)
            self.ledger.add(step.name, _failed(step, ref, outcome), [])
            self._count(step, "failed", outcome.lost)
            self.progress.failed(step.name, ref.id, outcome.lost)
            return outcome.again
        for piece in outcome.pieces:
            step = pool.steps[piece.stage]
            if piece.stage > work.first:
                self.progress.expect(step.name)
            record = Record(
                piece.unit, work.refs[0].source, step.barred_key if piece.barred else step.key, piece.input,
                piece.state, piece.reason, piece.detail, work.attempts, piece.seconds, piece.outputs,
                again=piece.again,
            )  # fmt: skip
            refs = self.ledger.add(step.name, record, piece.clips)
            self._count(step, piece.state, piece.reason)
            self.progress.sends(step.name, len(refs))
            if piece.state == "failed":
                self.progress.failed(step.name, piece.unit, piece.reason)
            if piece.stage == work.last:
                advance(refs, pool.offset + piece.stage + 1, work)
        return any(piece.again for piece in outcome.pieces)

    def _count(self, step: Step, state: str = "ok", reason: str = "", units: int = 1) -> None:
        self.progress.done(step.name, units, state)
        self.prepared.redone[step.name] += units
        self.limits.ended(step.name, state, reason, units)

    # --- group stages ------------------------------------------------------------------------------------

    def _group_step(self, step: Step, index: int, division: Division) -> Spool:
        pool = Pool([step], index)
        ended, to_do = division.end()

        def settle(outcome: Outcome) -> None:
            for ref in self._settle_group(step, outcome):
                ended.add(ref)

        for group, members in to_do.groups():
            self.progress.expect(step.name, len(members))
            pool.queue.append(Work(pool, 0, members, group))
            while len(pool.queue) >= self._window:
                self._turn([pool], settle)
        while pool.queue or self._busy:
            self._turn([pool], settle)
        if self._executor is not None:
            self._executor.release([pool])
        self._finish(step, ended)
        return ended

    def _settle_group(self, step: Step, outcome: Outcome) -> list[Ref]:
        work = outcome.work
        if outcome.lost and not work.alone:
            log.warning("group %s: %s at %s; trying it alone", work.group, outcome.lost, step.name)
            work.pool.queue.append(replace(work, alone=True, attempts=work.attempts + 1))
            return []
        members, group = members_digest(work.refs), work.group or ""
        if outcome.lost:
            log.warning("group %s: %s at %s; its clips are given up", group, outcome.lost, step.name)
            for ref in work.refs:
                record = replace(_failed(step, ref, outcome), group=group, members=members)
                self.ledger.add(step.name, record, [])
            self._count(step, "failed", outcome.lost, len(work.refs))
            return []
        kept: list[Ref] = []
        pieces = {ref.id: piece for ref, piece in zip(work.refs, outcome.pieces, strict=True)}
        refs = in_storage_order(work.refs)
        whole = self.ledger.clips(refs) if is_light(step.stage) else None
        for ref in refs:
            piece = pieces[ref.id]
            if whole is not None:
                restore(piece, next(whole), step.stage.writes)
            record = Record(
                piece.unit, ref.source, step.key, ref.digest, piece.state, piece.reason, piece.detail,
                work.attempts, piece.seconds, piece.outputs, group, members,
            )  # fmt: skip
            kept.extend(self.ledger.add(step.name, record, piece.clips))
        self._count(step, units=len(work.refs))
        return kept

    def _finish(self, step: Step, kept: Spool) -> None:
        """Conclude a group stage, unless it was concluded with these very clips, and by nobody since."""
        assert isinstance(step.stage, GroupStage)
        if type(step.stage).finish is GroupStage.finish:
            return
        digest = f"{step.key}:{kept.digest()}"
        before = self.ledger.finished(step.name)
        if before.startswith(f"{digest}:") and before == f"{digest}:{step.stage.standing(self.store)}":
            return
        self.ledger.flush()
        try:
            left = step.stage.finish(self.store, kept.clips())
        except LostOutputError as error:
            log.warning("%s: %s; it is made again", step.name, error)
            self._again(step, (ref.id for ref in kept if error.of(self.ledger.load(ref, arrays=()))))
            raise LostSegmentError(step.name) from error
        self.ledger.finish(step.name, f"{digest}:{left}")


    def _again(self, step: Step, units: Iterable[str]) -> None:
        """Have the groups of these units done again."""
        for unit in list(units):
            record = self.ledger.record(step.name, unit)
            assert record is not None, f"{unit} came out of {step.name}"
            lost = replace(record, state="failed", reason="lost", outputs=[], members="", again=True)
            self.ledger.add(step.name, lost, [])


def _nowhere(*unit: object) -> None:
    """For units that this run does no more with."""


def _failed(step: Step, ref: Ref, outcome: Outcome) -> Record:
    """The record of a unit whose worker was lost, twice."""
    return Record(
        ref.id, ref.source, step.key, ref.digest, "failed", outcome.lost, outcome.detail,
        outcome.work.attempts, again=outcome.again,
    )  # fmt: skip
