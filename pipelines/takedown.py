"""`pv3d takedown`: remove from the store what the takedown list means. A run does the same before its stages.

In this order, so that whenever it stops, doing it again ends the same:

    1  the shards that hold such clips, once more without them; nothing refers to these yet
    2  takedown/<hash>.json, which says what is to be done: from here on whoever comes finishes it
    3  the dataset without them, and the pointer to it
    4  tombstones in the place of versions and manifests that name the old shards
    5  the old shards, aligned frames, downloads, records and the report, deleted
    6  the record, marked as finished

Only shards that hold such clips are written; the others stay byte for byte and keep their names. One run or
takedown at a time per store: see `infra.lease`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from infra.json_values import read_object
from infra.lease import hold
from infra.storage import Storage
from infra.words import many
from pipelines import forget
from pipelines.policy import FOLDER, STATE, Policy
from pipelines.takedown_search import Found, find
from pipelines.workflow import Workflow
from stages.dataset import LATEST, TOMBSTONE
from stages.shards import commit_dataset, without
from stages.takedown import hash_of, uncut

log = logging.getLogger(__name__)

SCHEMA = 1
Answer = tuple[dict[str, Any], str]


def takedown(workflow: Workflow, *, dry_run: bool = False, wait: bool = False) -> Answer:
    """The command. Raises ValueError when the workflow names no list, LeaseError while another run has the
    store, unless it is to `wait` for its end."""
    if not workflow.policy.takedown:
        raise ValueError("policy.takedown: not set; name the list, as with --set policy.takedown=FILE")
    store = workflow.store()
    if dry_run:
        found = find(workflow, store, Policy(workflow, store))
        answer = _answer(workflow, found, dict.fromkeys(found.shards), _version(store))
    else:
        store.check_writable()
        with hold(store, "pv3d takedown", expires_s=workflow.storage.lease_s, wait=wait):
            answer = sweep(workflow, store)
    return {**answer, "dry_run": dry_run}, _text(answer, dry_run)


def sweep_if_due(workflow: Workflow, store: Storage) -> None:
    """`sweep`, where there is a list, unless it was done for this very one. Raises ValueError as `Policy`."""
    if not workflow.policy.takedown:
        return
    unfinished = any(not record["finished"] for record in Policy(workflow, store).records.values())
    if unfinished or not store.exists(STATE) or _read(store, STATE) != {"list": workflow.takedown.digest}:
        sweep(workflow, store)


def sweep(workflow: Workflow, store: Storage) -> dict[str, Any]:
    """Remove all that the list means. Returns what the command answers."""
    for key, record in Policy(workflow, store).records.items():
        if not record["finished"]:           # an earlier one was interrupted
            _carry_out(store, key, record)
    policy = Policy(workflow, store)
    _allow_again(store, policy)
    found = find(workflow, store, policy)
    shards: dict[str, str | None] = {}
    key = ""
    if found:
        latest = _manifests_of(store, _version(store))
        for manifest, clips in sorted(found.shards.items()):
            shards[manifest] = without(store, manifest, clips) if manifest in latest else None
        key = _record(store, found, shards)
        _carry_out(store, key, _read(store, key))
    store.write(STATE, _json({"list": workflow.takedown.digest}))
    answer = {**_answer(workflow, found, shards, _version(store)), "record": key}
    if found:
        log.info("takedown: %d units and %d shards; see %s", len(found.units), len(shards), key)
    return answer


# --- doing -----------------------------------------------------------------------------------------------


def _record(store: Storage, found: Found, shards: dict[str, str | None]) -> str:
    """Write down what is to be done, with no more about people than hashes. Returns the key."""
    plan = {
        "schema": SCHEMA,
        "entries": sorted({cause for causes in found.units.values() for cause in causes}),
        "clips": {hash_of(unit): sorted(causes) for unit, causes in sorted(found.units.items())},
        "places": sorted(
            [hash_of(uncut(clip)), *seconds, sorted(found.units[clip])]
            for clip, seconds in found.places.items() if clip in found.units
        ),
        "shards": shards,
        "files": sorted(hash_of(name) for name in found.files),
    }
    key = f"{FOLDER}/{hashlib.sha256(_json(plan)).hexdigest()[:16]}.json"
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # An older record of this name is of the same things, which were allowed in between and came back.
    store.write(key, _json({**plan, "when": when, "finished": False}))
    return key


def _carry_out(store: Storage, key: str, record: dict[str, Any]) -> None:
    """Do what a record says, as far as it is not done yet."""
    shards: dict[str, str | None] = record["shards"]
    _replace_dataset(store, shards)
    tombstone = _json({"schema": SCHEMA, TOMBSTONE: key})
    for name in list(store.list("dataset")):
        if name != LATEST and not set(_read(store, name).get("manifests", [])).isdisjoint(shards):
            store.write(name, tombstone)
    for manifest in shards:
        store.write(manifest, tombstone)
    for manifest in shards:
        stem = manifest.removeprefix("manifest/").removesuffix(".json")
        store.delete(f"shards/{stem}.tar")
        store.delete(f"shards/{stem}.index.json")
    _delete_files(store, set(record["files"]))
    units = set(record["clips"])
    forget.forget(store, lambda unit: hash_of(unit) in units)
    for name in [*store.list("report"), *store.list("statistics")]:
        store.delete(name)                   # pictures and features of people; who needs them makes others
    store.write(key, _json({**record, "finished": True}))


def _replace_dataset(store: Storage, shards: dict[str, str | None]) -> None:
    """Commit the latest dataset with the new shards, unless that is done."""
    version = _version(store)
    manifests = _manifests_of(store, version)
    if set(manifests).isdisjoint(shards):
        return
    kept = {shards.get(name, name) for name in manifests}
    content = _read(store, f"dataset/{version}.json")
    commit_dataset(store, sorted(name for name in kept if name), key=content["key"])


def _delete_files(store: Storage, hashes: set[str]) -> None:
    for folder in ("aligned", "shards", "videos"):
        for name in list(store.list(folder)):
            if hash_of(name) in hashes:
                store.delete(name)
    left: dict[str, list[str]] = {}
    for name in store.list("videos"):
        left.setdefault(name.rpartition("/")[0], []).append(name)
    for names in left.values():
        if len(names) == 1 and names[0].endswith("/index.json"):
            store.delete(names[0])           # of a video of which nothing is left


def _allow_again(store: Storage, policy: Policy) -> None:
    """Take the tombstones away whose causes are no longer listed: their shards may be written again."""
    listed = {entry.hash for entry in policy.takedown.entries}
    over = {key for key, r in policy.records.items() if listed.isdisjoint(r["entries"]) and not r.get("over")}
    if not over:
        return
    for name in [*store.list("manifest"), *store.list("dataset")]:
        if _read(store, name).get(TOMBSTONE) in over:
            store.delete(name)
    for key in over:
        store.write(key, _json({**policy.records[key], "over": True}))


# --- parts -----------------------------------------------------------------------------------------------


def _version(store: Storage) -> str:
    """The latest version of the dataset, "" for none."""
    return str(_read(store, LATEST)["version"]) if store.exists(LATEST) else ""


def _manifests_of(store: Storage, version: str) -> list[str]:
    key = f"dataset/{version}.json"
    manifests: list[str] = _read(store, key).get("manifests", []) if version and store.exists(key) else []
    return manifests


def _answer(
    workflow: Workflow, found: Found, shards: dict[str, str | None], version: str
) -> dict[str, Any]:
    return {
        "list": workflow.takedown.path,
        "entries": len(workflow.takedown.entries),
        "clips": sorted({clip for clips in found.shards.values() for clip in clips}),
        "units": sorted(found.units),
        "shards": shards,
        "files": len(found.files),
        "dataset": version,
    }


def _text(answer: dict[str, Any], dry_run: bool) -> str:
    done = "would be removed" if dry_run else "removed"
    lines = [f"{answer['entries']} entries in {answer['list']}"]
    if not answer["units"] and not answer["files"]:
        return "\n".join([*lines, "nothing of them is in the store"])
    lines += [f"  {unit}" for unit in answer["units"]]
    rewritten = "would be rewritten" if dry_run else "rewritten"
    lines.append(f"{many(len(answer['units']), 'unit')} and {many(answer['files'], 'file')} {done}")
    shards, clips = many(len(answer["shards"]), "shard"), many(len(answer["clips"]), "clip")
    lines.append(f"{shards} {rewritten}; {clips} in them {done}")
    if not dry_run:
        lines.append(f"dataset {answer['dataset']}; record {answer['record']}")
    return "\n".join(lines)


def _read(store: Storage, key: str) -> dict[str, Any]:
    return read_object(store, key)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()
