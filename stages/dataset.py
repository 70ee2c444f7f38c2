"""The shards, read: which clips a version of the dataset holds, and frames of one by range.

What was taken down leaves a tombstone, `{"taken_down": <record>}` in the place of a manifest or a version, so
that whoever still names it is told why it is gone.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage, check_key
from stages.members import TOMBSTONE, DamagedError, Members, TakenDownError, naming, taken_down_by

__all__ = [
    "LATEST", "TOMBSTONE", "DamagedError", "Dataset", "Sample", "Shard", "TakenDownError", "decode_jpeg",
    "open_dataset", "taken_down_by",
]

LATEST = "dataset/latest.json"
SCHEMA = 1                                   # of versions, manifests and indices
MOST_FRAMES = 1 << 20                        # of a clip
MOST_CAMERAS = 1 << 28                       # bytes of cameras that are kept in memory

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


@dataclass(frozen=True)
class Shard:
    """A file of a dataset, as its manifest names it."""

    sha256: str
    bytes: int


@dataclass
class Dataset:
    """A version of the dataset. Reads by range what is asked for, and nothing else.

    What is damaged raises DamagedError, what was taken down TakenDownError: both are ValueErrors of one line.
    """

    store: Storage
    version: str
    size: int                                # px, side of a frame
    fps: float
    samples: list[Sample]
    manifests: list[str]                     # keys
    shards: dict[str, Shard] = field(default_factory=dict)   # by the key of the tar

    def __post_init__(self) -> None:
        self.members = Members(self.store)
        self._cameras: dict[str, NDArray[np.float32]] = {}

    def frames(self, sample: Sample, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] RGB. Raises IndexError beyond the clip."""
        frames = np.empty((len(indices), sample.size, sample.size, 3), np.uint8)
        self.read_frames(sample, indices, frames)
        return frames

    def read_frames(
        self, sample: Sample, indices: Sequence[int], into: NDArray[np.uint8], mirrored: bool = False
    ) -> None:
        """Write frames `into` [n, H, W, 3] RGB, each decoded once. Raises IndexError beyond the clip."""
        for index in indices:
            if not 0 <= index < sample.frame_count:
                raise IndexError(f"{sample.clip_id}: frame {index} of {sample.frame_count}")
        try:
            self._read_frames(sample, indices, into, mirrored)
        except DamagedError:
            if not self.members.has_copy(sample.tar):
                raise
            self.members.use_copy(sample.tar, None)   # it may be this machine's disk
            self._read_frames(sample, indices, into, mirrored)

    def cameras(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 25], kept in memory."""
        found = self._cameras.get(sample.clip_id)
        if found is None:
            found = np.asarray(self._array(sample, "cameras.npy"), np.float32)
            if found.shape != (sample.frame_count, 25) or not np.isfinite(found).all():
                raise DamagedError(
                    f"{sample.clip_id}.cameras.npy of {sample.tar} in {self.store.root} is damaged: not "
                    f"{sample.frame_count} x 25 finite numbers; make the shards in another storage.root"
                )
            if len(self._cameras) * found.nbytes > MOST_CAMERAS:
                self._cameras.clear()
            self._cameras[sample.clip_id] = found
        return found

    def check_not_taken_down(self) -> None:
        """Raise TakenDownError when the version was taken down since it was opened."""
        try:
            content = json.loads(self.store.read(f"dataset/{self.version}.json"))
        except FileNotFoundError:            # collected: what it names may be there still
            return
        _check_not_taken_down(self.store, self.version, content)

    def landmarks(self, sample: Sample) -> NDArray[np.float32]:
        """float32 [T, 68, 2], px of the source."""
        return np.asarray(self._array(sample, "landmarks.npy"), np.float32)

    def record(self, sample: Sample) -> dict[str, Any]:
        """The provenance of a sample: see `stages.provenance`."""
        values: dict[str, Any] = json.loads(self._read(sample, ["json"])[0])
        return values

    def _read_frames(
        self, sample: Sample, indices: Sequence[int], into: NDArray[np.uint8], mirrored: bool
    ) -> None:
        first = {index: place for place, index in reversed(list(enumerate(indices)))}
        data = self._read(sample, [f"{index:04d}.jpg" for index in first])
        for (index, place), jpeg in zip(first.items(), data, strict=True):
            _decode_into(into[place], jpeg, f"{sample.clip_id} frame {index}", mirrored)
        for place, index in enumerate(indices):
            if place != first[index]:
                into[place] = into[first[index]]

    def _array(self, sample: Sample, name: str) -> NDArray[Any]:
        (data,) = self._read(sample, [name])
        with naming(self.store, sample.tar):
            array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return array

    def _read(self, sample: Sample, names: Sequence[str]) -> list[bytes]:
        return self.members.read(sample.tar, sample.index, sample.clip_id, names)


def open_dataset(store: Storage, version: str | None = None) -> Dataset:
    """The dataset in `store`: its latest version, or `version`.

    Raises ValueError when there is none, and for a version that was taken down.
    """
    if version is None:
        if not store.exists(LATEST):
            raise ValueError(f"no shards in {store.root}; run `pv3d run --until WriteShards` first")
        with naming(store, LATEST):
            version = str(json.loads(store.read(LATEST))["version"])
    key = check_key(f"dataset/{version}.json")
    if not store.exists(key):
        raise ValueError(
            f"no version {version} of the shards in {store.root}; run `pv3d run --until WriteShards` first"
        )
    with naming(store, key):
        content = json.loads(store.read(key))
        if TOMBSTONE not in content:
            manifests = [check_key(manifest) for manifest in content["manifests"]]
            size, fps = int(content["size"]), float(content["fps"])
            schema = content["schema"]
    _check_not_taken_down(store, version, content)
    if schema != SCHEMA:
        raise ValueError(
            f"{key} in {store.root} is of schema {schema!r}, this pv3d reads {SCHEMA}; read it with the pv3d "
            "that wrote it, or make the shards in another storage.root"
        )
    samples, shards = [], {}
    for key in manifests:
        with naming(store, key):
            manifest = json.loads(store.read(key))
            tar, index = check_key(manifest["tar"]), check_key(manifest["index"])
            shards[tar] = Shard(str(manifest["sha256"]), int(manifest["bytes"]))
            samples += [checked(Sample(**s, tar=tar, index=index)) for s in manifest["samples"]]
    return Dataset(store, version, size, fps, samples, manifests, shards)


def _check_not_taken_down(store: Storage, version: str, content: dict[str, Any]) -> None:
    if TOMBSTONE in content:
        raise TakenDownError(
            f"version {version} of the shards in {store.root} was taken down (see {content[TOMBSTONE]}); "
            "`pv3d run` goes on with the version that replaced it"
        )


def checked(sample: Sample) -> Sample:
    """Raises ValueError for what no stage writes."""
    texts = (sample.clip_id, sample.identity, sample.source, sample.licence, sample.split)
    counts = (sample.frame_count, sample.size)
    if not all(type(text) is str for text in texts) or not _ID.fullmatch(sample.clip_id):
        raise ValueError(f"a sample is named {sample.clip_id!r}")
    if not all(type(count) is int and 0 < count <= MOST_FRAMES for count in counts) or not sample.fps > 0:
        raise ValueError(f"{sample.clip_id}: {sample.frame_count} frames of {sample.size} px")
    return sample


def decode_jpeg(data: bytes, what: str, bgr: bool = False) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB. Raises DamagedError, naming `what`, for bytes that are no whole JPEG."""
    import cv2

    try:
        order = cv2.IMREAD_COLOR_BGR if bgr else cv2.IMREAD_COLOR_RGB
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), order)
    except cv2.error:                        # of no bytes, and of a header that promises a gigapixel
        picture = None
    if picture is None or data[-2:] != b"\xff\xd9":   # some versions make up what is cut off
        raise DamagedError(f"{what}: not a whole JPEG; the shard is damaged")
    return np.asarray(picture, np.uint8)


def _decode_into(into: NDArray[np.uint8], data: bytes, what: str, mirrored: bool) -> None:
    import cv2

    picture = decode_jpeg(data, what, bgr=mirrored)
    if picture.shape != into.shape:
        raise DamagedError(f"{what}: {picture.shape[1]}x{picture.shape[0]} px; the shard is damaged")
    if mirrored:                             # the bytes of a row from its end on: BGR becomes RGB
        cv2.flip(picture.reshape(len(picture), -1), 1, into.reshape(len(into), -1))
    else:
        into[...] = picture
