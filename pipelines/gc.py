"""`pv3d gc`: delete what interrupted runs and other settings left in the store, when it is old enough.

    datasets    versions beyond the last `--keep`, with the shards that only these name
    manifests   of shards that no version of the dataset names and no record
    shards      tars and indices without a manifest
    ledger      segments all of whose records are superseded or of clips that are gone; halves of segments
    aligned     frames and sound of clips that are gone
    statistics  of real videos, of versions of the dataset that are gone
    temporary   files and uploads that were never finished
    leases      of runs that are over

What is younger than the grace time stays, whatever it is: a run may be about to name it. Tombstones of
takedowns stay for good.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from infra import lease
from infra.json_values import parsed, parsed_object
from infra.storage import Entry, Storage
from pipelines.policy import FOLDER as TAKEDOWNS
from pipelines.policy import STATE, read_record
from pipelines.reachable import reachable
from pipelines.segments import SCHEMA
from pipelines.workflow import Workflow
from stages.dataset import LATEST, TOMBSTONE
from stages.metrics.reference import FOLDER as STATISTICS
from stages.versions import latest_version

log = logging.getLogger(__name__)

# In the order in which they are deleted: what names another object goes before it.
KINDS = ("datasets", "manifests", "shards", "ledger", "aligned", "statistics", "temporary", "leases")
_BATCH = 1000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Answer = tuple[dict[str, Any], str]


@dataclass
class Orphans:
    """What nothing refers to."""

    before_s: float                          # modified later: too young
    old: dict[str, list[Entry]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    young: int = 0
    removers: dict[str, Callable[[], None]] = field(default_factory=dict)    # of unfinished uploads and files

    def note(self, kind: str, entry: Entry) -> bool:
        """Whether it is to go; else it is too young."""
        if entry.modified_s > self.before_s:
            self.young += 1
            return False
        self.old[kind].append(entry)
        return True


def gc(
    workflow: Workflow, *, grace: str = "24h", keep: int | None = None, dry_run: bool = False,
    wait: bool = False,
) -> Answer:  # fmt: skip
    """The command. Raises ValueError for a grace time that is none, LeaseError while a run has the store,
    unless it is to `wait` for its end."""
    store, grace_s = workflow.store(), seconds(grace)
    if dry_run:
        found = find(workflow, store, before_s=time.time() - grace_s, keep=keep)
        answer, text = _answer(found, grace, dry_run)
        none = next(store.list(), None) is None
        return answer, f"nothing below {workflow.storage.root} yet" if none else text
    store.check_writable()
    with lease.hold(store, "pv3d gc", expires_s=workflow.storage.lease_s, wait=wait) as held:
        now_s = max(entry.modified_s for entry in store.entries(lease.FOLDER))   # by the clock of the store
        found = find(workflow, store, before_s=now_s - grace_s, keep=keep)
        _delete(store, found, held)
    return _answer(found, grace, dry_run)


def seconds(text: str) -> float:
    """"90s", "30m", "24h" or "7d" in seconds; "0" is none. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if not match or not (match[2] or int(match[1]) == 0):
        raise ValueError(f"--grace {text}: no time; write 30m, 24h or 7d")
    return float(int(match[1]) * _UNITS[match[2] or "s"])


def find(workflow: Workflow, store: Storage, *, before_s: float, keep: int | None = None) -> Orphans:
    """Everything that may go. Reads the whole ledger, and lists the store."""
    found = Orphans(before_s)
    live = reachable(store, [step.name for step in workflow.steps])
    versions = _versions(store, found, keep)
    named = live.names.union(_of_takedowns(store), *versions.values())
    _shards(store, found, named, sure=live.complete)
    _ledger(store, found, live.segments)
    if live.complete:
        for entry in store.entries("aligned"):
            if entry.key not in named:
                found.note("aligned", entry)
    for entry in store.entries(STATISTICS):
        if entry.key.split("/")[1].partition("-")[0] not in versions:
            found.note("statistics", entry)
    for entry, remove in store.unfinished():
        if found.note("temporary", entry):
            found.removers[f"{entry.key} {len(found.removers)}"] = remove
    leases = list(store.entries(lease.FOLDER))
    last = lease.last_number(entry.key for entry in leases)
    for entry in leases:
        if 0 < lease.number_of(entry.key) < last:
            found.note("leases", entry)
    return found


