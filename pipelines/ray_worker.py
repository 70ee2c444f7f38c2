"""What runs in Ray's workers: tasks for stages that hold nothing, actors for those that hold models."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from pipelines.alone import Death, run_alone
from pipelines.work import Chain, ChainSpec, Piece
from stages.clip import Clip

_chains: dict[str, Chain] = {}               # of tasks, by spec, per worker process
_NOWHERE = Path(os.devnull).open("w")        # noqa: SIM115 - open for as long as the process lives


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """End this process when it takes longer, even in native code that never gives Python back its lock."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_NOWHERE)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(
    chain: Chain, clips: list[Clip], first: int, last: int, group: str | None, timeout_s: float
) -> list[Piece]:
    with _within(timeout_s):
        return chain.run(clips[0], first, last) if group is None else chain.run_group(group, clips)


def task(
    spec: ChainSpec, clips: list[Clip], first: int, last: int, group: str | None, timeout_s: float
) -> list[Piece]:
    """One work in a Ray task. Stages without `setup` hold nothing, but building them once is enough."""
    name = repr(spec)
    if name not in _chains:
        _chains[name] = spec.build()
    return _run(_chains[name], clips, first, last, group, timeout_s)


def alone(
    spec: ChainSpec, clips: list[Clip], stage: int, group: str | None, timeout_s: float
) -> list[Piece] | Death:
    """One work in a process of its own, below a Ray task."""
    return run_alone(spec, clips, stage, group, timeout_s)


class Holder:
    """An actor that holds set-up stages."""

    def __init__(self, spec: ChainSpec) -> None:
        self.spec = spec

    def where(self) -> str:
        """The node that it was put on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def setup(self) -> None:
        """Load the models. Apart from the constructor, so that its exceptions arrive as they are."""
        self.chain = self.spec.build()
        self.chain.setup()

    def alone(
        self, clips: list[Clip], stage: int, group: str | None, timeout_s: float
    ) -> list[Piece] | Death:
        """In a process of its own, which has the devices of this actor."""
        return run_alone(self.spec, clips, stage, group, timeout_s)

    def run(
        self, clips: list[Clip], first: int, last: int, group: str | None, timeout_s: float
    ) -> list[Piece]:
        """One work in this process."""
        return _run(self.chain, clips, first, last, group, timeout_s)
