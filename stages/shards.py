"""Clips to WebDataset shards, and the commit of the dataset that they make. `stages.dataset` reads them.

    shards/<bucket>-<hash>.tar          samples: <clip>.0000.jpg ..., .cameras.npy, .json, .landmarks.npy
    shards/<bucket>-<hash>.index.json   where each member lies, for reads by range
    manifest/<bucket>-<hash>.json       create-only: the shard exists once this does
    dataset/<version>.json              create-only: which manifests make the dataset
    dataset/latest.json                 which version to read

A clip's bucket is a hash of its id, so one clip more rewrites one shard and leaves the others as they are.
All names but the last are hashes of the content: two writers of the same clips write the same bytes to the
same names, the loser of a create deletes nothing, and a reader never sees half a shard. Only a takedown
changes what has been committed: it puts a tombstone in the place of a manifest and of a version.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tarfile
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from infra.words import many
from stages.base import GroupStage, LostInputError, LostOutputError, Rejected
from stages.clip import Clip
from stages.committed import (
    LostShardsError,
    Sizes,
    agrees,
    parsed_manifest,
    parsed_version,
    put,
    read_manifest,
    sizes_of,
    standing,
)
from stages.dataset import LATEST, DamagedError, Dataset, Sample, decode_jpeg, open_dataset
from stages.provenance import config_hash, provenance, public_source

__all__ = [
    "LATEST", "Dataset", "Sample", "WriteShards", "aligned_frames", "commit_dataset", "decode_jpeg",
    "open_dataset", "without",
]

log = logging.getLogger(__name__)

SCHEMA = 1


@dataclass
class WriteShards(GroupStage):
    """Write clips into `buckets` WebDataset tars, and commit them as a version of the dataset."""

    buckets: int = 16                        # fixed per dataset; aim at shards of about a gigabyte
    held_out: float = 0.0                    # share of the people whose samples say "split": "test"

    name: ClassVar[str] = "WriteShards"
    reads: ClassVar[tuple[str, ...]] = (
        "frame_times_s", "face_boxes", "landmarks", "crop_transforms", "crop_size", "aligned", "cameras",
        "identity",
    )
    writes: ClassVar[tuple[str, ...]] = ("shard",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ValueError(f"stages.shards.buckets: {self.buckets} is not positive; give 1 or more")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"stages.shards.held_out: {self.held_out} is not in [0, 1)")
        self._history: Sequence[Mapping[str, Any]] = ()

    def follow(self, history: Sequence[Mapping[str, Any]]) -> None:
        self._history = history

    def setup(self, store: Storage) -> None:
        self._store = store

    def group(self, clip: Clip) -> str:
        return f"{_hash_number(clip.id) % self.buckets:05d}"

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        ordered = sorted(clips, key=lambda c: c.id)
        samples = [self._summary(clip) for clip in ordered]
        with tempfile.TemporaryDirectory(prefix="pv3d-shard-") as folder:
            path = Path(folder, "shard.tar")
            with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
                for clip, summary in zip(ordered, samples, strict=True):
                    for name, data in sorted(self._members(clip, summary).items()):
                        _add(tar, f"{clip.id}.{name}", data)
            manifest_key = _commit(self._store, group, samples, path, config_hash(self._history))
        for clip in clips:
            yield clip.copy(shard=manifest_key)

    def _summary(self, clip: Clip) -> dict[str, Any]:
        """What a reader knows of a sample before it opens the shard."""
        return {
            "clip_id": clip.id, "identity": clip.identity, "source": public_source(clip),
            "licence": clip.licence, "split": self._split(clip), "frame_count": clip.frame_count,
            "fps": clip.fps, "size": clip.crop_size,
        }

    def _split(self, clip: Clip) -> str:
        """What a list calls other than "train" is never trained on."""
        listed = str(clip.listed.get("span", clip.listed).get("split") or "train")
        if listed != "train":
            return listed
        held_out = _hash_number(clip.identity or clip.id) / 2**64 < self.held_out
        return "test" if held_out else "train"

    def _members(self, clip: Clip, summary: dict[str, Any]) -> dict[str, bytes]:
        members = {f"{i:04d}.jpg": data for i, data in enumerate(aligned_frames(self._store, clip))}
        members["cameras.npy"] = _npy(clip.need("cameras").astype(np.float32))
        members["landmarks.npy"] = _npy(clip.need("landmarks").astype(np.float32))
        extra = dict(clip.extra)
        if audio := extra.pop("audio", ""):                # by stages.audio, where the workflow asks for it
            try:
                members["flac"] = self._store.read(audio)
            except FileNotFoundError as error:
                raise LostInputError(audio, "extra.audio", clip.id) from error
        members["json"] = _json({**provenance(clip.copy(extra=extra), self._history), **summary})
        return members

    def finish(self, store: Storage, clips: Iterator[Clip]) -> str | None:
        """Commit the dataset that the shards of `clips`, all that were kept, make. Without a clip the dataset
        stays as it is: only a takedown empties it."""
        kinds: set[tuple[int, float]] = set()
        shards: Counter[str] = Counter()
        for clip in clips:
            kinds.add((clip.crop_size, clip.fps))
            shards[clip.shard] += 1
        if not shards:
            log.warning("no clip was kept: %s", "the dataset stays" if store.exists(LATEST) else "no dataset")
            return standing(store)
        sizes = sorted(kinds)
        if len(sizes) > 1:
            raise ValueError(f"shards: clips of different size and rate {sizes}; use one storage.root each")
        key = hashlib.sha256(_json({"version": self.version, **asdict(self)})).hexdigest()[:16]
        try:
            version = commit_dataset(store, sorted(shards), key=key, sizes=sizes_of(store))
        except LostShardsError as error:
            lost = error.keys
            raise LostOutputError(str(error).partition(";")[0], lambda clip: clip.shard in lost) from error
        log.info("dataset %s: %s", version, many(shards.total(), "clip"))
        now = standing(store)  # of another run's version: then this one is concluded once more
        return now if now and now.startswith(f"{version}:") else version

    def standing(self, store: Storage) -> str | None:
        """The latest version, when it is there with all its shards."""
        return standing(store)


def commit_dataset(
    store: Storage, manifests: Sequence[str], key: str = "", sizes: Sizes | None = None
) -> str:
    """Make the shards of `manifests` (keys) a version of the dataset, and the latest. Returns the version.

    The version is a hash of the content: the same shards are the same version. Raises LostShardsError for
    manifests that are gone or damaged; with `sizes`, what the store holds, also for tars and indices.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA, "size": 0, "fps": 0.0, "key": key, "shards": len(manifests), "bytes": 0,
        "samples": 0, "frames": 0, "identities": 0, "manifests": list(manifests),
    }  # fmt: skip
    people: set[str] = set()
    lost: dict[str, DamagedError] = {}
    for name in manifests:                               # one at a time: together they name every clip
        try:
            manifest = read_manifest(store, name, sizes)
        except DamagedError as error:
            lost[name] = error
            continue
        samples = manifest["samples"]
        if samples and not content["samples"]:
            content["size"], content["fps"] = samples[0]["size"], samples[0]["fps"]
        content["bytes"] += manifest["bytes"]
        content["samples"] += len(samples)
        content["frames"] += sum(sample["frame_count"] for sample in samples)
        people.update(sample["identity"] for sample in samples)
    if lost:
        raise LostShardsError(str(next(iter(lost.values()))), list(lost))
    content["identities"] = len(people)
    data = _json(content)
    version = hashlib.sha256(data).hexdigest()[:16]
    put(store, f"dataset/{version}.json", data, lambda held: parsed_version(version, held))
    latest = _json({"version": version})
    if not store.exists(LATEST) or store.read(LATEST) != latest:
        store.write(LATEST, latest)
    return version


