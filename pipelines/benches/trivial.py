"""Stages that do next to nothing, for `pv3d bench ledger`: what is left is what the pipeline itself costs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from infra.storage import Storage
from stages.base import GroupStage, Rejected, Stage
from stages.clip import Clip


@dataclass
class Cut(Stage):
    """The whole video is one clip of a few frames."""

    name: ClassVar[str] = "Cut"
    writes: ClassVar[tuple[str, ...]] = ("fps", "frame_times_s")

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        clip.id, clip.fps, clip.frame_times_s = f"{clip.id}-0", 25.0, np.arange(4) / 25
        yield clip


@dataclass
class Mark(Stage):
    """A box per frame."""

    name: ClassVar[str] = "Mark"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s",)
    writes: ClassVar[tuple[str, ...]] = ("face_boxes",)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        clip.face_boxes = np.zeros((clip.frame_count, 4), np.float32)
        yield clip


@dataclass
class Bundle(GroupStage):
    """Names the group of a clip, a hash of its id, as `WriteShards` does."""

    buckets: int = 16
    name: ClassVar[str] = "Bundle"
    reads: ClassVar[tuple[str, ...]] = ("face_boxes",)
    writes: ClassVar[tuple[str, ...]] = ("shard",)

    def group(self, clip: Clip) -> str:
        number = int(hashlib.sha256(clip.id.encode()).hexdigest()[:16], 16)
        return f"{number % self.buckets:05d}"

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        for clip in clips:
            clip.shard = group
            yield clip

    def finish(self, store: Storage, clips: Iterator[Clip]) -> None:
        store.write("bundles.txt", "\n".join(sorted({clip.shard for clip in clips})).encode())
