"""Versions of the dataset, in figures: for whoever reads no sample. `stages.dataset` opens one."""

from __future__ import annotations

from dataclasses import dataclass

from infra.json_values import is_number, parsed_object, read_text
from infra.storage import Storage, check_key
from stages.dataset import LATEST
from stages.members import TOMBSTONE, naming

_COUNTS = ("shards", "bytes", "samples", "frames", "identities", "size")


@dataclass(frozen=True)
class Figures:
    """What a version says of itself."""

    version: str
    data: bytes                              # of the object that says so
    manifests: tuple[str, ...]               # keys
    shards: int
    bytes: int
    samples: int
    frames: int
    identities: int
    size: int                                # px
    fps: float


def latest_version(store: Storage) -> str | None:
    """The version that is read unless another is named, None before there is one. Raises ValueError."""
    try:
        version = read_text(store, LATEST, "version")
    except FileNotFoundError:
        return None
    with naming(store, LATEST):
        check_key(f"dataset/{version}.json")
    return version


def figures_of(store: Storage, version: str) -> Figures | None:
    """None for a version that was taken down. Raises DamagedError, also where it is missing."""
    key = check_key(f"dataset/{version}.json")
    with naming(store, key):
        data = store.read(key)
        content = parsed_object(data)
        if TOMBSTONE in content:
            return None
        counts = {name: content[name] for name in _COUNTS}
        if not all(type(value) is int and 0 <= value < 1 << 63 for value in counts.values()):
            raise ValueError(f"{key}: a count is none")
        manifests, fps = content["manifests"], content["fps"]
        if not isinstance(manifests, list) or not is_number(fps) or fps < 0:
            raise TypeError(f"{key}: manifests or fps")
        return Figures(version, data, tuple(check_key(name) for name in manifests), fps=float(fps), **counts)
