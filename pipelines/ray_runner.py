"""Do the work on Ray: tasks for stages that hold nothing, pools of actors for those that hold models.

The driver decides who gets the cores, because on a machine with one or two of them a pool that waits for
another's worker would wait for ever: a pool with work and no worker takes the worker of a pool that is held
back or idle. Only clips travel, which are kilobytes; frames are decoded where they are needed.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from infra import cluster
from pipelines.alone import run_alone
from pipelines.groups import clips_of
from pipelines.ledger import Ledger
from pipelines.pools import Outcome, Pool, Work
from pipelines.work import Chain, ChainSpec, Piece, SetupError, StageBugError
from pipelines.workflow import Workflow
from stages.clip import Clip

log = logging.getLogger(__name__)

_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.TaskCancelledError,
)
_chains: dict[str, Chain] = {}           # of tasks, by spec, per worker process


def _run_chain(chain: Chain, clips: list[Clip], first: int, last: int, group: str | None) -> list[Piece]:
    return chain.run(clips[0], first, last) if group is None else chain.run_group(group, clips)


def _task(spec: ChainSpec, clips: list[Clip], first: int, last: int, group: str | None) -> list[Piece]:
    """One work in a Ray task. Stages without `setup` hold nothing, but building them once is enough."""
    name = repr(spec)
    if name not in _chains:
        _chains[name] = spec.build()
    return _run_chain(_chains[name], clips, first, last, group)


def _alone(spec: ChainSpec, clip: Clip, stage: int, timeout_s: float) -> Piece | str:
    return run_alone(spec, clip, stage, timeout_s)


class _Actor:
    """A worker that holds set-up stages."""

    def __init__(self, spec: ChainSpec) -> None:
        self.spec = spec

    def setup(self) -> bool:
        """Load the models. Apart from the constructor, so that its exceptions arrive as they are."""
        self.chain = self.spec.build()
        self.chain.setup()
        return True

    def alone(self, clip: Clip, stage: int, timeout_s: float) -> Piece | str:
        """In a process of its own, which has the devices of this actor."""
        return run_alone(self.spec, clip, stage, timeout_s)

    def run(self, clips: list[Clip], first: int, last: int, group: str | None) -> list[Piece]:
        return _run_chain(self.chain, clips, first, last, group)


@dataclass(eq=False)
class _Worker:
    """An actor, or the place of one task."""

    pool: Pool
    actor: Any = None
    ready: Any = None                        # reference of `setup` while it runs
    work: Work | None = None
    ref: Any = None                          # of the work under way
    started: float = 0.0
    killed: str = ""                         # why we ended it


@dataclass
class OnRay:
    """An `Executor`. Raises ValueError where no Ray answers, or for needs that nothing meets."""

    workflow: Workflow
    ledger: Ledger
    address: str | None = None
    workers: list[_Worker] = field(default_factory=list)
    failed_starts: int = 0

    def __post_init__(self) -> None:
        cluster.start(self.address)
        self.local = not (self.address or os.environ.get("RAY_ADDRESS"))
        self.have = cluster.total()
        self.window = 8 + 2 * int(self.have.get("CPU", 1))
        self._specs: dict[Pool, Any] = {}
        self._task = ray.remote(max_retries=0)(_task)
        self._alone = ray.remote(max_retries=0)(_alone)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        for step in self.workflow.steps:
            self._check(step.name, step.resources.cpus, step.resources.gpus, step.resources.custom)

    def _check(self, name: str, cpus: float, gpus: float, custom: dict[str, float]) -> None:
        """On this machine nothing will be added, so what is missing now is missing for good."""
        for key, need in [("CPU", cpus), ("GPU", gpus), *custom.items()]:
            if self.local and need > self.have.get(key, 0.0):
                setting = {"CPU": "cpus", "GPU": "gpus"}.get(key, f"custom.{key}")
                raise ValueError(
                    f"stages.{name}.resources.{setting}: {need:g} asked for, this machine has "
                    f"{self.have.get(key, 0.0):g}; lower it with --set stages.{name}.resources.{setting}=..."
                )

    # --- Executor ----------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return any(worker.work is not None for worker in self.workers)

    def schedule(self, pools: list[Pool]) -> None:
        for pool in pools:
            self._start_minimum(pool)
            if self._may_run(pool) and not self._of(pool):
                first = self._grow(pool, reclaim=True)
                if first is not None and first.actor is None:
                    self._hand_out(first, pool.queue.popleft())
        for pool in reversed(pools):  # what is furthest is finished first
            while self._may_run(pool):
                worker = self._idle(pool)
                if worker is None and not pool.has_setup:
                    worker = self._grow(pool)
                if worker is None or worker.ready is not None:
                    starting = sum(w.ready is not None for w in self._of(pool))
                    if len(pool.queue) > starting and self._grow(pool):
                        continue
                    break
                self._hand_out(worker, pool.queue.popleft())

    def poll(self) -> list[Outcome]:
        self._end_overdue()
        waiting = {worker.ready or worker.ref: worker for worker in self.workers}
        waiting.pop(None, None)
        if not waiting:
            time.sleep(0.05)
            return []
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        if done:  # take along whatever else has ended
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        outcomes = [self._take_in(waiting[ref], ref) for ref in done]
        return [outcome for outcome in outcomes if outcome is not None]

    def release(self, pools: list[Pool]) -> None:
        for worker in [w for w in self.workers if w.pool in pools]:
            self._end(worker)

    def close(self) -> None:
        for worker in list(self.workers):
            self._end(worker)

    # --- who gets the cores ------------------------------------------------------------------------------

    def _may_run(self, pool: Pool) -> bool:
        return bool(pool.queue) and pool.room_below(self.window)

    def _of(self, pool: Pool) -> list[_Worker]:
        return [worker for worker in self.workers if worker.pool is pool]

    def _idle(self, pool: Pool) -> _Worker | None:
        return next((w for w in self._of(pool) if w.actor and w.work is None and w.ready is None), None)

    def _start_minimum(self, pool: Pool) -> None:
        wanted = pool.steps[0].workers.min if pool.has_setup and pool.queue else 0
        while len(self._of(pool)) < wanted and self._grow(pool):
            pass

    def _grow(self, pool: Pool, reclaim: bool = False) -> _Worker | None:
        """One more worker for a pool, if there is room; `reclaim` may take the room from another pool."""
        if len(self._of(pool)) >= self._most(pool):
            return None
        spare = [] if self._fits(pool) else self._spare(pool) if reclaim else None
        if spare is None:
            return None
        for other in spare:
            self._end(other)
        worker = _Worker(pool)
        if pool.has_setup:
            worker.actor = self._actor.options(**self._options(pool)).remote(self._spec(pool))
            worker.ready = worker.actor.setup.remote()
        self.workers.append(worker)
        return worker

    def _spare(self, needy: Pool) -> list[_Worker] | None:
        """Idle workers that make room for the needy pool: of pools with nothing to do, and all but one of
        the others. None when even all of them would not do, so that none ends for nothing."""
        spare: list[_Worker] = []
        for worker in self.workers:
            pool = worker.pool
            left = sum(other.pool is pool and other not in spare for other in self.workers)
            idle = worker.work is None and worker.ready is None
            if pool is not needy and idle and (left > 1 or not self._may_run(pool)):
                spare.append(worker)
                if self._fits(needy, without=spare):
                    return spare
        return None

    def _most(self, pool: Pool) -> int:
        limit = pool.steps[0].workers.max
        need = pool.resources
        shares = [self.have.get("CPU", 1.0) / need.cpus] if need.cpus else []
        shares += [self.have.get("GPU", 0.0) / need.gpus] if need.gpus else []
        shares += [self.have.get(key, 0.0) / value for key, value in need.custom.items() if value]
        room = max(1, math.floor(min(shares) + 1e-9)) if shares else 4 * int(self.have.get("CPU", 1))
        return min(room, limit) if limit else room

    def _fits(self, pool: Pool, without: list[_Worker] | None = None) -> bool:
        need = _needs(pool)
        for key, value in need.items():
            if not self.local and value > self.have.get(key, 0.0) and not self._of(pool):
                continue  # no node has it: a cluster may grow when it is asked
            staying = [worker for worker in self.workers if worker not in (without or [])]
            used = sum(_needs(worker.pool).get(key, 0.0) for worker in staying)
            if value and used + value > self.have.get(key, 0.0) + 1e-9:
                return False
        return True

    def _options(self, pool: Pool) -> dict[str, Any]:
        need = pool.resources
        return cluster.options(need.cpus, need.gpus, need.custom)

    # --- handing out and taking in -----------------------------------------------------------------------

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
        spec: ChainSpec = self._specs[pool]
        return spec

    def _hand_out(self, worker: _Worker, work: Work) -> None:
        clips = clips_of(work, self.ledger)
        spec = self._spec(work.pool)
        worker.work, worker.started = work, time.monotonic()
        actor, task_options = worker.actor, self._options(work.pool)
        if work.alone and actor is not None:
            worker.ref = actor.alone.remote(clips[0], work.first, work.timeout_s)
        elif work.alone:
            task = self._alone.options(**task_options)
            worker.ref = task.remote(spec, clips[0], work.first, work.timeout_s)
        elif actor is not None:
            worker.ref = actor.run.remote(clips, work.first, work.last, work.group)
        else:
            task = self._task.options(**task_options)
            worker.ref = task.remote(spec, clips, work.first, work.last, work.group)

    def _take_in(self, worker: _Worker, ref: Any) -> Outcome | None:
        work = worker.work
        try:
            answer = ray.get(ref)
        except _LOST as error:
            self._end(worker)
            if work is not None:
                return Outcome(work, [], worker.killed or _cause(error))
            self._no_start(worker, error)
            return None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (StageBugError, SetupError)) or _is_storage(error.cause):
                raise error.cause from None
            raise
        if worker.ready is not None:
            worker.ready = None
            return None
        worker.work = worker.ref = None
        if worker.actor is None:
            self.workers.remove(worker)
        assert work is not None
        if isinstance(answer, str):
            return Outcome(work, [], answer)
        return Outcome(work, answer if isinstance(answer, list) else [answer])

    def _no_start(self, worker: _Worker, error: Exception) -> None:
        """A worker died while it set up. Once or twice may be chance; more is a broken stage."""
        pool = worker.pool
        self.failed_starts += 1
        if self.failed_starts > 2:
            raise SetupError(f"stage {pool.name}: its workers die while they start ({_cause(error)})")
        log.warning("%s: a worker died while it started (%s); starting another", pool.name, _cause(error))

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            work = worker.work
            if work and not work.alone and not worker.killed and now - worker.started > work.timeout_s:
                worker.killed = "timed out"
                if worker.actor is not None:
                    ray.kill(worker.actor)
                else:
                    ray.cancel(worker.ref, force=True)

    def _end(self, worker: _Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.actor is not None:
            ray.kill(worker.actor)
        elif worker.ref is not None and worker.work is not None:
            ray.cancel(worker.ref, force=True)


def _needs(pool: Pool) -> dict[str, float]:
    return {"CPU": pool.resources.cpus, "GPU": pool.resources.gpus, **pool.resources.custom}


def _is_storage(error: BaseException | None) -> bool:
    from infra.storage import StorageError

    return isinstance(error, StorageError)


def _cause(error: Exception) -> str:
    """Ray's long explanation in two words."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out of memory"
    return "node lost" if isinstance(error, ray.exceptions.NodeDiedError) else "worker crashed"
