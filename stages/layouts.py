"""Folders that other programs read, written from a dataset: those of PV3D's authors and of EG3D.

    pv3d    recrop_faces/<clip>.mp4             H.264, all frames
            smoothed_camera2world/<clip>.json   [[frame name, [25 numbers]], ...], a row per frame
            voxceleb.list                       the name of one mp4 per line; written last
    eg3d    images/<clip>/<frame>.png
            dataset.json                        {"labels": [[name, [25 numbers]], ...]}; written last

Beside them lies provenance/<clip>.json: where a clip comes from, whose face it is, and under which licence.
Keys are relative to a `Storage`; equal datasets give equal bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from model.camera import hflip
from stages.shards import Dataset, Sample

VIDEOS = "recrop_faces"
CAMERAS = "smoothed_camera2world"
LIST = "voxceleb.list"
IMAGES = "images"
LABELS = "dataset.json"
PROVENANCE = "provenance"

PNG_COMPRESSION = 3
CHUNK = 32                       # frames decoded at a time
TRIAL_FRAMES = 16                # frames that an estimate encodes


class Layout(Protocol):
    """One form of folder. Its dataclass fields are the options that decide its bytes."""

    name: ClassVar[str]
    last: ClassVar[str]                      # key of the file without which the folder is not read
    folders: ClassVar[tuple[str, ...]]       # what lies in them is the layout's own

    def frame_count(self, sample: Sample) -> int:
        """Frames that are written of a sample."""
        ...

    def files(self, sample: Sample) -> list[str]:
        """Keys of a sample's files."""
        ...

    def write(self, dataset: Dataset, sample: Sample, out: Storage) -> int:
        """Write the files of a sample. Returns their bytes."""
        ...

    def finish(self, dataset: Dataset, samples: Sequence[Sample], out: Storage) -> None:
        """Write `last`."""
        ...

    def bytes_per_frame(self, dataset: Dataset, sample: Sample) -> float:
        """About how large a written frame is, tried on a sample."""
        ...


@dataclass(frozen=True)
class Pv3dLayout:
    """What the authors' code trains from."""

    crf: int = 18                            # of x264, 0 to 51: lower is better and larger

    name: ClassVar[str] = "pv3d"
    last: ClassVar[str] = LIST
    folders: ClassVar[tuple[str, ...]] = (VIDEOS, CAMERAS)

    def frame_count(self, sample: Sample) -> int:
        return sample.frame_count

    def files(self, sample: Sample) -> list[str]:
        return [f"{VIDEOS}/{sample.clip_id}.mp4", f"{CAMERAS}/{sample.clip_id}.json"]

    def write(self, dataset: Dataset, sample: Sample, out: Storage) -> int:
        video, cameras = self.files(sample)
        names = [f"{index:04d}.png" for index in range(sample.frame_count)]
        rows = [[name, plain(camera)] for name, camera in zip(names, dataset.cameras(sample), strict=True)]
        text = _json(rows)
        with tempfile.TemporaryDirectory(prefix="pv3d-export-") as folder:
            path = Path(folder, "clip.mp4")
            self._encode(path, dataset, sample, sample.frame_count)
            out.upload(video, path)
            size = path.stat().st_size
        out.write(cameras, text)
        return size + len(text)

    def finish(self, dataset: Dataset, samples: Sequence[Sample], out: Storage) -> None:
        out.write(LIST, "".join(f"{sample.clip_id}.mp4\n" for sample in samples).encode())

    def bytes_per_frame(self, dataset: Dataset, sample: Sample) -> float:
        count = min(sample.frame_count, TRIAL_FRAMES)
        with tempfile.TemporaryDirectory(prefix="pv3d-export-") as folder:
            path = Path(folder, "trial.mp4")
            self._encode(path, dataset, sample, count)
            return path.stat().st_size / count

    def _encode(self, path: Path, dataset: Dataset, sample: Sample, count: int) -> None:
        from stages.video import write_video

        write_video(path, frames(dataset, sample, range(count)), sample.fps, self.crf)


