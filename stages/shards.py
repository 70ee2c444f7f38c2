"""Clips to WebDataset shards and back. Both directions, and the dataset's commit, are in this file.

    shards/<bucket>-<hash>.tar          samples: <clip>.0000.jpg ..., .cameras.npy, .json, .landmarks.npy
    shards/<bucket>-<hash>.index.json   where each member lies, for reads by range
    manifest/<bucket>-<hash>.json       create-only: the shard exists once this does
    dataset/<version>.json              create-only: which manifests make the dataset
    dataset/latest.json                 which version to read

A clip's bucket is a hash of its id, so one clip more rewrites one shard and leaves the others as they are.
All names but the last are hashes of the content: two writers of the same clips write the same bytes to the
same names, the loser of a create deletes nothing, and a reader never sees half a shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage, check_key
from stages.base import GroupStage, Rejected
from stages.clip import Clip

log = logging.getLogger(__name__)

SCHEMA = 1
LATEST = "dataset/latest.json"

# Of the record: what is local to a machine or a run, or lies in members of its own, stays out of the sample.
_LEFT_OUT = {
    "id", "video", "fingerprint", "aligned", "shard", "cameras", "landmarks", "smooth_landmarks", "mesh",
    "smooth_mesh", "embeddings", "embedding_mean",
}


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

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ValueError(f"stages.shards.buckets: {self.buckets} is not positive; give 1 or more")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"stages.shards.held_out: {self.held_out} is not in [0, 1)")

    def setup(self, store: Storage) -> None:
        self._store = store

    def group(self, clip: Clip) -> str:
        return f"{_hash_number(clip.id) % self.buckets:05d}"

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        ordered = sorted(clips, key=lambda c: c.id)
        with tempfile.TemporaryDirectory(prefix="pv3d-shard-") as folder:
            manifest_key = self._commit(group, ordered, Path(folder, "shard.tar"))
        for clip in clips:
            yield clip.copy(shard=manifest_key)

    def _commit(self, group: str, clips: list[Clip], path: Path) -> str:
        """Upload tar and index, then create the manifest. Returns the manifest's key."""
        samples = [self._summary(clip) for clip in clips]
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for clip, summary in zip(clips, samples, strict=True):
                for name, data in sorted(_members(self._store, clip, summary).items()):
                    info = tarfile.TarInfo(f"{clip.id}.{name}")      # mtime, uid and gid are 0
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        sha256 = _file_hash(path)
        stem = f"{group}-{sha256[:16]}"
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "tar": f"shards/{stem}.tar",
            "index": f"shards/{stem}.index.json",
            "sha256": sha256,
            "bytes": path.stat().st_size,
            "identities": len({s["identity"] for s in samples}),
            "samples": samples,
        }
        key, data = f"manifest/{stem}.json", _json(manifest)
        if self._store.exists(key):
            _same(self._store, key, data)
            return key
        self._store.upload(manifest["tar"], path)
        self._store.write(manifest["index"], _json({"schema": SCHEMA, "members": _index(path)}))
        if not self._store.create(key, data):
            _same(self._store, key, data)
        return key

    def _summary(self, clip: Clip) -> dict[str, Any]:
        """What a reader knows of a sample before it opens the shard."""
        held_out = _hash_number(clip.identity or clip.id) / 2**64 < self.held_out
        return {
            "clip_id": clip.id, "identity": clip.identity, "source": clip.source, "licence": clip.licence,
            "split": "test" if held_out else "train", "frame_count": clip.frame_count, "fps": clip.fps,
            "size": clip.crop_size,
        }

    def finish(self, store: Storage, clips: list[Clip]) -> None:
        """Commit the dataset that the shards of `clips`, all that were kept, make."""
        sizes = sorted({(clip.crop_size, clip.fps) for clip in clips})
        if len(sizes) > 1:
            raise ValueError(f"shards: clips of different size and rate {sizes}; use one storage.root each")
        key = hashlib.sha256(_json({"version": self.version, **asdict(self)})).hexdigest()[:16]
        version = commit_dataset(store, sorted({clip.shard for clip in clips}), key=key)
        log.info("dataset %s: %d clips", version, len(clips))


def commit_dataset(store: Storage, manifests: Sequence[str], key: str = "") -> str:
    """Make the shards of `manifests` (keys) a version of the dataset, and the latest. Returns the version.

    The version is a hash of the content: the same shards are the same version.
    """
    loaded = [json.loads(store.read(name)) for name in manifests]
    samples = [sample for manifest in loaded for sample in manifest["samples"]]
    content = {
        "schema": SCHEMA,
        "size": samples[0]["size"] if samples else 0,
        "fps": samples[0]["fps"] if samples else 0.0,
        "key": key,
        "shards": len(loaded),
        "bytes": sum(manifest["bytes"] for manifest in loaded),
        "samples": len(samples),
        "frames": sum(sample["frame_count"] for sample in samples),
        "identities": len({sample["identity"] for sample in samples}),
        "manifests": list(manifests),
    }
    data = _json(content)
    version = hashlib.sha256(data).hexdigest()[:16]
    if not store.create(f"dataset/{version}.json", data):
        _same(store, f"dataset/{version}.json", data)
    latest = _json({"version": version})
    if not store.exists(LATEST) or store.read(LATEST) != latest:
        store.write(LATEST, latest)
    return version


# --- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One clip of a dataset, as its manifest names it."""

    clip_id: str
    identity: str
    source: str                              # the video as the list names it
    licence: str                             # of the footage, as listed
    split: str                               # "train" or "test"
    frame_count: int
    fps: float
    size: int                                # px, side of a frame
    tar: str                                 # key of its shard
    index: str                               # key of the shard's index


