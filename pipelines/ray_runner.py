"""Do the work on Ray: hand out what waits, take in what has ended, and find out why a worker was lost.

Stages that hold nothing run as tasks, those that hold models in pools of actors; `pipelines.places` decides
who gets the cores. Only clips travel, which are kilobytes; frames are decoded where they are needed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import ray

from infra import cluster
from infra.storage import StorageError
from pipelines import ray_worker
from pipelines.alone import Death
from pipelines.groups import clips_of
from pipelines.ledger import Ledger
from pipelines.places import Places, Worker
from pipelines.pools import Crew, Outcome, Pool, Work
from pipelines.ray_losses import CRASHED, LOST, NO_MEMORY, NODE_LOST, why
from pipelines.work import ChainSpec, OutOfMemoryError, SetupError, StageBugError
from pipelines.workflow import Workflow
from stages.base import LostInputError

log = logging.getLogger(__name__)

MOVES = 5                        # times that a unit is lost with its node, before it is left to the next run
STARTS = 3                       # workers of a pool that may die in a row while they start
GRACE_S = 30.0                   # workers end themselves at the time limit; those that do not are ended then


class OnRay:
    """An `Executor`. Raises ValueError where no Ray answers, or for needs that nothing meets."""

    def __init__(self, workflow: Workflow, ledger: Ledger, address: str | None = None) -> None:
        self.workflow = workflow
        self.ledger = ledger
        cluster.start(address, objects_mb=workflow.ray.object_store_mb)
        self.places = Places(local=not (address or os.environ.get("RAY_ADDRESS")))
        self._failed_starts: dict[Pool, int] = {}
        self._specs: dict[Pool, ChainSpec] = {}
        self._task = ray.remote(max_retries=0)(ray_worker.task)
        self._alone = ray.remote(max_retries=0)(ray_worker.alone)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(ray_worker.Holder)
        for step in self.workflow.steps:
            self._check(step.name, step.resources.cpus, step.resources.gpus, step.resources.custom)

    def _check(self, name: str, cpus: float, gpus: float, custom: dict[str, float]) -> None:
        """On this machine nothing will be added, so what is missing now is missing for good."""
        have = self.places.have
        for key, need in [("CPU", cpus), ("GPU", gpus), *custom.items()]:
            if self.places.local and need > have.get(key, 0.0):
                setting = {"CPU": "cpus", "GPU": "gpus"}.get(key, f"custom.{key}")
                raise ValueError(
                    f"stages.{name}.resources.{setting}: {need:g} asked for, this machine has "
                    f"{have.get(key, 0.0):g}; lower it with --set stages.{name}.resources.{setting}=..."
                )

    # --- Executor ----------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        return 8 + 2 * int(self.places.have.get("CPU", 1))

    @property
    def busy(self) -> bool:
        return any(worker.work is not None for worker in self.places.workers)

    def schedule(self, pools: list[Pool]) -> None:
        if self.places.look():
            self._leave_nodes()
            self._make_way(pools)
        if self._quiet(pools):
            return
        for pool in pools:
            self._start_minimum(pool)
            if self._may_run(pool) and not self.places.of(pool):
                first = self._grow(pool, pools, reclaim=True)
                if first is not None and first.actor is None:
                    self._hand_out(first, pool.queue.popleft())
        for pool in reversed(pools):  # what is furthest is finished first
            while self._may_run(pool) and not pool.queue[0].quiet:
                worker = self.places.idle(pool)
                if worker is None and not pool.has_setup:
                    worker = self._grow(pool, pools)
                if worker is None:
                    starting = sum(w.ready is not None for w in self.places.of(pool))
                    if pool.has_setup and len(pool.queue) > starting and self._grow(pool, pools):
                        continue
                    break
                self._hand_out(worker, pool.queue.popleft())

    def poll(self) -> list[Outcome]:
        self._end_overdue()
        waiting = {worker.waits_for: worker for worker in self.places.workers}
        waiting.pop(None, None)
        if not waiting:
            time.sleep(0.05)
            return []
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        if done:  # take along whatever else has ended
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        outcomes = [self._take_in(waiting[ref], ref) for ref in done]
        return [outcome for outcome in outcomes if outcome is not None]

    def crew(self, pools: list[Pool]) -> Crew:
        found: Crew = {}
        for pool in pools:
            mine = self.places.of(pool)
            found[pool.name] = {
                "workers": len(mine), "busy": sum(worker.work is not None for worker in mine),
                "nodes": len({worker.node for worker in mine if worker.node}), "queued": len(pool.queue),
            }  # fmt: skip
        return found

    def release(self, pools: list[Pool]) -> None:
        for worker in [w for w in self.places.workers if w.pool in pools]:
            self._end(worker)

    def close(self) -> None:
        for worker in list(self.places.workers):
            self._end(worker)

    # --- workers come and go -----------------------------------------------------------------------------

    def _may_run(self, pool: Pool) -> bool:
        return bool(pool.queue) and pool.room_below(self.window)

    def _start_minimum(self, pool: Pool) -> None:
        wanted = pool.steps[0].workers.min if pool.has_setup and pool.queue else 0
        while len(self.places.of(pool)) < wanted and self._grow(pool):
            pass

    def _grow(self, pool: Pool, pools: list[Pool] | None = None, reclaim: bool = False) -> Worker | None:
        """One more worker for a pool, if there is room; `reclaim` may take the room from other pools."""
        if len(self.places.of(pool)) >= self.places.most(pool):
            return None
        if not self.places.fits(pool):
            blocked = [other for other in pools or [] if not self._may_run(other)]
            spare = self.places.spare(pool, blocked) if reclaim else None
            if spare is None:
                return None
            for other in spare:
                self._end(other)
        worker = Worker(pool)
        if pool.has_setup:
            worker.actor = self._actor.options(**self._options(pool)).remote(self._spec(pool))
            worker.where, worker.ready = worker.actor.where.remote(), worker.actor.setup.remote()
        self.places.workers.append(worker)
        return worker

    def _leave_nodes(self) -> None:
        """Give nothing more to actors on nodes that are drained: those that are idle end here."""
        for worker in list(self.places.workers):
            if worker.node and worker.node not in self.places.nodes and worker.idle:
                log.info("%s: leaving a node that is drained or gone", worker.pool.name)
                self._end(worker)

    def _make_way(self, pools: list[Pool]) -> None:
        """Idle actors may leave no node with room for what was asked for: each takes a part of one, or nodes
        went."""
        blocked = [pool for pool in pools if not self._may_run(pool)]
        for worker in self.places.unplaced():
            for other in self.places.spare(worker.pool, blocked, asked=True) or []:
                self._end(other)

    def _quiet(self, pools: list[Pool]) -> bool:
        """Whether work that has the machine for itself is due or under way; hands it out when it can."""
        if any(worker.work is not None and worker.work.quiet for worker in self.places.workers):
            return True
        pool = next((pool for pool in pools if pool.queue and pool.queue[0].quiet), None)
        if pool is None or self.busy:
            return pool is not None
        for other in [w for w in self.places.workers if w.pool is not pool]:
            self._end(other)
        worker = self.places.idle(pool) or next(iter(self.places.of(pool)), None) or self._grow(pool)
        if worker is not None and worker.idle:
            self._hand_out(worker, pool.queue.popleft())
        return True

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for worker in self.places.workers:
            work = worker.work
            begun = worker.actor is not None or self.places.local   # else it may still wait for a place
            if not work or work.alone or worker.killed or not begun:
                continue
            if now - worker.since > work.timeout_s + GRACE_S:
                worker.killed = "timed out"
                self._kill(worker)

    def _end(self, worker: Worker) -> None:
        if worker in self.places.workers:
            self.places.workers.remove(worker)
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        if worker.actor is not None:
            ray.kill(worker.actor)
        elif worker.ref is not None and worker.work is not None:
            ray.cancel(worker.ref, force=True)

    # --- handing out and taking in -----------------------------------------------------------------------

    def _options(self, pool: Pool) -> dict[str, Any]:
        need = pool.resources
        return cluster.options(need.cpus, need.gpus, need.custom)

    def _spec(self, pool: Pool) -> ChainSpec:
        if pool not in self._specs:
            self._specs[pool] = ChainSpec(
                stages=tuple((step.use, step.settings) for step in pool.steps),
                names=tuple(step.name for step in pool.steps),
                root=self.workflow.storage.root,
                options=self.workflow.storage.s3.model_dump(),
                sys_path=tuple(sys.path),
                history=tuple(step.facts for step in self.workflow.steps[:pool.offset + len(pool.steps)]),
            )
        return self._specs[pool]

    def _hand_out(self, worker: Worker, work: Work) -> None:
        clips = clips_of(work, self.ledger)
        worker.work, worker.since = work, time.monotonic()
        if worker.actor is not None:
            call = worker.actor.alone if work.alone else worker.actor.run
            first: tuple[Any, ...] = ()
        else:
            call = (self._alone if work.alone else self._task).options(**self._options(work.pool))
            first = (self._spec(work.pool),)
        stages = (work.first,) if work.alone else (work.first, work.last)
        worker.ref = call.remote(*first, clips, *stages, work.group, work.timeout_s)

    def _take_in(self, worker: Worker, ref: Any) -> Outcome | None:
        try:
            answer = ray.get(ref)
        except LOST as error:
            return self._lost(worker, why(error))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OutOfMemoryError):
                return self._lost(worker, NO_MEMORY, str(error.cause))
            if isinstance(error.cause, (StageBugError, SetupError, StorageError, LostInputError)):
                raise error.cause from None
            raise
        if ref is worker.where:
            worker.where, worker.node = None, answer
            return None
        if ref is worker.ready:
            worker.ready = None
            self._failed_starts.pop(worker.pool, None)
            return None
        work, worker.work, worker.ref = worker.work, None, None
        assert work is not None
        if worker.actor is None:
            self.places.workers.remove(worker)
        elif worker.node not in self.places.nodes:
            self._end(worker)                    # its node is drained
        if isinstance(answer, Death):
            return self._dead(work, answer)
        return Outcome(work, answer)

    # --- losses ------------------------------------------------------------------------------------------

    def _lost(self, worker: Worker, reason: str, detail: str = "") -> Outcome | None:
        """A worker is gone, or of no use any more."""
        work = worker.work
        self._end(worker)
        if reason == NODE_LOST:
            self.places.look(at_once=True)
        if work is None:
            self._no_start(worker.pool, reason)
            return None
        overdue = time.monotonic() - worker.since >= work.timeout_s
        if reason == CRASHED and not work.alone and (worker.killed or overdue):
            reason = "timed out"
        if reason == NODE_LOST or (work.alone and reason == CRASHED):
            return self._elsewhere(work, reason)
        return self._dead(work, Death(reason, detail))

    def _elsewhere(self, work: Work, reason: str) -> Outcome | None:
        """The worker went, and the unit is not to blame: when alone, it was in another process."""
        work.moves += 1
        unit = work.group or work.refs[0].id
        if work.moves > MOVES:
            return Outcome(work, [], reason, f"{work.moves} times", again=True)
        log.warning("%s: %s at %s; it is done again elsewhere", unit, reason, work.pool.name)
        work.pool.queue.appendleft(work)
        return None

    def _dead(self, work: Work, death: Death) -> Outcome | None:
        """A unit that ended its worker, or its own process. One that ran out of memory beside others gets the
        machine for itself before it is blamed; on a cluster, where that would cost too much, other places."""
        if work.alone and death.reason == NO_MEMORY and not work.quiet:
            one = len(self.places.nodes) == 1
            if self.busy if one else work.moves < 2:
                unit, where = work.group or work.refs[0].id, "with nothing beside it" if one else "elsewhere"
                log.warning("%s: %s at %s, alone; trying it %s", unit, death.reason, work.pool.name, where)
                work.moves, work.quiet = work.moves + 1, one
                work.pool.queue.appendleft(work)
                return None
        return Outcome(work, [], death.reason, death.detail)

    def _no_start(self, pool: Pool, reason: str) -> None:
        """A worker died while it set up. Once or twice may be chance; more is a broken stage."""
        self._failed_starts[pool] = self._failed_starts.get(pool, 0) + (reason != NODE_LOST)
        if self._failed_starts[pool] >= STARTS:
            raise SetupError(f"stage {pool.name}: its workers die while they start ({reason})")
        log.warning("%s: a worker died while it started (%s); starting another", pool.name, reason)
