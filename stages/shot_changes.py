"""Where a picture cuts, goes black or stands still, from one look at every frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

LONG_SIDE = 128                  # px, at which pictures are compared; 256 finds the same cuts
THUMBNAIL = 32                   # px, a picture's coarse copy: noise and small motion vanish in it
HISTOGRAM = 32                   # bins of each colour channel

# Second opinions on a cut, in mean grey levels of the thumbnails; fast heads reach 25, cuts 10 to 100.
HARD_CHANGE = 30.0               # no motion does this
HARD_CHANGE_COLOURS = 8.0        # with a change of the colours of
HARD_COLOURS = 0.35
ADAPTIVE_SCORE = 15.0            # PySceneDetect's own defaults
ADAPTIVE_RATIO = 3.0
END_STEPS = 3                    # at either end the detector does not see; a cut there costs 3 frames at most
END_CHANGE = 10.0
END_RATIO = 4.0                  # to the median step
JUMP = 7.0                       # where a head jumps in the same scene: a step of more than this, and ...
JUMP_RATIO = 3.0                 # ... than any other of the 3 before and after; heads start and stop slower
STAYS = 0.5                      # share of the change that is there from 2 frames before to 2 after: no flash
GAP_S = 0.25                     # no frames for so long: the picture has jumped


@dataclass(frozen=True)
class Seen:
    """What one pass over N source frames measured. Index i of a change is the step from frame i - 1 to i."""

    times_s: NDArray[np.float64]             # [N] presentation times
    levels: NDArray[np.float64]              # [N] mean level, 0-255
    changes: NDArray[np.float64]             # [N] mean absolute change of the thumbnails, in levels; 0 at 0
    anchors: NDArray[np.int64]               # [N] since which frame the picture stands
    lasting: NDArray[np.float64]             # [N] as `changes`, from frame i - 1 to i + 2 (or the last)
    colours: NDArray[np.float64]             # [N] change of the colour histograms, 0 ... 1
    scores: NDArray[np.float64]              # [N] mean absolute change of hue, saturation and value
    error: str                               # why decoding ended early, or empty

    def between(self, start_s: float, end_s: float) -> Seen:
        """The frames of a part; the error is the part's only when it ended the part."""
        first, end = (int(i) for i in np.searchsorted(self.times_s, [start_s, end_s]))
        part = slice(first, end)
        begun = np.arange(end - first) > 0               # the first frame changes from nothing
        return Seen(
            self.times_s[part], self.levels[part], self.changes[part] * begun,
            np.maximum(self.anchors[part] - first, 0), self.lasting[part] * begun,
            self.colours[part] * begun, self.scores[part] * begun,
            self.error if end == len(self.times_s) else "",
        )  # fmt: skip


class Run(NamedTuple):
    """Frames `first` ... `end` - 1, and whether the picture stands in them."""

    first: int
    end: int
    stands: bool


def measure(frames: Iterable[tuple[float, Picture]], frozen_below: float) -> Seen:
    """Look at every frame, (time in s, uint8 [H, W, 3] RGB), once. A DecodeError ends it, and is noted."""
    from stages.decoder import DecodeError

    times: list[float] = []
    steps: list[tuple[float, float, float, float]] = []
    anchors: list[int] = []
    lasting = [0.0]
    window: deque[_Look] = deque(maxlen=4)              # this frame and the three before
    anchor: Picture | None = None
    error = ""
    try:
        for time, frame in frames:
            window.append(_Look.at(frame))
            now, before = window[-1], window[max(len(window) - 2, 0)]
            level = float(now.thumbnail.mean())
            steps.append((
                level, _apart(now.thumbnail, before.thumbnail), _apart(now.hsv, before.hsv),
                float(np.abs(now.colours - before.colours).sum()) / 2,
            ))  # fmt: skip
            if anchor is None or _apart(now.thumbnail, anchor, largest=True) >= frozen_below:
                anchor = now.thumbnail
                anchors.append(len(times))
            else:
                anchors.append(anchors[-1])
            times.append(time)
            if len(window) == 4:
                lasting.append(_apart(now.thumbnail, window[0].thumbnail))
    except DecodeError as stop:
        error = stop.detail or stop.reason
    ends = list(window)[len(window) - 1 - (len(times) - len(lasting)):-1]
    lasting += [_apart(window[-1].thumbnail, look.thumbnail) for look in ends]
    levels, changes, scores, recolours = np.array(steps, np.float64).reshape(-1, 4).T
    return Seen(
        np.array(times, np.float64), levels, changes, np.array(anchors, np.int64),
        np.array(lasting[:len(times)], np.float64), recolours, scores, error,
    )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """What of a frame is compared with others."""

    thumbnail: Picture                       # uint8 [THUMBNAIL, THUMBNAIL, 3]
    hsv: Picture                             # uint8 [H, W, 3]
    colours: NDArray[np.float64]             # share of the pixels in each bin of each channel; sums to 1

    @classmethod
    def at(cls, frame: Picture) -> _Look:
        import cv2

        size = (THUMBNAIL, THUMBNAIL)
        counts = [cv2.calcHist([frame], [k], None, [HISTOGRAM], [0, 256]).ravel() for k in range(3)]
        return cls(
            np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8),
            np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV), np.uint8),
            np.concatenate(counts).astype(np.float64) / frame.size,
        )


