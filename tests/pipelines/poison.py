"""Stages that end their workers, or never end themselves, on the units that are named."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from stages import GroupStage, Stage


def child(store) -> None:
    """Start a process that stays, and leave its number in the store."""
    process = subprocess.Popen(["sleep", "600"])
    Path(store.root).mkdir(parents=True, exist_ok=True)
    with Path(store.root, "children.log").open("a") as file:
        file.write(f"{process.pid}\n")


def take_all_memory(bytes_at_once: int = 64 << 20) -> None:
    taken = []
    while True:
        taken.append(np.ones(bytes_at_once, np.uint8))
        time.sleep(0.02)


def go_wrong(how: str, store) -> None:
    if how == "segv":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "leave":
        os._exit(3)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "allocate":
        np.ones(1 << 50, np.uint8)
    elif how == "memory":
        take_all_memory()
    elif how == "memory of a group":
        Path(os.environ["PV3D_TEST_CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
        take_all_memory()
    elif how == "bug":
        raise KeyError("no such thing")
    elif how == "native":
        ctypes.PyDLL(None).sleep(600)            # PyDLL keeps the interpreter's lock
    elif how == "child":
        child(store)
        time.sleep(600)
    elif how == "child and crash":
        child(store)
        ctypes.string_at(0)


@dataclass
class Plain(Stage):
    """Holds nothing: tasks."""

    how: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    seconds: float = 0.0
    name: ClassVar[str] = "Plain"
    writes: ClassVar[tuple[str, ...]] = ("extra.plain",)

    def process(self, clip):
        time.sleep(self.seconds)
        go_wrong(self.how.get(clip.id, ""), Folder(self.folder))
        clip.extra["plain"] = 1
        yield clip


@dataclass
class Hold(Plain):
    """Holds something: actors."""

    name: ClassVar[str] = "Hold"
    writes: ClassVar[tuple[str, ...]] = ("extra.hold",)

    def setup(self, store):
        self.store = store

    def process(self, clip):
        yield from super().process(clip)


@dataclass
class Bundle(GroupStage):
    """Groups by the last digit of the id."""

    how: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    name: ClassVar[str] = "Bundle"
    writes: ClassVar[tuple[str, ...]] = ("shard",)

    def group(self, clip):
        return clip.id[-1]

    def process_group(self, group, clips):
        go_wrong(self.how.get(group, ""), Folder(self.folder))
        for clip in clips:
            yield clip.copy(shard=group)


@dataclass
class Folder:
    root: str
