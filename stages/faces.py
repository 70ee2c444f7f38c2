"""Follow one face through a clip: its points in every frame, or a reason why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages import backends, boxes, faults
from stages.ahead import ahead
from stages.backends import FaceBackend
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.faults import Run, Series
from stages.smooth import check_not_negative
from stages.sources import lists
from stages.track import BatchTrack, TakesMany, Track

READ_LONG_SIDE = 1920            # px, of the picture that points are found in; scaling costs more than pixels
READ_AHEAD = 16                  # frames, in a burst


@dataclass
class FollowFace(Stage):
    """Find the largest face that lasts, and its points; reject clips without one, or with two.

    Where the list gives a box, the face in it is meant, whoever else is there. Frames that cannot be used
    divide a clip: what is left on either side is kept when it has `minimum_frames`, under an id of its own,
    the clip's with the number of its first frame. When nothing is left, the clip is rejected for the reason
    that most frames have.
    """

    backend: str = "stages.backends.dlib:DlibFaces"
    detect_every: int = 5                    # frames; between, a face is followed
    minimum_frames: int = 48                 # of a part, when the clip has to be divided
    minimum_face_px: float = 96.0            # side of the face's box in the source, median over the clip
    minimum_sharpness: float = 0.45          # of the face, 0 ... 1, median: see stages.blur
    maximum_missing_frames: int = 5          # in a row; so many are interpolated
    second_face_seconds: float = 0.6         # a second face that is seen for longer competes
    second_face_size: float = 0.5            # of the first one's side: smaller faces do not count

    name: ClassVar[str] = "FollowFace"
    reads: ClassVar[tuple[str, ...]] = ("video", "fps", "width", "height", "frame_times_s")
    writes: ClassVar[tuple[str, ...]] = (
        "frame_times_s", "face_boxes", "landmarks", "mesh", "landmark_backend",
    )
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for name in ("detect_every", "minimum_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"stages.faces.{name}: {getattr(self, name)} is below 1; give 1 or more")
        check_not_negative(
            minimum_face_px=self.minimum_face_px, minimum_sharpness=self.minimum_sharpness,
            maximum_missing_frames=self.maximum_missing_frames, second_face_seconds=self.second_face_seconds,
        )  # fmt: skip
        if not self.second_face_size > 0:
            raise ValueError(f"stages.faces.second_face_size: {self.second_face_size} is not above 0")

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store
        self.model: FaceBackend = backends.load(self.backend, needs=backends.FACE)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        model = self.model
        scale = max(max(clip.width, clip.height) / READ_LONG_SIDE, 1.0)
        track = self._pass(clip, scale)
        seen = np.array([points is not None for points in track.points])
        if not seen.any():
            raise self._nothing(clip, track, scale)
        points = _filled(track.points)
        found = np.array(
            [model.box(p) if box is None else box for p, box in zip(points, track.boxes, strict=True)],
            np.float32,
        )
        sides = np.array([boxes.side(box) for box in found.tolist()]) * scale
        sharp = np.array(track.sharp)
        parts = self._parts(clip.fps, track, seen, sides)
        if not any(part.reason == "" for part in parts):
            raise self._drop(clip, parts, sides, sharp)
        # A pixel's centre is at its index, so the scaled picture's corner is at -0.5.
        mesh = ((points + 0.5) * scale - 0.5).astype(np.float32)
        whole = clip.copy(
            landmarks=mesh if model.points68 is None else mesh[:, model.points68],
            mesh=None if model.points68 is None else mesh,
            face_boxes=((found + 0.5) * scale - 0.5).astype(np.float32),
            landmark_backend=self.backend,
        )
        if len(parts) == 1:
            yield whole
            return
        for part in parts:
            piece = _cut(whole, part)
            detail = self._detail(clip, part, sides, sharp)
            yield Rejected(piece, part.reason, detail) if part.reason else piece

    def _pass(self, clip: Clip, scale: float) -> Track:
        """Look at every frame once."""
        from stages import video

        times_s = clip.need("frame_times_s")
        span = clip.listed.get("span", {})
        listed = [lists.box_at(span, t, clip.width, clip.height) for t in times_s]
        wanted = [None if box is None else boxes.scaled(box, 1 / scale) for box in listed]
        kind = BatchTrack if isinstance(self.model, TakesMany) else Track
        track = kind(
            self.model, wanted, self.detect_every, self.maximum_missing_frames, self.second_face_size
        )
        with video.resolve(self._store, clip.video) as path:
            for frame in ahead(video.read_frames(path, times_s, READ_LONG_SIDE), READ_AHEAD):
                track.step(frame)
        return track

    def _parts(self, fps: float, track: Track, seen: NDArray[np.bool_], sides: Series) -> list[Run]:
        """The frames, in pieces of one face and one reason each."""
        others, sharp = np.array(track.others), np.array(track.sharp)
        reasons = faults.label({
            "face lost": faults.missing(seen, self.maximum_missing_frames),
            "two faces": faults.accompanied(others, self.detect_every, fps, self.second_face_seconds),
            "face too small": faults.low(sides, self.minimum_face_px, fps),
            "face blurred": faults.low(sharp, self.minimum_sharpness, fps),
        })  # fmt: skip
        found = faults.runs(list(zip(reasons, track.faces, strict=True)))
        return [
            replace(run, reason=self._judge(run, reasons[run.first], len(found) > 1, sides, sharp))
            for run in found
        ]

    def _judge(self, run: Run, reason: str, divided: bool, sides: Series, sharp: Series) -> str:
        """Why a piece is rejected as a whole; empty when it is kept."""
        frames = slice(run.first, run.end)
        measured = sharp[frames][np.isfinite(sharp[frames])]
        if reason:
            return reason
        if divided and len(run) < self.minimum_frames:
            return "too short"
        if np.median(sides[frames]) < self.minimum_face_px:
            return "face too small"
        return "face blurred" if len(measured) and np.median(measured) < self.minimum_sharpness else ""

    def _drop(self, clip: Clip, parts: list[Run], sides: Series, sharp: Series) -> Drop:
        """Why nothing of a clip can be used: the reason of most frames."""
        frames: dict[str, int] = {}
        for part in parts:
            frames[part.reason] = frames.get(part.reason, 0) + len(part)
        others = {reason: count for reason, count in frames.items() if reason != "too short"}
        reason = max(others or frames, key=lambda r: frames[r])
        part = max((part for part in parts if part.reason == reason), key=len)
        return Drop(reason, self._detail(clip, part, sides, sharp))

    def _detail(self, clip: Clip, part: Run, sides: Series, sharp: Series) -> str:
        """The figures of a rejected piece."""
        frames = slice(part.first, part.end)
        match part.reason:
            case "too short":
                return f"{len(part)} frames are left, {self.minimum_frames} are needed"
            case "face too small":
                return f"{np.median(sides[frames]):.0f} px, {self.minimum_face_px:g} are needed"
            case "face blurred":
                found = float(np.nanmedian(sharp[frames])) if np.isfinite(sharp[frames]).any() else 0.0
                return f"sharpness {found:.2f}, {self.minimum_sharpness:g} is needed"
            case "two faces":
                return f"a second one is seen for {len(part) / clip.fps:.1f} s"
        return f"{len(part)} frames in a row, from {part.first / clip.fps:.2f} s"

    def _nothing(self, clip: Clip, track: Track, scale: float) -> Drop:
        """Why no face was found: a closer look tells none from a small one."""
        if track.wanted[0] is not None:
            return Drop("no face in the listed box")
        if (side := track.nothing() * scale) > 0:
            return Drop("face too small", f"{side:.0f} px, seen only when looking closer")
        return Drop("no face")


def _filled(points: list[NDArray[np.float32] | None]) -> NDArray[np.float64]:
    """[T, P, 2]: straight lines over the missing frames, and still at the ends."""
    found = np.array([i for i, p in enumerate(points) if p is not None])
    known = np.array([p for p in points if p is not None], np.float64)
    at = np.interp(np.arange(len(points)), found, np.arange(len(found)))
    before = np.floor(at).astype(int)
    share = (at - before)[:, None, None]
    after = np.minimum(before + 1, len(found) - 1)
    filled: NDArray[np.float64] = (1 - share) * known[before] + share * known[after]
    return filled


def _cut(clip: Clip, part: Run) -> Clip:
    """Some frames of a clip, as a clip of its own."""
    frames = slice(part.first, part.end)
    names = ("frame_times_s", "landmarks", "mesh", "face_boxes")
    arrays = {name: getattr(clip, name) for name in names}
    return clip.copy(
        id=f"{clip.id}_{part.first:05d}",
        **{name: None if array is None else array[frames].copy() for name, array in arrays.items()},
    )
