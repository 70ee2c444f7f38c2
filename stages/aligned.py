"""Clips that are cut, cropped and have cameras already, as the authors of PV3D published theirs."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from model.camera import RADIUS, check_cameras
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.crop import check_side
from stages.face_model import LANDMARKS
from stages.pnp import CROP_DISTANCE
from stages.sources import lists
from stages.sources.official import camera_file

MOST_CAMERA_BYTES = 1 << 26
MOST_FRAMES = 10_000
NEAR_S = 1e-3                    # a frame's time may be rounded by so much
FOUND = ("landmarks", "mesh", "smooth_landmarks", "smooth_mesh", "face_boxes")     # by stages before
MOST_NUMBER = 1e4                # of a camera: squares of larger ones mean nothing


@dataclass
class TakeAligned(Stage):
    """Take a video that is the training square, and the cameras beside it, as they are.

    Row i of the cameras belongs to frame i, whatever its name, as in the authors' reader. Where one has a few
    more than the other, the rest is cut off.

    In the place of `AlignCrop` and `FitCameras` it takes the frames that stages before it chose, with their
    landmarks. As the first stage it takes the whole video at `fps`, with the landmarks of an average face
    where the cameras see it, a few px off.
    """

    size: int = 512                          # px, side of the square; larger videos are made smaller
    fps: float = 25.0                        # of videos that no stage has cut
    quality: int = 95                        # of the JPEG files, 4:4:4
    minimum_frames: int = 17
    maximum_unmatched: int = 2               # frames without a camera, or cameras without a frame
    tolerance: float = 0.02                  # of a rotation's orthonormality and of the radius 2.7

    name: ClassVar[str] = "TakeAligned"
    reads: ClassVar[tuple[str, ...]] = ("video", "listed")
    writes: ClassVar[tuple[str, ...]] = (
        "fps", "width", "height", "frame_times_s", "crop_transforms", "crop_size", "padded_fraction",
        "aligned", "cameras", "landmarks", "landmark_backend", "face_boxes", "extra.aligned",
    )

    def __post_init__(self) -> None:
        check_side(self.size)
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality: {self.quality} is no JPEG quality; give 1 to 100")
        if not (self.fps > 0 and self.minimum_frames > 0):
            raise ValueError("fps and minimum_frames must be positive")
        if not (self.maximum_unmatched >= 0 and self.tolerance > 0):
            raise ValueError("maximum_unmatched must be 0 or more, and tolerance positive")

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        yield from lists.refuse(clip)
        cameras = read_cameras(camera_file(clip), self.tolerance)
        with tempfile.TemporaryDirectory(prefix="pv3d-aligned-") as folder:
            side, times_s = self._decode(clip, Path(folder))
            counts = {"frames": len(times_s), "cameras": len(cameras)}
            if abs(len(times_s) - len(cameras)) > self.maximum_unmatched:
                raise Drop("cameras do not fit", f"{len(times_s)} frames, {len(cameras)} cameras")
            chosen = self._chosen(clip, times_s)
            chosen = chosen[chosen < len(cameras)]           # what is cut off is at the end
            if len(chosen) < self.minimum_frames:
                raise Drop("too short", f"{len(chosen)} frames, {self.minimum_frames} are needed")
            key = f"aligned/{clip.id}-{self._digest(clip)}.tar"
            self._pack(key, Path(folder), chosen)
        yield clip.copy(
            fps=clip.fps or self.fps, width=side, height=side, frame_times_s=times_s[chosen],
            crop_size=self.size, padded_fraction=0.0, aligned=key, cameras=cameras[chosen],
            **self._places(clip, cameras[chosen], side), extra={**clip.extra, "aligned": counts},
        )

    def _decode(self, clip: Clip, folder: Path) -> tuple[int, NDArray[np.float64]]:
        """Write the frames of the clip as JPEG files, each named by its number in the video.

        Returns (side of the video in px, times in s of all its frames).
        """
        import cv2

        from stages import video

        how = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        how += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        side = 0
        times_s: list[float] = []
        first, last = (-math.inf, math.inf)
        if clip.is_cut:
            first, last = clip.need("frame_times_s")[[0, -1]] + (-NEAR_S, NEAR_S)
        with video.resolve(self._store, clip.video) as path:
            for time_s, frame in video.read_all(path):
                height, side = frame.shape[:2]
                self._check(side, height, len(times_s))
                times_s.append(time_s)
                if not first <= time_s <= last:
                    continue
                picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                if side != self.size:
                    picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_AREA)
                done, data = cv2.imencode(".jpg", picture, how)
                assert done, "a picture in memory can be encoded"
                Path(folder, f"{len(times_s) - 1}.jpg").write_bytes(data.tobytes())
        return side, np.array(times_s, np.float64)

    def _check(self, width: int, height: int, count: int) -> None:
        if width != height:
            raise Drop("not square", f"{width}x{height} px; only aligned squares can be taken")
        if width < self.size:
            raise Drop("too small", f"{width} px, {self.size} are needed")
        if count >= MOST_FRAMES:
            raise Drop("too long", f"more than {MOST_FRAMES:,} frames")

    def _chosen(self, clip: Clip, times_s: NDArray[np.float64]) -> NDArray[np.intp]:
        """Indices of the frames of the clip; of a whole video, those nearest to every 1 / fps seconds."""
        if len(times_s) < 2:
            raise Drop("too short", f"{len(times_s)} frames, {self.minimum_frames} are needed")
        if clip.is_cut:
            return nearest(times_s, clip.need("frame_times_s"))
        step = float(np.median(np.diff(times_s)))
        if step > 1.25 / self.fps:
            raise Drop("low frame rate", f"{1 / step:.2f} frames per second, {self.fps:g} are wanted")
        count = math.floor((times_s[-1] + step - times_s[0]) * self.fps + 1e-6)
        return nearest(times_s, times_s[0] + np.arange(count) / self.fps)

    def _digest(self, clip: Clip) -> str:
        text = clip.digest() + json.dumps([self.version, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _pack(self, key: str, folder: Path, chosen: NDArray[np.intp]) -> None:
        local = Path(folder, "aligned.tar")
        with tarfile.open(local, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, frame in enumerate(chosen):
                data = Path(folder, f"{frame}.jpg").read_bytes()
                member = tarfile.TarInfo(f"{index:04d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        self._store.upload(key, local)

    def _places(self, clip: Clip, cameras: NDArray[np.float32], side: int) -> dict[str, Any]:
        """Where things are in the video, which is the source now; the crop is all of it."""
        scale = self.size / side
        transform = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
        transforms = {"crop_transforms": np.repeat(transform[None], len(cameras), axis=0)}
        if clip.landmarks is not None:
            known = {name: getattr(clip, name) for name in FOUND}
            return transforms | {k: v[:len(cameras)] for k, v in known.items() if v is not None}
        points = mean_face(cameras, side)
        return transforms | {
            "landmarks": points, "landmark_backend": "stages.aligned:mean_face",
            "face_boxes": np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1),
        }


def nearest(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Of each wanted time the index of the nearest of two or more ascending times; of equals the first."""
    after = np.clip(np.searchsorted(times_s, wanted_s), 1, len(times_s) - 1)
    return np.asarray(after - (wanted_s - times_s[after - 1] <= times_s[after] - wanted_s), np.intp)


