"""A stage that yields, or raises, what no stage may."""

import itertools
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stages import Clip, Drop, Rejected, Stage


def _cycle(clip):
    clip.extra["all"] = clip.extra
    return clip


def _exit():
    sys.exit(0)


def _raise(error):
    raise error


YIELDS = {
    "id": lambda clip: clip.copy(id="../../evil\n"),
    "number": lambda clip: clip.copy(id=5),
    "nothing": lambda clip: None,
    "nan": lambda clip: clip.copy(extra={"x": float("nan")}),
    "set": lambda clip: clip.copy(extra={"x": {1, 2}}),
    "cycle": _cycle,
    "objects": lambda clip: clip.copy(face_boxes=np.array([object()], object)),
    "rejected": lambda clip: Rejected(clip, 5),
    "exit": lambda clip: _exit(),
    "close": lambda clip: _raise(GeneratorExit()),
    "drop": lambda clip: _raise(Drop(5)),
    "bytes": lambda clip: _raise(Drop(b"x")),
    "detail": lambda clip: _raise(Drop("x", 5)),
}


@dataclass
class Misbehave(Stage):
    how: str = ""
    name: ClassVar[str] = "Misbehave"
    writes: ClassVar[tuple[str, ...]] = ("fps", "frame_times_s")

    def setup(self, store):
        if self.how == "setup":
            _exit()

    def process(self, clip: Clip):
        clip = clip.copy(fps=25.0, frame_times_s=np.arange(3.0))
        if clip.id != "v01":
            yield clip
        elif self.how == "twice":
            yield clip
            yield from itertools.repeat(clip)
        elif self.how == "endless":
            yield from (Clip(f"c{number}", "s", "v") for number in itertools.count())
        else:
            yield YIELDS[self.how](clip)
