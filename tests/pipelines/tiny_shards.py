"""A stage that makes finished clips from nothing, slowly, so that real shards can be written of them."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tiny_dataset import clip_in

from stages import Stage
from stages.base import PACE
from stages.shards import WriteShards

FRAMES = 20


@dataclass
class Finish(Stage):
    seconds: float = field(default=0.0, metadata=PACE)
    name: ClassVar[str] = "Finish"
    writes: ClassVar[tuple[str, ...]] = (
        "fps", "width", "height", "frame_times_s", "face_boxes", "landmarks", "crop_transforms", "crop_size",
        "aligned", "cameras", "identity",
    )

    def setup(self, store):
        self.store = store

    def process(self, clip):
        with Path(self.store.root, "calls.log").open("a") as file:
            file.write(f"Finish {clip.id}\n")
        time.sleep(self.seconds)
        yield clip_in(self.store, clip.id, FRAMES, source=clip.source, video=clip.video)


@dataclass
class SlowShards(WriteShards):
    """`WriteShards` that takes its time, so that two runs are at it at once."""

    seconds: float = field(default=0.0, metadata=PACE)
    name: ClassVar[str] = "WriteShards"

    def process_group(self, group, clips):
        time.sleep(self.seconds)
        yield from super().process_group(group, clips)
