"""Follow one face through a clip: 68 points in every frame, or a reason why not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages import backends
from stages.backends import Box, Detection, FaceBackend
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.sources import lists

Picture = NDArray[np.uint8]
Points = NDArray[np.float32]     # [68, 2]

READ_LONG_SIDE = 1280            # px, of the picture that points are found in
DETECT_PIXELS = 360_000          # px, area of the picture that faces are detected in: 800 x 450
NEAR_FACE = 1.5                  # a face is shown to the detector this much larger than its smallest

# In sides of the face's box:
REFINE_BEYOND = 0.06             # a step after which the points are found again from their own box
FAST = 0.08                      # a step, or a change of size, after which the face is looked for nearby
OTHER = 0.6                      # another face is at least so far away
NEAR = 1.0                       # a lost face is found again so near
# Intersection over union of a detection with the box of the points:
INSIDE = 0.5                     # of a face's box, within the listed box
SAME = 0.35                      # it is the same face
GOOD = 0.65                      # the points need no correction


@dataclass
class FollowFace(Stage):
    """Find the largest face that lasts, and its landmarks; reject clips without one, or with two.

    Where the list gives a box, the face in it is meant, whoever else is there.

    Faces are detected every `detect_every` frames; between, the points of one frame say where to look for
    them in the next, and the next detection has to confirm it. When it does not, every frame since the last
    confirmed one is checked by itself.
    """

    backend: str = "stages.backends.dlib:DlibFaces"
    detect_every: int = 5
    minimum_face_px: float = 96.0            # side of the face's box in the source, median over the clip
    maximum_missing_frames: int = 5          # in a row; so many are interpolated
    second_face_seconds: float = 0.6         # a second face that is seen for longer competes
    second_face_size: float = 0.5            # of the first one's side: smaller faces do not count

    name: ClassVar[str] = "FollowFace"
    reads: ClassVar[tuple[str, ...]] = ("video", "fps", "width", "height", "frame_times_s")
    writes: ClassVar[tuple[str, ...]] = ("face_boxes", "landmarks")

    def __post_init__(self) -> None:
        if self.detect_every < 1:
            raise ValueError(f"stages.faces.detect_every: {self.detect_every} is below 1; give 1 or more")

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store
        self._model: FaceBackend = backends.load(self.backend)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        from stages import video

        times_s = clip.need("frame_times_s")
        scale = max(clip.width, clip.height) / min(READ_LONG_SIDE, max(clip.width, clip.height))
        span = clip.listed.get("span", {})
        listed = [lists.box_at(span, t, clip.width, clip.height) for t in times_s]
        wanted = [None if box is None else _scaled(box, 1 / scale) for box in listed]
        track = _Track(self._model, self, wanted, clip.fps)
        with video.resolve(self._store, clip.video) as path:
            for frame in video.read_frames(path, times_s, READ_LONG_SIDE):
                track.step(frame)
        points = track.finish(scale)
        boxes = np.array([self._model.box(p) for p in points], np.float32)
        # A pixel's centre is at its index, so the scaled picture's corner is at -0.5.
        yield clip.copy(
            landmarks=((points + 0.5) * scale - 0.5).astype(np.float32),
            face_boxes=((boxes + 0.5) * scale - 0.5).astype(np.float32),
        )


class _Track:
    """The face so far. Pixels are those of the frames as read."""

    def __init__(
        self, model: FaceBackend, settings: FollowFace, wanted: list[Box | None], fps: float
    ) -> None:
        self.model, self.settings, self.wanted, self.fps = model, settings, wanted, fps
        self.total = len(wanted)
        self.points: list[Points | None] = []                # of each frame, None when missing
        self.box: Box | None = None                          # where the face was last
        # Frames since the last confirmed one, this one included.
        self.unsure: deque[Picture] = deque(maxlen=settings.maximum_missing_frames + settings.detect_every)
        self.seconds_with_two = 0.0
        self.last_look: Picture | None = None

    def step(self, frame: Picture) -> None:
        """Take the next frame. Raises Drop as soon as the clip is hopeless."""
        index = len(self.points)
        look = index % self.settings.detect_every == 0
        points = self._follow(frame)
        self.points.append(points)
        self.unsure.append(frame)
        if look:
            self.last_look = frame
        if points is None:
            if look or self.box is not None or index <= self.settings.maximum_missing_frames:
                self._search(frame, self._detect(frame))
        elif look or index == self.total - 1:
            self._confirm(frame, self._detect(frame), look)
        elif self._is_fast(points):
            self._confirm(frame, self._detect_near(frame, self.model.box(points)), look=False)
        if (now := self.points[-1]) is not None:
            self.box = self.model.box(now)
        self._check_missing()

    def finish(self, scale: float) -> Points:
        """float32 [T, 68, 2], gaps filled. Raises Drop."""
        found = [i for i, points in enumerate(self.points) if points is not None]
        if not found:
            raise self._nothing(scale)
        known = np.array([p for p in self.points if p is not None], np.float64)
        sides = [_side(self.model.box(p.astype(np.float32))) * scale for p in known]
        side = float(np.median(sides))
        if side < self.settings.minimum_face_px:
            raise Drop("face too small", f"{side:.0f} px, {self.settings.minimum_face_px:g} are needed")
        flat = known.reshape(len(known), -1)
        frames = np.arange(self.total)
        filled = np.stack([np.interp(frames, found, column) for column in flat.T], axis=1)
        return filled.reshape(self.total, 68, 2).astype(np.float32)

    def _follow(self, frame: Picture) -> Points | None:
        """Points found from where the face was one frame ago, if it was there."""
        if not self.points or self.points[-1] is None or self.box is None:
            return None
        return self._refine(frame, self.box)

    def _refine(self, frame: Picture, box: Box) -> Points:
        points = self.model.landmarks(frame, box)
        moved = self.model.box(points)
        return self.model.landmarks(frame, moved) if _apart(moved, box) > REFINE_BEYOND else points

    def _is_fast(self, points: Points) -> bool:
        if self.box is None:
            return False
        box = self.model.box(points)
        return _apart(box, self.box) > FAST or abs(_side(box) / _side(self.box) - 1) > FAST

    def _confirm(self, frame: Picture, seen: list[Detection], look: bool) -> None:
        """Ask the detector whether the face is where the points are, in this frame and in those before."""
        points = self.points[-1]
        assert points is not None
        box = self.model.box(points)
        if look:
            self._count_others(seen, box)
        there = _same_face(seen, box) or _same_face(self._detect_near(frame, box), box)
        if there is not None:
            if _overlap(there.box, box) < GOOD:
                self.points[-1] = self._refine(frame, there.box)
            self.unsure.clear()
            return
        for back, earlier in enumerate(reversed(self.unsure), start=1):
            followed = self.points[-back]
            if back > 1 and followed is not None and self._is_near(earlier, followed):
                break
            self.points[-back] = None
        self._search(frame, seen or self._detect(frame))

    def _search(self, frame: Picture, seen: list[Detection]) -> None:
        """Find the face anew in this frame, and go back from it to fill what was missing."""
        chosen = self._choose(seen)
        if chosen is None:
            return
        points = self._refine(frame, chosen.box)
        self.points[-1] = points
        for back, earlier in enumerate(reversed(self.unsure), start=1):
            if back == 1:
                continue
            if self.points[-back] is not None:
                break
            points = self._refine(earlier, self.model.box(points))
            if not self._is_near(earlier, points):
                break
            self.points[-back] = points
        self.unsure.clear()

    def _choose(self, seen: list[Detection]) -> Detection | None:
        """The face to follow: the same as before, or at first the largest of those that surely are faces."""
        if self.box is not None:
            box = self.box
            near = [d for d in seen if _apart(d.box, box) < NEAR and 0.6 < _side(d.box) / _side(box) < 1.6]
            return min(near, key=lambda d: _apart(d.box, box), default=None)
        wanted = self.wanted[len(self.points) - 1]
        if wanted is not None:
            faces = [d for d in seen if d.score >= self.model.believe_above]
            inside = [d for d in faces if _inside(d.box, wanted) > INSIDE]
            return max(inside, key=lambda d: _overlap(d.box, wanted), default=None)
        sure = [d for d in seen if d.score >= max(self.model.believe_above, seen[0].score / 2)]
        return max(sure, key=lambda d: _side(d.box), default=None)

    def _count_others(self, seen: list[Detection], box: Box) -> None:
        if self.wanted[0] is not None:
            return                               # the list says who is meant
        for d in seen:
            large = _side(d.box) >= self.settings.second_face_size * _side(box)
            if large and d.score >= self.model.believe_above and _apart(d.box, box) > OTHER:
                self.seconds_with_two += self.settings.detect_every / self.fps
                break
        if self.seconds_with_two > self.settings.second_face_seconds:
            raise Drop("two faces", f"a second one is seen for more than {self.seconds_with_two:.1f} s")

    def _check_missing(self) -> None:
        """Raise Drop when the face was gone for too long, also before it came."""
        if self.box is None:
            return
        gap, longest = 0, 0
        for points in self.points:
            gap = gap + 1 if points is None else 0
            longest = max(longest, gap)
        if longest > self.settings.maximum_missing_frames:
            raise Drop("face lost", f"{longest} frames in a row, by {len(self.points) / self.fps:.2f} s")

    def _nothing(self, scale: float) -> Drop:
        """Why no face was found: a closer look tells none from a small one."""
        closer = self.model.detect(self.last_look) if self.last_look is not None else []
        small = [d for d in closer if d.score >= self.model.believe_above]
        if self.wanted[0] is not None:
            return Drop("no face in the listed box")
        if small:
            side = max(_side(d.box) for d in small) * scale
            return Drop("face too small", f"{side:.0f} px, seen only when looking closer")
        return Drop("no face")

    def _detect(self, frame: Picture) -> list[Detection]:
        """Faces in the whole frame, looked for at a smaller size."""
        import cv2

        height, width = frame.shape[:2]
        scale = min((DETECT_PIXELS / (height * width)) ** 0.5, 1.0)
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        return [Detection(_scaled(d.box, 1 / scale), d.score) for d in self.model.detect(frame)]

    def _detect_near(self, frame: Picture, box: Box) -> list[Detection]:
        """Faces around `box`, looked for in its surroundings alone, enlarged or shrunk."""
        import cv2

        target = NEAR_FACE * self.model.smallest_px
        scale = target / _side(box)
        left, top = box[0] - target / 2 / scale, box[1] - target / 2 / scale
        matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
        side = round(2 * target)
        patch = cv2.warpAffine(frame, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        found = self.model.detect(np.asarray(patch, np.uint8))
        return [Detection(_shifted(_scaled(d.box, 1 / scale), left, top), d.score) for d in found]

    def _is_near(self, frame: Picture, points: Points) -> bool:
        """Whether the detector sees a face where the points are."""
        box = self.model.box(points)
        return _same_face(self._detect_near(frame, box), box) is not None


def _same_face(seen: list[Detection], box: Box) -> Detection | None:
    """The detection that overlaps `box` best, if any is the same face."""
    best = max(seen, key=lambda d: _overlap(d.box, box), default=None)
    return best if best is not None and _overlap(best.box, box) > SAME else None


def _side(box: Box) -> float:
    return max(math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0.0)), 1e-6)


def _apart(box: Box, other: Box) -> float:
    """Distance of the centres, in sides of `other`."""
    x = (box[0] + box[2] - other[0] - other[2]) / 2
    y = (box[1] + box[3] - other[1] - other[3]) / 2
    return math.hypot(x, y) / _side(other)


def _overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    inside = max(width, 0.0) * max(height, 0.0)
    return inside / (_side(box) ** 2 + _side(other) ** 2 - inside)


def _inside(box: Box, other: Box) -> float:
    """Share of `box` that lies in `other`."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0) / _side(box) ** 2


def _scaled(box: Box, scale: float) -> Box:
    return (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)


def _shifted(box: Box, x: float, y: float) -> Box:
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
