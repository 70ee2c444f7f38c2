"""What must be true at every change of the store, whoever makes it and whatever went wrong before."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulated_store import Objects
from simulated_world import Process, World

FOR_GOOD = ("manifest/", "dataset/", "shards/", "aligned/")     # what no run deletes
LATEST = "dataset/latest.json"
_NAMED = re.compile(rb'"(aligned/[^"]+)"')
_SIGN = re.compile(r"lease/(\d{8})\.(beat|end)\.json")
_LEASE = re.compile(r"lease/(\d{8})\.json")


@dataclass
class Watch:
    """`right`: what the undisturbed run leaves; whatever has one of its names holds the same bytes."""

    world: World
    right: Mapping[str, bytes]
    collecting: bool = False                 # a `pv3d gc` is among the processes
    owners: dict[int, Process] = field(default_factory=dict)    # by the number of a lease, as the others:
    ended: dict[int, bool] = field(default_factory=dict)
    expires_s: dict[int, float] = field(default_factory=dict)
    sign_s: dict[int, float] = field(default_factory=dict)      # the last sign of life
    followed_alive: bool = False             # of which two runs might have believed to have the store
    segments: set[str] = field(default_factory=set)             # that were committed, whole
    events: Counter[str] = field(default_factory=Counter)       # what came about, for who asks whether it did
    silent_s: dict[int, float] = field(default_factory=dict)    # for how long there was none, at most

    def write(self, objects: Objects, key: str, data: bytes) -> None:
        """Before an object is made or replaced."""
        if key.startswith("manifest/") or (key.startswith("dataset/") and key != LATEST):
            self._bad(f"{key} is written, not created")
        elif key.startswith(FOR_GOOD) and key != LATEST and self.right.get(key, data) != data:
            self._bad(f"{key} holds other bytes than after an undisturbed run")
        elif key == LATEST:
            self._latest(objects, data)
        elif key.startswith("ledger/") and key.endswith(".jsonl"):
            self._segment(objects, key, data)
        elif match := _SIGN.fullmatch(key):
            self._sign(int(match[1]), match[2])

    def create(self, objects: Objects, key: str, data: bytes) -> None:
        """Before an object comes into being by the call that has one winner."""
        if key.startswith(("manifest/", "dataset/")) and self.right.get(key, data) != data:
            self._bad(f"{key} holds other bytes than after an undisturbed run")
        if key.startswith("manifest/"):
            self._manifest(objects, key, data)
        elif key.startswith("dataset/"):
            for name in json.loads(data)["manifests"]:
                if name not in objects.held:
                    self._bad(f"{key} names {name}, which is not there")
        elif match := _LEASE.fullmatch(key):
            self._lease(int(match[1]), data)

    def delete(self, objects: Objects, key: str) -> None:
        """Before an object goes."""
        if key not in objects.held:
            return
        self.events["segment merged"] += key.endswith(".jsonl")
        self.events["orphan collected"] += self.collecting and key.startswith(("shards/", "ledger/"))
        if not key.startswith(FOR_GOOD):
            return
        if not self.collecting:
            self._bad(f"{key} is deleted by a run")
        elif key in named(objects.held):
            self._bad(f"{key} is deleted, but named")

    def _bad(self, text: str) -> None:
        self.world.violation(text)

    def _manifest(self, objects: Objects, key: str, data: bytes) -> None:
        said = json.loads(data)
        for name in (said["tar"], said["index"]):
            if name not in objects.held:
                self._bad(f"{key} is created before {name}")
                return
        tar = objects.held[said["tar"]]
        if hashlib.sha256(tar).hexdigest() != said["sha256"] or len(tar) != said["bytes"]:
            self._bad(f"{key} does not tell what {said['tar']} holds")

    def _latest(self, objects: Objects, data: bytes) -> None:
        self.events["pointer moved"] += objects.held.get(LATEST, data) != data
        version = f"dataset/{json.loads(data)['version']}.json"
        if version not in objects.held:
            self._bad(f"{LATEST} names {version}, which is not there")

    def _segment(self, objects: Objects, key: str, data: bytes) -> None:
        if key in self.segments:             # once more, by a request that was late: it may be merged by now
            return
        self.segments.add(key)
        arrays = objects.held.get(key.removesuffix("jsonl") + "npz")
        header = json.loads(data.partition(b"\n")[0])
        if arrays is None or hashlib.sha256(arrays).hexdigest() != header["arrays_sha256"]:
            self._bad(f"{key} is committed before its arrays")
            return
        for name in _NAMED.findall(arrays):
            if name.decode() not in objects.held:
                self._bad(f"{key} names {name.decode()}, which is not there")

    def _lease(self, number: int, data: bytes) -> None:
        """Nobody follows a run that has shown signs of life all the time, and has not ended."""
        me, before = self.world.processes[json.loads(data)["pid"]], number - 1
        if before in self.owners and not self.ended[before]:
            held_by = self.owners[before]
            known_dead = not held_by.alive and held_by.host == me.host
            silent_s = max(self.silent_s[before], self.world.now_s - self.sign_s[before])
            if not known_dead and silent_s < self.expires_s[before]:
                self._bad(f"lease {number} is taken by {me}; {held_by} was silent for {silent_s:.0f} s only")
            self.events["lease taken over"] += 1
            self.followed_alive |= held_by.alive
        self.owners[number], self.ended[number] = me, False
        self.expires_s[number] = json.loads(data)["expires_s"]
        self.sign_s[number], self.silent_s[number] = self.world.now_s, 0.0

    def _sign(self, number: int, part: str) -> None:
        if number in self.owners:
            silent_s = self.world.now_s - self.sign_s[number]
            self.silent_s[number] = max(self.silent_s[number], silent_s)
            self.sign_s[number] = self.world.now_s
            self.ended[number] |= part == "end"


def named(held: Mapping[str, bytes]) -> set[str]:
    """Every object below shards/, manifest/ and aligned/ that something names which counts."""
    found: set[str] = set()
    for key, data in held.items():
        if key.startswith("manifest/"):
            said = json.loads(data)
            found.update((said["tar"], said["index"]))
        elif key.startswith("dataset/") and key != LATEST:
            found.update(json.loads(data)["manifests"])
        elif key == LATEST:
            found.add(f"dataset/{json.loads(data)['version']}.json")
        elif key.startswith("ledger/") and key.endswith(".npz") and key.removesuffix("npz") + "jsonl" in held:
            found.update(name.decode() for name in _NAMED.findall(data))
    return found