def _apart(a: Picture, b: Picture, largest: bool = False) -> float:
    """Mean, or largest, absolute difference in levels."""
    import cv2

    return float(cv2.norm(a, b, cv2.NORM_INF) if largest else cv2.norm(a, b, cv2.NORM_L1) / a.size)


def adaptive_cuts(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[N] where PySceneDetect's AdaptiveDetector, as it comes, sees a cut.

    `scores` are mean changes in hue, saturation and value. A cut stands out of the two steps on either side.
    """
    found = np.zeros(len(scores), np.bool_)
    if len(scores) >= 5:
        middle = scores[2:-2]
        around = (scores[:-4] + scores[1:-3] + scores[3:-1] + scores[4:]) / 4
        found[2:-2] = (middle >= ADAPTIVE_SCORE) & (middle >= ADAPTIVE_RATIO * around)
    return found


def jumps(changes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[N] steps that stand alone among small ones, as where a pause was cut out of a speech."""
    padded, count = np.pad(changes, 3), len(changes)
    others = np.max([padded[k:k + count] for k in (0, 1, 2, 4, 5, 6)], axis=0)
    return np.asarray((changes > JUMP) & (changes > JUMP_RATIO * others), np.bool_)


def cuts(seen: Seen) -> list[int]:
    """First frames of new shots, ascending, without 0."""
    count = len(seen.times_s)
    usual = float(np.median(seen.changes[1:])) if count > 1 else 0.0
    adaptive, jumped = adaptive_cuts(seen.scores), jumps(seen.changes)
    found = []
    for i in range(1, count):
        change = seen.changes[i]
        end = i <= END_STEPS or i >= count - END_STEPS
        stays = min(seen.lasting[i], seen.lasting[max(i - 2, 1)] if i > 2 else change) >= STAYS * change
        hard = change > HARD_CHANGE or (change > HARD_CHANGE_COLOURS and seen.colours[i] > HARD_COLOURS)
        at_end = end and change > max(END_CHANGE, END_RATIO * usual)
        gap = seen.times_s[i] - seen.times_s[i - 1] > GAP_S
        if gap or at_end or (stays and (hard or adaptive[i] or jumped[i])):
            found.append(i)
    return found


def standing(seen: Seen, seconds: float) -> NDArray[np.bool_]:
    """[N] frames of a picture that stands for `seconds` or longer."""
    last = np.searchsorted(seen.anchors, seen.anchors, side="right") - 1
    return np.asarray(seen.times_s[last] - seen.times_s[seen.anchors] >= seconds, np.bool_)


def shots(seen: Seen, black_below: float) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of frames that no cut and no black frame interrupts."""
    starts = set(cuts(seen))
    first: int | None = None
    for i in range(len(seen.times_s)):
        black = seen.levels[i] < black_below
        if first is not None and (black or i in starts):
            yield first, i
            first = None
        if first is None and not black:
            first = i
    if first is not None:
        yield first, len(seen.times_s)


def moving_runs(seen: Seen, first: int, end: int, frozen_s: float, shortest_s: float) -> list[Run]:
    """Divide a shot around frozen stretches of `frozen_s` or longer.

    What moves between them for less than `shortest_s` is counted with them.
    """
    stands = standing(seen, frozen_s)[first:end]
    if not stands.any():
        return [Run(first, end, False)]
    edges = np.flatnonzero(np.diff(stands)) + 1
    for run in np.split(np.arange(first, end), edges):
        if seen.times_s[run[-1]] - seen.times_s[run[0]] < shortest_s:
            stands[run - first] = True
    runs = np.split(np.arange(first, end), np.flatnonzero(np.diff(stands)) + 1)
    return [Run(int(run[0]), int(run[-1]) + 1, bool(stands[run[0] - first])) for run in runs]