@dataclass
class Dataset:
    """A version of the dataset. Reads by range what is asked for, and nothing else."""

    store: Storage
    version: str
    size: int                                # px, side of a frame
    fps: float
    samples: list[Sample]
    manifests: list[str]                     # keys
    _indices: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict, repr=False)
    _cameras: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def frames(self, sample: Sample, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] RGB. Raises ValueError for a damaged member, IndexError beyond the clip."""
        return np.stack([decode_jpeg(self._frame(sample, i), f"{sample.clip_id} frame {i}") for i in indices])

    def cameras(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 25], kept in memory."""
        if sample.clip_id not in self._cameras:
            self._cameras[sample.clip_id] = np.asarray(self._array(sample, "cameras.npy"), np.float32)
        return self._cameras[sample.clip_id]

    def landmarks(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 68, 2], px of the source."""
        return np.asarray(self._array(sample, "landmarks.npy"), np.float32)

    def record(self, sample: Sample) -> dict[str, Any]:
        """The provenance of a sample."""
        values: dict[str, Any] = json.loads(self._member(sample, "json"))
        return values

    def _frame(self, sample: Sample, index: int) -> bytes:
        if not 0 <= index < sample.frame_count:
            raise IndexError(f"{sample.clip_id}: frame {index} of {sample.frame_count}")
        return self._member(sample, f"{index:04d}.jpg")

    def _array(self, sample: Sample, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(io.BytesIO(self._member(sample, name)), allow_pickle=False)
        return array

    def _member(self, sample: Sample, name: str) -> bytes:
        with _naming(self.store, sample.index):
            if sample.index not in self._indices:
                rows = json.loads(self.store.read(sample.index))["members"]
                self._indices[sample.index] = {f"{clip}.{name}": (at, size) for clip, name, at, size in rows}
            at, size = self._indices[sample.index][f"{sample.clip_id}.{name}"]
        with _naming(self.store, sample.tar):
            return self.store.read_range(sample.tar, at, size)


def open_dataset(store: Storage, version: str | None = None) -> Dataset:
    """The dataset in `store`: its latest version, or `version`. Raises ValueError when there is none."""
    if version is None:
        if not store.exists(LATEST):
            raise ValueError(f"no shards in {store.root}; run `pv3d run --until WriteShards` first")
        with _naming(store, LATEST):
            version = str(json.loads(store.read(LATEST))["version"])
    key = check_key(f"dataset/{version}.json")
    if not store.exists(key):
        raise ValueError(
            f"no version {version} of the shards in {store.root}; run `pv3d run --until WriteShards` first"
        )
    with _naming(store, key):
        content = json.loads(store.read(key))
        manifests = [check_key(manifest) for manifest in content["manifests"]]
        size, fps = int(content["size"]), float(content["fps"])
    samples = []
    for key in manifests:
        with _naming(store, key):
            manifest = json.loads(store.read(key))
            tar, index = check_key(manifest["tar"]), check_key(manifest["index"])
            samples += [Sample(**s, tar=tar, index=index) for s in manifest["samples"]]
    return Dataset(store, version, size, fps, samples, manifests)


@contextlib.contextmanager
def _naming(store: Storage, key: str) -> Iterator[None]:
    """Turn what reading a lost or damaged file raises into one line (a ValueError) that names the file."""
    try:
        yield
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(
            f"{key} in {store.root} is {what}; bring it back, or make the shards in another storage.root"
        ) from error


def decode_jpeg(data: bytes, what: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB. Raises ValueError, naming `what`, for bytes that are no whole JPEG."""
    import cv2

    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if picture is None:
        raise ValueError(f"{what}: not a whole JPEG; the shard is damaged")
    return np.asarray(picture, np.uint8)


def aligned_frames(store: Storage, clip: Clip, step: int = 1) -> Iterator[bytes]:
    """Every `step`-th JPEG of the aligned frames of a clip, from frame 0 on."""
    with store.local(clip.aligned) as path, tarfile.open(path) as tar:
        for index in range(0, clip.frame_count, step):
            member = tar.extractfile(f"{index:04d}.jpg")
            assert member is not None, f"{clip.aligned}: {index:04d}.jpg is not a file"
            yield member.read()


# --- parts -----------------------------------------------------------------------------------------------


def _members(store: Storage, clip: Clip, summary: dict[str, Any]) -> dict[str, bytes]:
    members = {f"{i:04d}.jpg": data for i, data in enumerate(aligned_frames(store, clip))}
    members["cameras.npy"] = _npy(clip.need("cameras").astype(np.float32))
    members["landmarks.npy"] = _npy(clip.need("landmarks").astype(np.float32))
    members["json"] = _json({**_provenance(clip), **summary})
    return members


def _provenance(clip: Clip) -> dict[str, Any]:
    """Everything needed to redo or to audit the sample, and nothing local."""
    values, arrays = clip.to_record()
    kept: dict[str, Any] = {name: value for name, value in values.items() if name not in _LEFT_OUT}
    for name, array in arrays.items():
        if name not in _LEFT_OUT:
            kept[name] = np.round(array.astype(np.float64), 4 if name == "face_boxes" else 6).tolist()
    times = clip.need("frame_times_s")
    kept["source_span_s"] = [round(float(times[0]), 6), round(float(times[-1]), 6)]
    kept["list_row_sha256"] = hashlib.sha256(_json(clip.listed)).hexdigest()
    return kept


def _index(path: Path) -> list[list[Any]]:
    """Rows of key, member, offset, size."""
    with tarfile.open(path) as tar:
        return [[*m.name.split(".", 1), m.offset_data, m.size] for m in tar]


def _same(store: Storage, key: str, data: bytes) -> None:
    """Check that the writer who was first wrote the same."""
    if store.read(key) != data:
        raise ValueError(f"{key} in {store.root} holds something else; use another storage.root")


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
