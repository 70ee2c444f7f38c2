"""Where one face is in every frame of a clip: detected now and then, followed between, confirmed again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stages import boxes
from stages.backends import Box, Detection, FaceBackend
from stages.blur import sharpness

Picture = NDArray[np.uint8]
Points = NDArray[np.float32]     # [P, 2]

DETECT_PIXELS = 360_000          # px, area of the picture that a face is looked for in first: 800 x 450
SEEN_FROM = 1.5                  # faces are shown to the detector this much larger than its smallest
CLOSER = 5                       # looks, of which one is a closer one where nobody is found
NEAR_PX = 80.0                   # and one that is looked for nearby has at least this side

# In sides of the face's box:
REFINE_BEYOND = 0.06             # a step after which the points are found again from their own box
FAST = 0.08                      # a step, or a change of size, after which the face is looked for nearby
OTHER = 0.6                      # another face is at least so far away
NEAR = 1.0                       # a lost face is found again so near
# Intersection over union of a detection with the box of the points:
INSIDE = 0.5                     # of a face's box, within the listed box
SAME = 0.35                      # it is the same face
GOOD = 0.65                      # the points need no correction


class Track:
    """What one pass saw, frame by frame. Pixels are those of the frames as they come.

    Every `every` frames the detector has to confirm the points. When it does not, every frame since the last
    confirmed one is checked by itself. A face that is missing for longer than `longest_gap` frames is given
    up; the next one that is found is another.
    """

    def __init__(
        self, model: FaceBackend, wanted: list[Box | None], every: int, longest_gap: int, second_size: float
    ) -> None:
        self.model, self.wanted = model, wanted
        self.every, self.longest_gap, self.second_size = every, longest_gap, second_size
        self.points: list[Points | None] = []        # of each frame, None where the face is missing
        self.boxes: list[Box | None] = []            # around them
        self.faces: list[int] = []                   # of each frame: the how-manieth face that is followed
        self.others: list[bool] = []                 # of each frame: a second one was seen with it
        self.sharp: list[float] = []                 # of each frame: its sharpness, NaN where not measured
        self.last_look: Picture | None = None
        self._box: Box | None = None                 # where the face was last; None when nobody is followed
        self._unsure: deque[Picture] = deque(maxlen=longest_gap + every)     # since the last confirmed one
        model.start()

    def step(self, frame: Picture) -> None:
        """Take the next frame."""
        index = len(self.points)
        look = index % self.every == 0
        self._append(self._follow(frame))
        self._unsure.append(frame)
        if look:
            self.last_look = frame
        if look or index == len(self.wanted) - 1:
            self._look(frame)
        elif self._is_fast() and not self._is_near(frame, self.boxes[-1]):
            self._refute()
        if self.points[-1] is None and (look or self._missing() <= self.longest_gap + 1):
            self._search(frame)
        if self.boxes[-1] is not None:
            self._box = self.boxes[-1]
        elif self._missing() > self.longest_gap:
            self._box = None

    def nothing(self) -> float:
        """Side in px of the largest face that a closer look at the last picture finds; 0 without any."""
        seen = self._closer(self.last_look) if self.last_look is not None else []
        return max((boxes.side(d.box) for d in seen if d.score >= self.model.believe_above), default=0.0)

    def _missing(self) -> int:
        """How many of the last frames are without the face; more than longest_gap + 1 are not counted."""
        count = 0
        while count < min(len(self.points), self.longest_gap + 2) and self.points[-1 - count] is None:
            count += 1
        return count

    def _append(self, points: Points | None) -> None:
        self.points.append(points)
        self.boxes.append(None if points is None else self.model.box(points))
        self.faces.append(self.faces[-1] if self.faces else 0)
        self.others.append(False)
        self.sharp.append(math.nan)

    def _put(self, points: Points | None) -> None:
        """Replace the points of the last frame."""
        self.points[-1] = points
        self.boxes[-1] = None if points is None else self.model.box(points)

    def _follow(self, frame: Picture) -> Points | None:
        """Points found from where the face was one frame ago, if it was there."""
        if not self.points or self.points[-1] is None or self._box is None:
            return None
        return self._refine(frame, self._box)

    def _refine(self, frame: Picture, box: Box) -> Points | None:
        points = self.model.landmarks(frame, box)
        if not np.isfinite(points).all():
            return None
        if self.model.follows:                       # it knows better where the face is than the box
            return points
        moved = self.model.box(points)
        return self.model.landmarks(frame, moved) if boxes.apart(moved, box) > REFINE_BEYOND else points

    def _is_fast(self) -> bool:
        box = self.boxes[-1]
        if box is None or self._box is None:
            return False
        return boxes.apart(box, self._box) > FAST or abs(boxes.side(box) / boxes.side(self._box) - 1) > FAST

    def _look(self, frame: Picture) -> None:
        """Ask the detector whether the face is where its points are, and whether it is alone."""
        box = self.boxes[-1]
        if box is None:
            return
        seen = self._detect(frame, box)
        there = _same_face(seen, box) or _same_face(self._detect_near(frame, box), box)
        if there is None:
            self._refute()
            return
        if not self.model.follows and boxes.overlap(there.box, box) < GOOD:
            self._put(self._refine(frame, there.box))
        self._note(frame, seen, box)

    def _note(self, frame: Picture, seen: list[Detection], box: Box) -> None:
        """The face is there: is it alone, and sharp?"""
        self.others[-1] = self.wanted[len(self.points) - 1] is None and self._is_accompanied(seen, box)
        self.sharp[-1] = sharpness(frame, box)
        self._unsure.clear()

    def _is_accompanied(self, seen: list[Detection], box: Box) -> bool:
        return any(
            d.score >= self.model.believe_above
            and boxes.side(d.box) >= self.second_size * boxes.side(box)
            and boxes.apart(d.box, box) > OTHER
            for d in seen
        )

    def _refute(self) -> None:
        """The face is not where its points are, nor was it in the frames before, until one confirms it."""
        for back, earlier in enumerate(reversed(self._unsure), start=1):
            if back > 1 and self._is_near(earlier, self.boxes[-back]):
                break
            self.points[-back] = self.boxes[-back] = None
        self.model.start()

    def _search(self, frame: Picture) -> None:
        """Find the face anew in this frame: the one that was just lost, or another."""
        seen = self._detect_near(frame, self._box) if self._box is not None else []
        chosen = self._choose(seen) or self._choose(self._detect(frame, self._box))
        if chosen is None and self._box is None and (len(self.points) - 1) % (CLOSER * self.every) == 0:
            chosen = self._choose(self._closer(frame))
        if chosen is None:
            return
        if self._box is None and any(points is not None for points in self.points):
            self.model.start()
            self.faces[-1] += 1
        self._put(self._refine(frame, chosen.box))
        self._unsure.clear()

    def _choose(self, seen: list[Detection]) -> Detection | None:
        """The face to follow: the same as before, or at first the largest of those that surely are faces."""
        if (box := self._box) is not None:
            near = [
                d for d in seen
                if boxes.apart(d.box, box) < NEAR and 0.6 < boxes.side(d.box) / boxes.side(box) < 1.6
            ]
            return min(near, key=lambda d: boxes.apart(d.box, box), default=None)
        wanted = self.wanted[len(self.points) - 1]
        if wanted is not None:
            faces = [d for d in seen if d.score >= self.model.believe_above]
            within = [d for d in faces if boxes.inside(d.box, wanted) > INSIDE]
            return max(within, key=lambda d: boxes.overlap(d.box, wanted), default=None)
        sure = [d for d in seen if d.score >= max(self.model.believe_above, seen[0].score / 2)]
        return max(sure, key=lambda d: boxes.side(d.box), default=None)

    def _detect(self, frame: Picture, known: Box | None) -> list[Detection]:
        """Faces in the whole frame, at a size that shows those that compete with the face `known`."""
        import cv2

        height, width = frame.shape[:2]
        scale = min((DETECT_PIXELS / (height * width)) ** 0.5, 1.0)
        if known is not None:
            smallest = self.second_size * boxes.side(known)
            scale = min(scale, SEEN_FROM * self.model.smallest_px / smallest)
        if scale < 1:
            if scale < 0.5:                          # averages of whole squares are several times as quick
                step = min(int(1 / scale), height, width)
                scale, frame = 1 / step, frame[:height // step * step, :width // step * step]
            size = (max(round(frame.shape[1] * scale), 1), max(round(frame.shape[0] * scale), 1))
            frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        return [Detection(boxes.scaled(d.box, 1 / scale), d.score) for d in self.model.detect(frame)]

    def _closer(self, frame: Picture) -> list[Detection]:
        """Faces that are small in a large frame: it is looked at as a whole, and by quarters that overlap."""
        height, width = (max(n // 4, 1) for n in frame.shape[:2])
        seen = list(self.model.detect(frame))
        for x, y in ((x * width, y * height) for y in range(3) for x in range(3)):
            part = np.ascontiguousarray(frame[y:y + 2 * height, x:x + 2 * width])
            seen += [Detection(boxes.shifted(d.box, x, y), d.score) for d in self.model.detect(part)]
        return sorted(seen, key=lambda d: (-d.score, d.box))

    def _detect_near(self, frame: Picture, box: Box) -> list[Detection]:
        """Faces around `box`, looked for in its surroundings alone, enlarged or shrunk."""
        import cv2

        target = max(SEEN_FROM * self.model.smallest_px, NEAR_PX)
        scale = target / boxes.side(box)
        left, top = box[0] - target / 2 / scale, box[1] - target / 2 / scale
        matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
        side = round(2 * target)
        patch = cv2.warpAffine(frame, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        found = self.model.detect(np.asarray(patch, np.uint8))
        return [Detection(boxes.shifted(boxes.scaled(d.box, 1 / scale), left, top), d.score) for d in found]

    def _is_near(self, frame: Picture, box: Box | None) -> bool:
        """Whether the detector sees the face in `box`."""
        return box is not None and _same_face(self._detect_near(frame, box), box) is not None


@runtime_checkable
class TakesMany(Protocol):
    """A face backend that is quicker with several frames at once."""

    def landmarks_many(self, frames: Sequence[Picture], boxes: Sequence[Box]) -> NDArray[np.float32]:
        """float32 [N, P, 2], px, of the faces in one box per frame."""
        ...


class BatchTrack(Track):
    """The same for a model that takes many frames at once: all from one look to the next.

    Their boxes lie between those of the two looks. Where a look does not see the face again, or the points
    are elsewhere than their boxes, the frames are taken one by one.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._waiting: list[Picture] = []

    def step(self, frame: Picture) -> None:
        self._waiting.append(frame)
        index = len(self.points) + len(self._waiting) - 1
        if index % self.every and index != len(self.wanted) - 1:
            return
        if not self._at_once():
            for waiting in self._waiting:
                super().step(waiting)
        self._waiting = []

    def _at_once(self) -> bool:
        """Take the frames that wait; whether it could be done."""
        if self._box is None or self._missing():
            return False
        frame, start = self._waiting[-1], np.array(self._box)
        seen = self._detect(frame, self._box)
        there = self._choose(seen)
        if there is None:
            return False
        shares = np.arange(1, len(self._waiting) + 1) / len(self._waiting)
        between = [tuple((start + share * (np.array(there.box) - start)).tolist()) for share in shares]
        assert isinstance(self.model, TakesMany)
        found = self.model.landmarks_many(self._waiting, between)
        own = [self.model.box(points) for points in found]
        if min(boxes.overlap(a, b) for a, b in zip(own, between, strict=True)) < GOOD:
            return False
        for points in found:
            self._append(points)
        self._box, self.last_look = own[-1], frame
        self._note(frame, seen, own[-1])
        return True


def _same_face(seen: list[Detection], box: Box) -> Detection | None:
    """The detection that overlaps `box` best, if any is the same face."""
    best = max(seen, key=lambda d: boxes.overlap(d.box, box), default=None)
    return best if best is not None and boxes.overlap(best.box, box) > SAME else None