@dataclass(frozen=True)
class Eg3dLayout:
    """What EG3D's code trains from: single images with a camera each."""

    every: int = 1                           # every n-th frame of a clip
    per_clip: int = 0                        # if positive: so many frames, spread over the clip
    mirror: bool = False                     # each image a second time, left and right exchanged

    name: ClassVar[str] = "eg3d"
    last: ClassVar[str] = LABELS
    folders: ClassVar[tuple[str, ...]] = (IMAGES,)

    def chosen(self, sample: Sample) -> list[int]:
        """Indices of the frames that are written."""
        count = sample.frame_count
        if 0 < self.per_clip < count:
            return [(2 * k + 1) * count // (2 * self.per_clip) for k in range(self.per_clip)]
        return list(range(0, count, self.every if not self.per_clip else 1))

    def frame_count(self, sample: Sample) -> int:
        return len(self.chosen(sample)) * (2 if self.mirror else 1)

    def files(self, sample: Sample) -> list[str]:
        endings = ("", "_mirror") if self.mirror else ("",)
        return [f"{IMAGES}/{sample.clip_id}/{i:04d}{end}.png" for i in self.chosen(sample) for end in endings]

    def write(self, dataset: Dataset, sample: Sample, out: Storage) -> int:
        size = 0
        for key, picture in zip(self.files(sample), self._pictures(dataset, sample), strict=True):
            data = png(picture)
            out.write(key, data)
            size += len(data)
        return size

    def finish(self, dataset: Dataset, samples: Sequence[Sample], out: Storage) -> None:
        with tempfile.TemporaryDirectory(prefix="pv3d-export-") as folder:
            path = Path(folder, LABELS)
            with path.open("wb") as file:
                file.write(b'{"labels":[')
                for number, row in enumerate(self._labels(dataset, samples)):
                    file.write((b",\n" if number else b"\n") + _json(row))
                file.write(b"\n]}\n")
            out.upload(LABELS, path)

    def bytes_per_frame(self, dataset: Dataset, sample: Sample) -> float:
        return len(png(next(self._pictures(dataset, sample))))

    def _pictures(self, dataset: Dataset, sample: Sample) -> Iterator[NDArray[np.uint8]]:
        for picture in frames(dataset, sample, self.chosen(sample)):
            yield picture
            if self.mirror:
                yield picture[:, ::-1]

    def _labels(self, dataset: Dataset, samples: Sequence[Sample]) -> Iterator[list[Any]]:
        for sample in samples:
            cameras = dataset.cameras(sample)[self.chosen(sample)]
            if self.mirror:
                cameras = np.stack([cameras, hflip(cameras)], axis=1).reshape(-1, 25)
            # Names count from the folder of dataset.json, with its folders.
            for key, camera in zip(self.files(sample), cameras, strict=True):
                yield [key, plain(camera)]


def provenance_key(sample: Sample) -> str:
    return f"{PROVENANCE}/{sample.clip_id}.json"


def provenance(dataset: Dataset, sample: Sample) -> dict[str, Any]:
    """The sample's record without what is said frame by frame."""
    record = dataset.record(sample)
    return {
        key: value for key, value in record.items()
        if not (isinstance(value, list) and len(value) == sample.frame_count)
    }  # fmt: skip


def frames(dataset: Dataset, sample: Sample, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """uint8 [H, W, 3] RGB of each index, a few in memory at a time."""
    for start in range(0, len(indices), CHUNK):
        yield from dataset.frames(sample, indices[start:start + CHUNK])


def plain(camera: NDArray[np.float32]) -> list[float]:
    """Numbers as short as they can be written and still read back as the same float32."""
    return [float(str(value)) for value in camera]


def png(picture: NDArray[np.uint8]) -> bytes:
    import cv2

    how = [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION]
    done, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR), how)
    assert done, "a picture in memory can be encoded"
    return bytes(data.tobytes())


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
