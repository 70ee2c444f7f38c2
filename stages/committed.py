"""Shards that were committed: whether they are in the store whole, as their manifests say."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.storage import Storage, StorageError, check_key
from stages.dataset import LATEST, Sample, checked, taken_down_by
from stages.members import TOMBSTONE, DamagedError, naming

log = logging.getLogger(__name__)

Sizes = Mapping[str, int]                    # bytes by key
_END_OF_INDEX = b"}"


class LostShardsError(DamagedError):
    """Shards (by the keys of their manifests) that are not whole; one line that names the first."""

    def __init__(self, what: str, keys: Sequence[str]) -> None:
        super().__init__(what)
        self.keys = frozenset(keys)


def sizes_of(store: Storage) -> dict[str, int]:
    """Of all that belongs to shards."""
    return {entry.key: entry.bytes for kind in ("manifest", "shards") for entry in store.entries(kind)}


def files_of(manifest_key: str) -> tuple[str, str, str]:
    """Keys of manifest, tar and index."""
    stem = manifest_key.removeprefix("manifest/").removesuffix(".json")
    return manifest_key, f"shards/{stem}.tar", f"shards/{stem}.index.json"


def read_manifest(store: Storage, key: str, sizes: Sizes | None = None) -> dict[str, Any]:
    """A manifest, sound; with `sizes`, also its tar and its index are there and not cut.

    Raises DamagedError, TakenDownError.
    """
    with naming(store, key):
        manifest = parsed_manifest(check_key(key), store.read(key))
    if sizes is not None:
        _, tar, index = files_of(key)
        with naming(store, tar):
            if sizes.get(tar) != manifest["bytes"]:
                raise FileNotFoundError(tar) if tar not in sizes else EOFError(tar)
        with naming(store, index):
            if index not in sizes:
                raise FileNotFoundError(index)
            if not store.read_range(index, max(0, sizes[index] - 1), 1) == _END_OF_INDEX:
                raise EOFError(index)
    return manifest


def parsed_manifest(key: str, data: bytes) -> dict[str, Any]:
    """Raises ValueError, KeyError, TypeError or RecursionError for what no stage writes below this key."""
    manifest: dict[str, Any] = json.loads(data)
    _, tar, index = files_of(key)
    if (manifest["tar"], manifest["index"]) != (tar, index):
        raise ValueError(f"{key} names {manifest['tar']!r}")
    if not tar.endswith(f"-{manifest['sha256'][:16]}.tar"):
        raise ValueError(f"{key} is of another hash")
    if type(manifest["bytes"]) is not int or not isinstance(manifest["samples"], list):
        raise TypeError(f"{key}: bytes or samples")
    for values in manifest["samples"]:
        checked(Sample(**values, tar=tar, index=index))
    return manifest


def put(store: Storage, key: str, data: bytes, sound: Callable[[bytes], object]) -> None:
    """Create, or see that the writer who was first wrote the same.

    `sound` raises for what is damaged, which is replaced. Raises StorageError for what says something else
    and for what was taken down.
    """
    if store.create(key, data) or agrees(store, key, data, sound):
        return
    log.warning("%s in %s is damaged; it is made again", key, store.root)
    store.delete(key)
    if not store.create(key, data) and not agrees(store, key, data, sound):
        raise StorageError(f"{key} in {store.root} is damaged each time; use another storage.root")


def agrees(store: Storage, key: str, data: bytes, sound: Callable[[bytes], object]) -> bool:
    """Whether the store holds `data`; False for something damaged. Raises as `put`."""
    held = store.read(key)
    if held == data:
        return True
    # One that is cut, too, is kept as it is.
    if record := taken_down_by(store, key) or (TOMBSTONE.encode() in held[:100] and "takedown/"):
        raise StorageError(
            f"{key} in {store.root} was taken down (see {record}) and is not written again; name the list "
            "of then as policy.takedown"
        )
    try:
        sound(held)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    raise StorageError(f"{key} in {store.root} holds something else; use another storage.root")


def standing(store: Storage) -> str | None:
    """The latest version and the sizes of its shards, in a word; None unless all of it is there."""
    try:
        version = json.loads(store.read(LATEST))["version"]
        content = parsed_version(version, store.read(check_key(f"dataset/{version}.json")))
        sizes = sizes_of(store)
        held = [sizes[name] for key in content["manifests"] for name in files_of(key)]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return f"{version}:{hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]}"


def parsed_version(version: str, data: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but what is named so: the name is a hash of the content."""
    if hashlib.sha256(data).hexdigest()[:16] != version:
        raise ValueError(f"dataset/{version}.json is damaged")
    content: dict[str, Any] = json.loads(data)
    return content
