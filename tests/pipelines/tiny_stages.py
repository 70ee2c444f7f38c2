"""Small real stages for the tests of the runner. Each call leaves a line in `calls.log` of the store."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from stages import Barred, Clip, Drop, GroupStage, Rejected, Resources, Source, Stage, TryLater
from stages.base import ACCESS, PACE


def note(store, stage, unit):
    Path(store.root).mkdir(parents=True, exist_ok=True)
    with Path(store.root, "calls.log").open("a") as file:
        file.write(f"{stage} {unit}\n")


@dataclass
class Numbers(Source):
    """`count` videos v00, v01, ...; `changed` has another fingerprint than usual."""

    count: int = 4
    changed: str = ""

    def clips(self, store):
        for i in range(self.count):
            name = f"v{i:02d}"
            state = "new" if name == self.changed else "old"
            yield Clip(name, f"list/{name}.mp4", f"/none/{name}.mp4", state)


@dataclass
class Cut(Stage):
    """Cuts every video into `parts`; the last part is rejected when `short`."""

    parts: int = 2
    short: bool = False
    name: ClassVar[str] = "Cut"
    writes: ClassVar[tuple[str, ...]] = ("fps", "frame_times_s")

    def process(self, clip):
        for part in range(self.parts):
            out = clip.copy(id=f"{clip.id}-{part}", fps=25.0, frame_times_s=np.arange(3.0) + part)
            if self.short and part == self.parts - 1:
                yield Rejected(out, "too short", "3 frames")
            else:
                yield out


@dataclass
class Mark(Stage):
    """Holds a model (a number), and writes boxes. Misbehaves on the units that are named."""

    value: float = 1.0
    drop: tuple[str, ...] = ()
    crash: tuple[str, ...] = ()
    crash_once: tuple[str, ...] = ()
    bug: tuple[str, ...] = ()
    hang: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    seconds: float = 0.0
    refuse: str = ""
    name: ClassVar[str] = "Mark"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s",)
    writes: ClassVar[tuple[str, ...]] = ("face_boxes", "extra.pid")

    def setup(self, store):
        if self.refuse:
            raise ValueError(self.refuse)
        self.store = store

    def process(self, clip):
        note(self.store, self.name, clip.id)
        time.sleep(self.seconds)
        if clip.id in self.drop:
            raise Drop("two faces", "2")
        if clip.id in self.later and not Path(self.store.root, "there").exists():
            raise TryLater("throttled", "429")
        if clip.id in self.bug:
            raise KeyError("no such thing")
        if clip.id in self.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        if clip.id in self.leave:
            os._exit(3)
        if clip.id in self.crash_once:
            flag = Path(self.store.root, f"{clip.id}.crashed")
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGSEGV)
        if clip.id in self.hang:
            time.sleep(3600)
        clip.face_boxes = np.full((clip.frame_count, 4), self.value, np.float32)
        yield clip


@dataclass
class Second(Mark):
    """The same once more, to be fused with the first."""

    name: ClassVar[str] = "Second"
    reads: ClassVar[tuple[str, ...]] = ("face_boxes",)
    writes: ClassVar[tuple[str, ...]] = ("landmarks",)


@dataclass
class Other(Mark):
    """In the place of the first."""

    name: ClassVar[str] = "Other"


@dataclass
class Elsewhere(Second):
    """Other needs, so a pool of its own."""

    name: ClassVar[str] = "Elsewhere"
    resources: ClassVar[Resources] = Resources(cpus=0.5)


@dataclass
class Keep(GroupStage):
    """Keeps the first `most` of all."""

    most: int = 100
    name: ClassVar[str] = "Keep"
    reads: ClassVar[tuple[str, ...]] = ("face_boxes",)
    writes: ClassVar[tuple[str, ...]] = ("identity",)

    def setup(self, store):
        self.store = store

    def process_group(self, group, clips):
        note(self.store, self.name, group)
        for number, clip in enumerate(clips):
            if number < self.most:
                clip.identity = f"person{number % 2}"
                yield clip
            else:
                yield Rejected(clip, "balanced out")


@dataclass
class Write(GroupStage):
    """One text object per group (last digit of the id), and a list of all at the end."""

    title: str = "t"
    crash_groups: tuple[str, ...] = field(default=())
    name: ClassVar[str] = "Write"
    reads: ClassVar[tuple[str, ...]] = ("identity",)
    writes: ClassVar[tuple[str, ...]] = ("shard",)

    def setup(self, store):
        self.store = store

    def group(self, clip):
        return clip.id[-1]

    def process_group(self, group, clips):
        note(self.store, self.name, group)
        if group in self.crash_groups:
            os.kill(os.getpid(), signal.SIGSEGV)
        text = "".join(f"{self.title} {clip.id} {clip.face_boxes.sum()}\n" for clip in clips)
        self.store.write(f"out/{group}.txt", text.encode())
        for clip in clips:
            clip.shard = f"out/{group}.txt"
            yield clip

    def finish(self, store, clips):
        lines = [f"{clip.id} {clip.shard}\n" for clip in clips]
        note(store, "finish", len(lines))
        store.write("out/all.txt", "".join(lines).encode())


@dataclass
class Guarded(Mark):
    """Marks, but the units that are named only for those who have an account."""

    guarded: tuple[str, ...] = ()
    account: str = field(default="", metadata=ACCESS)
    patience: float = field(default=1.0, metadata=PACE)
    name: ClassVar[str] = "Guarded"
    timeout_s: ClassVar[float] = 77.0

    def process(self, clip):
        if clip.id in self.guarded and not self.account:
            note(self.store, "Asked", clip.id)
            raise Barred("gated: members only")
        yield from super().process(clip)


@dataclass
class Fetch(Stage):
    """Brings every video into the store, unless "offline" is there; notes how many videos are there then."""

    keep: bool = field(default=True, metadata=PACE)
    name: ClassVar[str] = "Fetch"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("video",)
    fetches: ClassVar[bool] = True

    def setup(self, store):
        self.store = store

    def lost(self, store, clip):
        return not store.exists(clip.video.removeprefix("store:"))

    def release(self, store, clip):
        if not self.keep:
            store.delete(clip.video.removeprefix("store:"))

    def process(self, clip):
        note(self.store, self.name, clip.id)
        if Path(self.store.root, "offline").exists():
            raise Drop("gone: removed")
        self.store.write(f"videos/{clip.id}.mp4", b"film")
        note(self.store, "present", len(list(self.store.list("videos"))))
        yield clip.copy(video=f"store:videos/{clip.id}.mp4")


@dataclass
class Look(Mark):
    """Marks, from the pixels of the video."""

    name: ClassVar[str] = "Look"
    reads: ClassVar[tuple[str, ...]] = ("video", "frame_times_s")

    def process(self, clip):
        if not self.store.exists(clip.video.removeprefix("store:")):
            raise TryLater("video missing")
        yield from super().process(clip)