def without(store: Storage, manifest_key: str, clip_ids: Collection[str]) -> str | None:
    """A committed shard once more, without some clips: byte for byte what `WriteShards` makes of the others.

    Returns the key of its manifest, None when no clip is left. The old shard stays as it is.
    """
    manifest = read_manifest(store, manifest_key)
    samples = [sample for sample in manifest["samples"] if sample["clip_id"] not in clip_ids]
    if not samples:
        return None
    kept = {sample["clip_id"] for sample in samples}
    group = manifest_key.rpartition("/")[2].rpartition("-")[0]
    with tempfile.TemporaryDirectory(prefix="pv3d-shard-") as folder:
        path = Path(folder, "shard.tar")
        with (
            store.local(manifest["tar"]) as old,
            tarfile.open(old, "r:") as source,
            tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for member in source:
                if member.name.split(".", 1)[0] in kept:
                    file = source.extractfile(member)
                    assert file is not None, f"{manifest['tar']}: {member.name} is not a file"
                    _add(tar, member.name, file.read())
        return _commit(store, group, samples, path, manifest.get("config_sha256", ""))


def aligned_frames(store: Storage, clip: Clip, step: int = 1) -> Iterator[bytes]:
    """Every `step`-th JPEG of the aligned frames of a clip, from frame 0 on. Raises LostInputError."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(store.local(clip.aligned))
            tar = stack.enter_context(tarfile.open(path, "r:"))
        except (FileNotFoundError, tarfile.TarError) as error:
            raise LostInputError(clip.aligned, "aligned", clip.id) from error
        for index in range(0, clip.frame_count, step):
            try:
                member = tar.extractfile(f"{index:04d}.jpg")
                data = member.read() if member else b""
            except (KeyError, tarfile.TarError) as error:
                raise LostInputError(clip.aligned, "aligned", clip.id) from error
            if not data:                     # the file ends here
                raise LostInputError(clip.aligned, "aligned", clip.id)
            yield data


# --- parts -----------------------------------------------------------------------------------------------


def _commit(store: Storage, group: str, samples: list[dict[str, Any]], path: Path, config: str) -> str:
    """Upload tar and index, then create the manifest. Returns the manifest's key."""
    sha256 = _file_hash(path)
    stem = f"{group}-{sha256[:16]}"
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "tar": f"shards/{stem}.tar",
        "index": f"shards/{stem}.index.json",
        "sha256": sha256,
        "bytes": path.stat().st_size,
        "identities": len({s["identity"] for s in samples}),
        "config_sha256": config,
        "samples": samples,
    }
    key, data = f"manifest/{stem}.json", _json(manifest)
    index = _json({"schema": SCHEMA, "members": _index(path)})

    def sound(held: bytes) -> object:
        return parsed_manifest(key, held)

    if store.exists(key) and agrees(store, key, data, sound) and _holds(store, manifest, index):
        return key
    store.upload(manifest["tar"], path)
    store.write(manifest["index"], index)
    put(store, key, data, sound)
    return key


def _holds(store: Storage, manifest: dict[str, Any], index: bytes) -> bool:
    try:
        whole: bool = store.size(manifest["tar"]) == manifest["bytes"]
        return whole and store.read(manifest["index"]) == index
    except FileNotFoundError:
        return False


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)                     # mtime, uid and gid are 0
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _index(path: Path) -> list[list[Any]]:
    """Rows of key, member, offset, size."""
    with tarfile.open(path, "r:") as tar:
        return [[*m.name.split(".", 1), m.offset_data, m.size] for m in tar]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _hash_number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
