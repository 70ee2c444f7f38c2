"""The shards, read: which clips a version of the dataset holds, and two frames of one by range.

What was taken down leaves a tombstone, `{"taken_down": <record>}` in the place of a manifest or a version, so
that whoever still names it is told why it is gone.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage, check_key

LATEST = "dataset/latest.json"
MOST_MEMBER = 1 << 28                        # bytes
MOST_FRAMES = 1 << 20                        # of a clip
TOMBSTONE = "taken_down"                     # the key whose value names the record below takedown/

_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Sample:
    """One clip of a dataset, as its manifest names it."""

    clip_id: str
    identity: str
    source: str                              # the video as the list names it
    licence: str                             # of the footage, as listed
    split: str                               # "train" is trained on; else "test", or as listed
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
        return np.stack([self._picture(sample, index) for index in indices])

    def cameras(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 25], kept in memory."""
        if sample.clip_id not in self._cameras:
            self._cameras[sample.clip_id] = np.asarray(self._array(sample, "cameras.npy"), np.float32)
        return self._cameras[sample.clip_id]

    def landmarks(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 68, 2], px of the source."""
        return np.asarray(self._array(sample, "landmarks.npy"), np.float32)

    def record(self, sample: Sample) -> dict[str, Any]:
        """The provenance of a sample: see `stages.provenance`."""
        values: dict[str, Any] = json.loads(self._member(sample, "json"))
        return values

    def _picture(self, sample: Sample, index: int) -> NDArray[np.uint8]:
        what = f"{sample.clip_id} frame {index}"
        picture = decode_jpeg(self._frame(sample, index), what)
        if picture.shape[:2] != (sample.size, sample.size):
            raise ValueError(f"{what}: {picture.shape[1]}x{picture.shape[0]} px; the shard is damaged")
        return picture

    def _frame(self, sample: Sample, index: int) -> bytes:
        if not 0 <= index < sample.frame_count:
            raise IndexError(f"{sample.clip_id}: frame {index} of {sample.frame_count}")
        return self._member(sample, f"{index:04d}.jpg")

    def _array(self, sample: Sample, name: str) -> NDArray[Any]:
        data = self._member(sample, name)
        with _naming(self.store, sample.tar):
            array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return array

    def _member(self, sample: Sample, name: str) -> bytes:
        with _naming(self.store, sample.index):
            if sample.index not in self._indices:
                rows = json.loads(self.store.read(sample.index))["members"]
                self._indices[sample.index] = {f"{clip}.{name}": (at, size) for clip, name, at, size in rows}
            at, size = self._indices[sample.index][f"{sample.clip_id}.{name}"]
            if not (at >= 0 and 0 <= size <= MOST_MEMBER):
                raise ValueError(f"{name}: {size} bytes at {at}")
        with _naming(self.store, sample.tar):
            return self.store.read_range(sample.tar, at, size)


def open_dataset(store: Storage, version: str | None = None) -> Dataset:
    """The dataset in `store`: its latest version, or `version`.

    Raises ValueError when there is none, and for a version that was taken down.
    """
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
        if TOMBSTONE not in content:
            manifests = [check_key(manifest) for manifest in content["manifests"]]
            size, fps = int(content["size"]), float(content["fps"])
    if TOMBSTONE in content:
        raise ValueError(
            f"version {version} of the shards in {store.root} was taken down (see {content[TOMBSTONE]}); "
            "`pv3d run` goes on with the version that replaced it"
        )
    samples = []
    for key in manifests:
        with _naming(store, key):
            manifest = json.loads(store.read(key))
            tar, index = check_key(manifest["tar"]), check_key(manifest["index"])
            samples += [_checked(Sample(**s, tar=tar, index=index)) for s in manifest["samples"]]
    return Dataset(store, version, size, fps, samples, manifests)


def _checked(sample: Sample) -> Sample:
    """Raises ValueError for what no stage writes."""
    texts = (sample.clip_id, sample.identity, sample.source, sample.licence, sample.split)
    counts = (sample.frame_count, sample.size)
    if not all(type(text) is str for text in texts) or not _ID.fullmatch(sample.clip_id):
        raise ValueError(f"a sample is named {sample.clip_id!r}")
    if not all(type(count) is int and 0 < count <= MOST_FRAMES for count in counts) or not sample.fps > 0:
        raise ValueError(f"{sample.clip_id}: {sample.frame_count} frames of {sample.size} px")
    return sample


def taken_down_by(store: Storage, key: str) -> str:
    """The record that took down the shard (key of its manifest, tar or index) or the version; "" for none."""
    stem = key.rpartition("/")[2].split(".", 1)[0]
    key = key if key.startswith("dataset/") else f"manifest/{stem}.json"
    try:
        content = json.loads(store.read(key))
    except (FileNotFoundError, ValueError, RecursionError):
        return ""
    return str(content.get(TOMBSTONE, "")) if isinstance(content, dict) else ""


@contextlib.contextmanager
def _naming(store: Storage, key: str) -> Iterator[None]:
    """Turn what reading a lost or damaged file raises into one line (a ValueError) that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        if record := taken_down_by(store, key):
            raise ValueError(
                f"{key} in {store.root} was taken down (see {record}); "
                "`pv3d run` goes on with the version of the dataset that replaced it"
            ) from error
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(
            f"{key} in {store.root} is {what}; bring it back, or make the shards in another storage.root"
        ) from error


def decode_jpeg(data: bytes, what: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB. Raises ValueError, naming `what`, for bytes that are no whole JPEG."""
    import cv2

    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:                        # of no bytes, and of a header that promises a gigapixel
        picture = None
    if picture is None:
        raise ValueError(f"{what}: not a whole JPEG; the shard is damaged")
    return np.asarray(picture, np.uint8)