def read_cameras(path: Path, tolerance: float) -> NDArray[np.float32]:
    """float32 [T, 25] of a json of rows [frame name, [25 numbers]]. Raises Drop for what it should not be."""
    try:
        if path.stat().st_size > MOST_CAMERA_BYTES:
            raise Drop("bad cameras", f"{path.name}: more than {MOST_CAMERA_BYTES:,} bytes")
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise Drop("no cameras", f"{path.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Drop("bad cameras", f"{path.name}: no sound json ({str(error)[:80]})") from None
    if not isinstance(rows, list) or not rows:
        raise Drop("bad cameras", f"{path.name}: no list of [frame name, [25 numbers]]")
    for index, row in enumerate(rows):
        if not _is_row(row):
            raise Drop("bad cameras", f"{path.name}: row {index} is not [frame name, [25 numbers]]")
    try:
        cameras = np.array([row[1] for row in rows], np.float64)
        if not (np.abs(cameras) < MOST_NUMBER).all():
            raise ValueError("a number is not finite, or far too large")
        check_cameras(cameras, tolerance=tolerance, radius=RADIUS)
        return cameras.astype(np.float32)
    except (ValueError, OverflowError) as error:
        raise Drop("bad cameras", f"{path.name}: {' '.join(str(error).split())[:120]}") from None


def _is_row(row: Any) -> bool:
    if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
        return False
    numbers = row[1]
    return isinstance(numbers, list) and len(numbers) == 25 and all(type(n) in (int, float) for n in numbers)


def mean_face(cameras: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """[T, 25] -> float32 [T, 68, 2]: where an average face lies in a square of `side` px.

    The 25 numbers carry a camera at radius 2.7 whose picture was taken from `CROP_DISTANCE`.
    """
    pose = cameras[:, :16].reshape(-1, 4, 4).astype(np.float64)
    lens = cameras[:, 16:].reshape(-1, 3, 3).astype(np.float64)
    away = LANDMARKS[None] - pose[:, None, :3, 3] * CROP_DISTANCE / RADIUS      # [T, 68, 3]
    seen = away @ pose[:, :3, :3] @ np.swapaxes(lens, 1, 2)
    return np.asarray(seen[..., :2] / seen[..., 2:] * side - 0.5, np.float32)
