"""A source of listed people and small stages that end in real shards, for the tests of takedowns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from tiny_clips import SIZE, tar_of
from tiny_stages import note

from stages import Clip, GroupStage, Rejected, Source, Stage
from stages.download import store_name
from stages.sources import lists

ID = "-aaaaaaaa{:02d}"


@dataclass
class People(Source):
    """Videos -aaaaaaaa00 ...; two of each person; of `several`, the list names two parts with two people."""

    count: int = 6
    several: list[int] = field(default_factory=list)
    licences: list[str] = field(default_factory=lambda: ["CC0"])
    writes: ClassVar[tuple[str, ...]] = ("identity",)

    def clips(self, store):
        for i in range(self.count):
            url = lists.youtube_url(ID.format(i))
            licence = self.licences[i % len(self.licences)]
            if i not in self.several:
                yield lists.unit("people", ID.format(i), url, [], licence, f"p{i // 2}")
                continue
            spans = [
                {"key": f"{n}", "start_s": 10.0 * n, "end_s": 10.0 * n + 5, "identity": name, "licence": text}
                for n, (name, text) in enumerate([("px", licence), ("py", "other")])
            ]
            yield lists.unit("people", ID.format(i), url, spans, licence)


@dataclass
class Fetch(Stage):
    """Puts something into the store as `Download` does."""

    name: ClassVar[str] = "Fetch"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("video", "fingerprint")

    fetches: ClassVar[bool] = True

    def setup(self, store):
        self.store = store

    def lost(self, store, clip):
        return not store.exists(clip.video.removeprefix("store:"))

    def process(self, clip):
        spans = clip.listed.get("spans", [])
        yield from lists.refuse(clip)
        kept = [span["key"] for span in clip.listed.get("spans", [])]
        if spans and not kept:
            return
        note(self.store, self.name, " ".join([clip.id, *kept]))
        place = f"videos/{store_name(lists.source_id(clip.source))}"
        self.store.write(f"{place}/whole.bin", clip.source.encode() * 10)
        self.store.write(f"{place}/index.json", json.dumps({"source": clip.source}).encode())
        yield clip.copy(video=f"store:{place}/whole.bin", fingerprint="f")


@dataclass
class Cut(Stage):
    """Cuts every part, or every video, into `pieces`."""

    pieces: int = 2
    shift_s: float = 0.0
    name: ClassVar[str] = "Cut"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("fps", "width", "height", "frame_times_s")

    def setup(self, store):
        self.store = store

    def process(self, clip):
        note(self.store, self.name, clip.id)
        yield from lists.refuse(clip)
        for part, start, _ in lists.parts(clip):
            for number in range(self.pieces):
                times = max(start, 0) + number + np.arange(3) / 25 + self.shift_s
                name = f"{part.id}_{round(times[0] * 1000):07d}"
                yield part.copy(id=name, fps=25.0, width=640, height=480, frame_times_s=times)


@dataclass
class Frames(Stage):
    """Aligned frames and all that the shards want."""

    name: ClassVar[str] = "Frames"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s",)
    writes: ClassVar[tuple[str, ...]] = (
        "face_boxes", "landmarks", "crop_transforms", "crop_size", "aligned", "cameras", "embeddings",
    )

    def setup(self, store):
        self.store = store

    def process(self, clip):
        note(self.store, self.name, clip.id)
        key = f"aligned/{clip.id}-{clip.digest()[:12]}.tar"
        self.store.write(key, tar_of(clip.id, clip.frame_count))
        random = np.random.default_rng(sum(clip.id.encode()))
        shape: Any = clip.frame_count
        matrix = np.concatenate([np.tile(np.eye(2), (shape, 1, 1)), random.random((shape, 2, 1))], axis=2)
        yield clip.copy(
            face_boxes=random.random((shape, 4), np.float32), crop_size=SIZE, crop_transforms=matrix,
            landmarks=random.random((shape, 68, 2), np.float32), aligned=key,
            cameras=random.random((shape, 25), np.float32), embeddings=random.random((2, 8), np.float32),
        )


@dataclass
class Two(GroupStage):
    """Names people that the list does not know, and keeps the first two clips of each."""

    name: ClassVar[str] = "Two"
    reads: ClassVar[tuple[str, ...]] = ("face_boxes",)
    writes: ClassVar[tuple[str, ...]] = ("identity",)

    def process_group(self, group, clips):
        seen: dict[str, int] = {}
        for clip in clips:
            name = clip.identity or f"auto-{clip.id[:20]}"
            seen[name] = seen.get(name, 0) + 1
            kept: Clip = clip.copy(identity=name)
            yield kept if seen[name] <= 2 else Rejected(kept, "balanced out")
