"""Who gets the cores: the workers of every pool, and whether there is room for one more.

The driver decides, because on a machine with one or two cores a pool that waits for another's worker would
wait for ever: a pool with work and no worker takes the worker of a pool that is held back or idle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from infra import cluster
from pipelines.pools import Pool, Work

LOOK_S = 5.0                     # how often the nodes of a cluster are looked at
PLACED_S = 10.0                  # in which Ray finds a place where there is one


@dataclass(eq=False)
class Worker:
    """An actor, or the place of one task. References are Ray's, of calls under way."""

    pool: Pool
    actor: Any = None
    where: Any = None                        # answers when the actor has a place
    ready: Any = None                        # answers when it is set up
    work: Work | None = None
    ref: Any = None                          # of the work
    node: str = ""                           # of an actor
    since: float = field(default_factory=time.monotonic)   # asked for, or given its work
    killed: str = ""                         # why we ended it

    @property
    def waits_for(self) -> Any:
        """The reference that is answered next."""
        return self.where or self.ready or self.ref

    @property
    def idle(self) -> bool:
        return self.work is None and self.ready is None


class Places:
    """The workers there are, and the room there is."""

    def __init__(self, local: bool) -> None:
        self.local = local
        self.workers: list[Worker] = []
        self.have: dict[str, float] = {}     # of all nodes
        self.nodes: dict[str, dict[str, float]] = {}   # those that stay, by id
        self._looked = 0.0
        self.look()

    def look(self, at_once: bool = False) -> bool:
        """Look at the nodes again when it is time to; those of this machine do not change."""
        again_s = math.inf if self.local else LOOK_S
        if self._looked and time.monotonic() - self._looked < again_s and not at_once:
            return False
        self._looked = time.monotonic()
        self.nodes = cluster.nodes()
        self.have = cluster.total()
        return True

    def of(self, pool: Pool) -> list[Worker]:
        return [worker for worker in self.workers if worker.pool is pool]

    def idle(self, pool: Pool) -> Worker | None:
        """An actor that could take work now."""
        return next((w for w in self.workers if w.pool is pool and w.actor and w.idle), None)

    def most(self, pool: Pool) -> int:
        """How many workers the pool may have."""
        limit, need = pool.steps[0].workers.max, {key: n for key, n in needs(pool).items() if n}
        if need:
            room = max(1, sum(_times(node, need) for node in self.nodes.values()))
            room = max(room, _times(self.have, need)) if cluster.grows() else room
        else:
            room = 4 * max(1, int(self.have.get("CPU", 1)))
        return min(room, limit) if limit else room

    def fits(self, pool: Pool, without: Collection[Worker] = ()) -> bool:
        """Whether there is room for one more worker of the pool, when those `without` have ended."""
        staying = [worker for worker in self.workers if worker not in without]
        asked = not self.local and not self.of(pool)
        for key, value in needs(pool).items():
            if asked and value > self.have.get(key, 0.0):
                continue  # no node has it: a cluster may grow when it is asked
            used = sum(needs(worker.pool).get(key, 0.0) for worker in staying)
            if value and used + value > self.have.get(key, 0.0) + 1e-9:
                return False
        return self.placeable(pool, without)

    def placeable(self, pool: Pool, without: Collection[Worker] = ()) -> bool:
        """Whether a node has room for a worker of the pool beside the actors that live there: tasks end."""
        need = needs(pool)
        if cluster.grows() or not any(_times(node, need) for node in self.nodes.values()):
            return True                      # it is up to a node that is to come
        free = {name: dict(node) for name, node in self.nodes.items()}
        for worker in self.workers:
            if worker.node in free and worker not in without:
                for key, value in needs(worker.pool).items():
                    free[worker.node][key] = free[worker.node].get(key, 0.0) - value
        return any(_times(node, need) for node in free.values())

    def spare(self, needy: Pool, blocked: Collection[Pool], asked: bool = False) -> list[Worker] | None:
        """Idle workers that make room for the needy pool: of pools that are `blocked`, and all but one of the
        others. None when even all of them would not do, so that none ends for nothing. `asked`: the worker
        is among ours already, and waits for a place."""
        enough = self.placeable if asked else self.fits
        spare: list[Worker] = []
        for worker in self.workers:
            left = sum(other.pool is worker.pool and other not in spare for other in self.workers)
            if worker.pool is not needy and worker.idle and (left > 1 or worker.pool in blocked):
                spare.append(worker)
                if enough(needy, spare):
                    return spare
        return None

    def unplaced(self) -> list[Worker]:
        """Workers for which Ray seems to find no place, as others hold a part of every node."""
        late = time.monotonic() - PLACED_S
        waiting = [w for w in self.workers if w.since < late and (w.where or not w.actor)]
        return [worker for worker in waiting if not self.placeable(worker.pool)]


def needs(pool: Pool) -> dict[str, float]:
    """What one worker of a pool takes."""
    return {"CPU": pool.resources.cpus, "GPU": pool.resources.gpus, **pool.resources.custom}


def _times(have: dict[str, float], need: dict[str, float]) -> int:
    """How often a need fits; a large number for no need at all."""
    return min((math.floor(have.get(key, 0.0) / n + 1e-9) for key, n in need.items() if n), default=1 << 20)
