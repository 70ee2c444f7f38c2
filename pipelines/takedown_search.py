"""Find what a takedown list means, of all that a store holds: records, shards, frames and downloads."""

from __future__ import annotations

import functools
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from infra.storage import Storage
from pipelines import forget
from pipelines.listing import listed
from pipelines.policy import Policy
from pipelines.segments import ClipFile, rows_of
from pipelines.workflow import Workflow
from stages.clip import Clip
from stages.dataset import TOMBSTONE
from stages.download import store_name
from stages.takedown import Entry

log = logging.getLogger(__name__)

NAMES = ("clip_id", "source", "identity")    # of a sample, by which it is looked for


@dataclass
class Found:
    """What of a store must go."""

    units: dict[str, set[str]] = field(default_factory=dict)     # id -> hashes of the entries that mean it
    shards: dict[str, list[str]] = field(default_factory=dict)   # manifest -> clips in it
    files: set[str] = field(default_factory=set)                 # frames, downloads, shards not committed
    places: dict[str, tuple[float, float]] = field(default_factory=dict)     # clip -> its seconds

    def __bool__(self) -> bool:
        return bool(self.units or self.shards or self.files)

    def note(self, unit: str, entry: Entry | None) -> bool:
        if entry is not None:
            self.units.setdefault(unit, set()).add(entry.hash)
        return entry is not None


def find(workflow: Workflow, store: Storage, policy: Policy) -> Found:
    """Everything that the list means. Reads the whole ledger and all manifests."""
    found = Found()
    if not policy.takedown:
        return found
    _listing(workflow, store, policy, found)
    manifests = dict(_manifests(store))
    for manifest in manifests.values():
        for sample in manifest["samples"]:
            entry = policy.find(sample["clip_id"], sample["source"], sample["identity"])
            found.note(sample["clip_id"], entry)
    present = _ledger(store, policy, found)
    for key, manifest in manifests.items():
        clips = [s["clip_id"] for s in manifest["samples"] if s["clip_id"] in found.units]
        if clips:
            found.shards[key] = clips
            present.update(clips)
    _files(store, policy, found, present)
    found.units = {unit: causes for unit, causes in found.units.items() if unit in present}
    return found


def _listing(workflow: Workflow, store: Storage, policy: Policy, found: Found) -> None:
    """Note the listed videos that are meant as a whole; the policy learns the names of all."""
    try:
        for ref in listed(workflow, store, policy):
            found.note(ref.id, policy.find(ref.id, ref.source, ref.identity))
    except ValueError as error:
        log.warning("takedown: the source cannot be listed (%s); only the store is searched", error)


def _manifests(store: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in store.list("manifest"):
        try:
            manifest = json.loads(store.read(key))
            gone = TOMBSTONE in manifest
            whole = gone or all(isinstance(s[name], str) for s in manifest["samples"] for name in NAMES)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(f"{key} in {store.root} is damaged; bring it back, or remove its shard")
        if not gone:
            yield key, manifest


def _ledger(store: Storage, policy: Policy, found: Found) -> set[str]:
    """Note what the ledger knows of, and the files of it; returns the ids of all that it holds."""
    children: dict[str, set[str]] = {}
    present: set[str] = set()
    for key, records in forget.segments(store):
        for record, rows in rows_of(records):
            present.add(record.unit)
            found.note(record.unit, policy.find(record.unit, record.source))
            for row, out in zip(rows, record.outputs, strict=True):
                if out.digest:               # else it was taken out before
                    present.add(out.id)
                    children.setdefault(record.unit, set()).add(out.id)
                    entry = policy.find(out.id, record.source, out.identity)
                    load = functools.partial(_read, store, key, row)
                    found.note(out.id, entry or policy.find_place(out.id, load))
    waiting = list(found.units)
    while waiting:
        unit = waiting.pop()
        for child in children.get(unit, ()):
            causes = found.units.setdefault(child, set())
            if not found.units[unit] <= causes:
                causes |= found.units[unit]
                waiting.append(child)
    _files_of_records(store, found)
    return present


def _files_of_records(store: Storage, found: Found) -> None:
    """The downloads and frames that the clips themselves name."""
    for key, records in forget.segments(store):
        rows = [
            row
            for record, of_record in rows_of(records)
            for row, out in zip(of_record, record.outputs, strict=True)
            if out.digest and (out.id in found.units or record.unit in found.units)
        ]
        held = forget.clips(store, key) if rows else None
        if held is not None:
            for clip in (_clip(held, row) for row in rows):
                names = (clip.video.removeprefix("store:"), clip.aligned)
                found.files |= {name for name in names if _ours(store, name)}
                if clip.id in found.units and clip.frame_times_s is not None:
                    times = clip.frame_times_s
                    found.places[clip.id] = (float(times[0]), float(times[-1]))


def _clip(held: ClipFile, row: int) -> Clip:
    return held.clip(row, ("frame_times_s",))


def _read(store: Storage, key: str, row: int) -> Clip:
    """A clip with its times; an empty one when it cannot be read."""
    held = forget.clips(store, key)
    return _clip(held, row) if held is not None else Clip("", "", "")


def _ours(store: Storage, name: str) -> bool:
    return name.startswith(("videos/", "aligned/")) and store.exists(name)


def _files(store: Storage, policy: Policy, found: Found, present: set[str]) -> None:
    """What lies in the store under a name that tells whose it is."""
    folders = tuple(f"videos/{store_name(source)}/" for source in policy.takedown.videos())
    if folders:
        found.files |= {name for name in store.list("videos") if name.startswith(folders)}
    for name in store.list("aligned"):
        unit = name.removeprefix("aligned/").rpartition("-")[0]
        if unit in found.units or found.note(unit, policy.find(unit)):
            found.files.add(name)
            present.add(unit)
    keys = set(store.list("manifest"))
    for name in list(store.list("shards")):
        stem = name.removeprefix("shards/").split(".", 1)[0]
        if not name.endswith(".tar") or f"manifest/{stem}.json" in keys:
            continue
        if any(clip in found.units or policy.find(clip) for clip in _clips_of(store, name)):
            found.files |= {name, f"shards/{stem}.index.json"}


def _clips_of(store: Storage, tar: str) -> set[str]:
    """The clips of a shard that was never committed."""
    try:
        with store.local(tar) as path, tarfile.open(path, "r:") as members:
            return {member.name.split(".", 1)[0] for member in members}
    except tarfile.ReadError:
        log.warning("takedown: %s cannot be read", tar)
        return set()
