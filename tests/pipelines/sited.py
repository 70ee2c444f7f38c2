"""Stages that note where and when they worked, for the tests of a cluster of several nodes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stages import Stage


def node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


@dataclass
class Fetched(Stage):
    """Holds nothing: tasks."""

    log: str = ""
    seconds: float = 0.2
    name: ClassVar[str] = "Fetched"
    writes: ClassVar[tuple[str, ...]] = ("extra.fetched",)

    def process(self, clip):
        began = time.time()
        self.note(clip.id, began, "began")
        time.sleep(self.seconds)
        self.note(clip.id, began, "ended")
        clip.extra[self.name.lower()] = 1
        yield clip

    def note(self, unit: str, began: float, what: str) -> None:
        line = {"stage": self.name, "unit": unit, "node": node(), "began": began, "what": what}
        line["at"] = time.time()
        with Path(self.log).open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Held(Fetched):
    """Holds something: actors."""

    name: ClassVar[str] = "Held"
    writes: ClassVar[tuple[str, ...]] = ("extra.held",)

    def setup(self, store):
        self.store = store

    def process(self, clip):
        yield from super().process(clip)


@dataclass
class Seen(Held):
    """Another pool of actors."""

    name: ClassVar[str] = "Seen"
    writes: ClassVar[tuple[str, ...]] = ("extra.seen",)

    def process(self, clip):
        yield from super().process(clip)