def _versions(store: Storage, found: Orphans, keep: int | None) -> dict[str, list[str]]:
    """The versions of the dataset that stay, each with its manifests."""
    entries = {entry.key: entry for entry in store.entries("dataset") if entry.key != LATEST}
    named = {key: _manifests(store, key) for key in entries}
    standing = [key for key in entries if named[key] is not None]
    if keep is not None:
        latest = f"dataset/{latest_version(store)}.json"
        standing.sort(key=lambda key: (key == latest, entries[key].modified_s), reverse=True)
        gone = {key for key in standing[max(1, keep):] if found.note("datasets", entries[key])}
        standing = [key for key in standing if key not in gone]
    return {_stem(key): named[key] or [] for key in standing}


def _manifests(store: Storage, key: str) -> list[str] | None:
    """None for a tombstone."""
    content = _json(store, key)
    if TOMBSTONE in content:
        return None
    names = content.get("manifests")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} in {store.root} is damaged; bring it back, for what it names must stay")
    return names


def _of_takedowns(store: Storage) -> set[str]:
    """Shards, old and new, of a takedown that was interrupted: the next run or takedown goes on with it."""
    records = [read_record(store, key) for key in store.list(TAKEDOWNS) if key != STATE]
    shards = [record["shards"] for record in records if not record["finished"]]
    return {name for pairs in shards for pair in pairs.items() for name in pair if name}


def _shards(store: Storage, found: Orphans, named: set[str], *, sure: bool) -> None:
    """`sure`: whether all names are known."""
    committed: set[str] = set()
    for entry in store.entries("manifest"):
        stays = entry.key in named or not sure
        if not stays and TOMBSTONE not in _json(store, entry.key):
            stays = not found.note("manifests", entry)
        if stays:
            committed.add(_stem(entry.key))
    for entry in store.entries("shards"):
        if _stem(entry.key) not in committed and entry.key not in named:
            found.note("shards", entry)


def _ledger(store: Storage, found: Orphans, segments: set[str]) -> None:
    entries = {entry.key: entry for entry in store.entries("ledger")}
    for key, entry in entries.items():
        arrays = key.removesuffix("jsonl") + "npz"
        if key.endswith(".npz") and key.removesuffix("npz") + "jsonl" not in entries:
            found.note("ledger", entry)
        over = key.endswith(".jsonl") and key not in segments and not _of_another_version(store, key)
        if over and found.note("ledger", entry) and arrays in entries:
            found.old["ledger"].append(entries[arrays])


def _of_another_version(store: Storage, key: str) -> bool:
    """A segment that this version cannot judge, unlike one that is damaged."""
    try:
        return bool(parsed(store.read(key).partition(b"\n")[0])["schema"] != SCHEMA)
    except (ValueError, KeyError, TypeError):
        return False


def _delete(store: Storage, found: Orphans, held: lease.Lease) -> None:
    for kind in KINDS:
        if kind == "temporary":
            held.check()
            for remove in found.removers.values():
                remove()
            continue
        keys = sorted((entry.key for entry in found.old[kind]), key=lambda key: (key.endswith(".npz"), key))
        for start in range(0, len(keys), _BATCH):
            held.beat()                      # after a pause another run may have the store
            held.check()
            store.delete_all(keys[start:start + _BATCH])
            log.debug("deleted %s", keys[start:start + _BATCH])


def _stem(key: str) -> str:
    return key.rpartition("/")[2].split(".", 1)[0]


def _json(store: Storage, key: str) -> dict[str, Any]:
    """What an object says; nothing when it is damaged."""
    try:
        return parsed_object(store.read(key))
    except ValueError:
        return {}


def _answer(found: Orphans, grace: str, dry_run: bool) -> Answer:
    def bytes_of(entries: Iterable[Entry]) -> int:
        return sum(entry.bytes for entry in entries)

    kinds: dict[str, dict[str, Any]] = {
        kind: {"objects": len(entries), "bytes": bytes_of(entries)} for kind, entries in found.old.items()
    }
    if dry_run:
        for kind, entries in found.old.items():
            kinds[kind]["keys"] = sorted(entry.key for entry in entries)
    every = [entry for entries in found.old.values() for entry in entries]
    total = bytes_of(every)
    answer = {
        "dry_run": dry_run, "kinds": kinds, "objects": len(every), "bytes": total, "young": found.young,
    }  # fmt: skip
    lines = [f"{'kind':<12}{'objects':>10}{'bytes':>18}"]
    lines += [f"{kind:<12}{row['objects']:>10,}{row['bytes']:>18,}" for kind, row in kinds.items()]
    done = "would be deleted" if dry_run else "deleted"
    lines.append(f"{len(every):,} objects, {total:,} bytes {done}")
    if found.young:
        lines.append(f"{found.young:,} objects that nothing refers to are younger than {grace}; they stay")
    return answer, "\n".join(lines)
