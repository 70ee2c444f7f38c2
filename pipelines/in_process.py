"""The plainest executor: one work at a time, in this process."""

from __future__ import annotations

from infra.storage import Storage
from pipelines.groups import clips_of
from pipelines.ledger import Ledger
from pipelines.pools import Crew, Outcome, Pool
from pipelines.work import Chain, OutOfMemoryError


class InProcess:
    """Does one work at a time, here. For tests and debugging: a native crash takes everything with it."""

    window = 4

    def __init__(self, store: Storage, ledger: Ledger) -> None:
        self.store = store
        self.ledger = ledger
        self._chains: dict[int, Chain] = {}
        self._ended: list[Outcome] = []

    def schedule(self, pools: list[Pool]) -> None:
        pool = next((pool for pool in reversed(pools) if pool.queue), None)
        if pool is None:
            return
        if id(pool) not in self._chains:
            stages = [step.stage for step in pool.steps]
            names = [step.name for step in pool.steps]
            self._chains[id(pool)] = Chain(stages, names, self.store, exits=False)
        chain = self._chains[id(pool)]
        work = pool.queue.popleft()
        clips = clips_of(work, self.ledger)
        try:
            if work.group is None:
                pieces = chain.run(clips[0], work.first, work.last)
            else:
                pieces = chain.run_group(work.group, clips)
        except OutOfMemoryError as error:
            self._ended.append(Outcome(work, [], "out of memory", str(error)))
        else:
            self._ended.append(Outcome(work, pieces))

    def poll(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    @property
    def busy(self) -> bool:
        return bool(self._ended)

    def crew(self, pools: list[Pool]) -> Crew:
        return {}

    def release(self, pools: list[Pool]) -> None:
        for pool in pools:
            self._chains.pop(id(pool), None)

    def close(self) -> None:
        self._chains.clear()
