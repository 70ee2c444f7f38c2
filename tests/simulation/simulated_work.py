"""The run that is simulated: three listed videos, a small stage, the real shards."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from infra.storage import Storage
from stages import Clip, Drop, Rejected, Source, Stage
from stages.shards import WriteShards, aligned_frames

WORKFLOW = """\
storage: {{root: {root}, lease_s: 10}}
source: {{use: "simulated_work:Three"}}
stages:
  - use: simulated_work:Frames
  - {{use: simulated_work:Shards, buckets: 2}}
train: {{variant: "model.config:tiny"}}
"""
FRAMES = 1
STATES = {                                   # what must become of every unit
    "Frames": {"a": "ok", "c": "rejected: no face", "e": "ok"},
    "Shards": {"a-0": "ok", "e-0": "ok"},
}  # fmt: skip


@dataclass
class Three(Source):
    """Of three videos the first `count`; the second one is of no use, the others go into two shards."""

    count: int = 3

    def clips(self, store: Storage) -> Iterator[Clip]:
        for name in "ace"[: self.count]:
            yield Clip(name, f"{name}.mp4", f"/none/{name}.mp4", "1", licence="CC0")


@dataclass
class Frames(Stage):
    """One clip of a video, its frames in the store, and as little else as the shards can do with."""

    name: ClassVar[str] = "Frames"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("fps", "frame_times_s", "crop_size", "aligned", "identity")

    def setup(self, store: Storage) -> None:
        self.store = store

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        if clip.id == "c":
            raise Drop("no face")
        unit = f"{clip.id}-0"
        key = f"aligned/{unit}-{clip.digest()[:12]}.tar"
        self.store.write(key, frames_of(unit))
        times = np.arange(FRAMES) / 25
        yield clip.copy(
            id=unit, fps=25.0, frame_times_s=times, crop_size=8, aligned=key, identity=f"person-{unit}"
        )


@dataclass
class Shards(WriteShards):
    """The real ones, with samples that cost no time: the frames of the store and a word."""

    name: ClassVar[str] = "Shards"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s", "crop_size", "aligned", "identity")

    def _members(self, clip: Clip, summary: dict[str, Any]) -> dict[str, bytes]:
        members = {f"{i:04d}.jpg": data for i, data in enumerate(aligned_frames(self._store, clip))}
        return {**members, "json": json.dumps({"clip": clip.id}).encode()}


@functools.cache
def frames_of(unit: str) -> bytes:
    """A tar as `AlignCrop` keeps it, but of pictures that nobody decodes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(FRAMES):
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            data = f"picture {index} of {unit}".encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
