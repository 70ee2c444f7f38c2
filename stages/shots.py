"""Cut a video into unbroken shots at a constant rate, in one decode pass."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.sources import lists

LONG_SIDE = 256                  # px, at which pictures are compared
THUMBNAIL = 32                   # px, a picture's coarse copy: noise and small motion vanish in it
HISTOGRAM = 32                   # bins of each colour channel

# Second opinions on a cut, in mean grey levels of the thumbnails; fast heads reach 25, cuts 10 to 100.
HARD_CHANGE = 30.0               # no motion does this
HARD_CHANGE_COLOURS = 8.0        # with a change of the colours of
HARD_COLOURS = 0.35
END_STEPS = 3                    # at either end the detector does not see; a cut there costs 3 frames at most
END_CHANGE = 10.0
END_RATIO = 4.0                  # to the median step
STAYS = 0.5                      # share of the change that is there from 2 frames before to 2 after: no flash
GAP_S = 0.25                     # no frames for so long: the picture has jumped

Outputs = Iterator[Clip | Rejected]


@dataclass
class SplitShots(Stage):
    """Cut at shot changes, black frames and gaps; reject what is too short, frozen, slow or broken.

    A cut is where PySceneDetect's AdaptiveDetector sees one and the picture stays changed (a flash does not),
    where a change is so hard that no motion can make it, or where one of the first or last frames differs.
    Shots longer than `maximum_seconds` become consecutive clips of about equal length.
    """

    fps: float = 25.0                        # output frames per second; the nearest source frame is taken
    minimum_frames: int = 48                 # output frames
    maximum_seconds: float = 20.0
    minimum_source_fps: float = 20.0
    missing_fraction: float = 0.05           # of what the header promises: more is "truncated"
    black_below: float = 8.0                 # mean level, 0-255
    frozen_below: float = 5.0                # levels: a picture of which no part changes more ...
    frozen_seconds: float = 1.0              # ... for so long is "frozen"; talking heads stand for half of it

    name: ClassVar[str] = "SplitShots"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("fps", "width", "height", "frame_times_s")

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.minimum_frames < 1:
            raise ValueError("stages.shots: fps and minimum_frames must be positive")
        if self.maximum_seconds * self.fps < 2 * self.minimum_frames:
            raise ValueError(
                f"stages.shots.maximum_seconds: {self.maximum_seconds} is short; give at least "
                f"{2 * self.minimum_frames / self.fps} (two clips of minimum_frames)"
            )

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        from stages import video

        yield from lists.refuse(clip)
        wanted = lists.parts(clip) if clip.listed.get("spans") != [] else []
        with video.resolve(self._store, clip.video) as path:
            info = video.probe(path)
            for part, start_s, end_s in wanted:
                whole = part.copy(fps=self.fps, width=info.width, height=info.height)
                end = (info.frame_count, info.duration_s, info.duration_s)
                if part is not clip:
                    end = (0, end_s, end_s - start_s) if math.isfinite(end_s) else (0, 0.0, 0.0)
                try:
                    seen = measure(video.read_all(path, LONG_SIDE, start_s, end_s), self.frozen_below)
                    yield from self._part(whole, seen, *end)
                except Drop as drop:
                    if part is clip:
                        raise
                    yield Rejected(whole, drop.reason, drop.detail)     # the other parts live on

    def _part(self, whole: Clip, seen: Seen, promised: int, end_s: float, length_s: float) -> Outputs:
        """The clips of a video, or of one listed part of it."""
        self._check(seen, promised, end_s, length_s)
        found = list(shots(seen, self.black_below))
        if not found:
            raise Drop("black", f"no frame reaches mean level {self.black_below:g}")
        for first, end in found:
            yield from self._clips(whole, seen, first, end)

    def _check(self, seen: Seen, promised: int, end_s: float, length_s: float) -> None:
        """Raise Drop for what is wrong with the file, or the part, as a whole. Zeros are unknown."""
        count = len(seen.times_s)
        if seen.error:
            raise Drop("truncated", f"decoding ends after {count} frames: {seen.error}")
        # Both fall short: edit lists hide frames that the header counts, and sound outlasts the picture.
        few = not promised or count < promised * (1 - self.missing_fraction)
        late_s = end_s - (float(seen.times_s[-1]) if count else end_s - length_s)
        if few and late_s > max(self.missing_fraction * length_s, GAP_S):
            raise Drop("truncated", f"{count} frames decode, the last {late_s:.2f} s are missing")
        if count < 2:
            raise Drop("too short", f"{count} frames")
        source_fps = 1 / float(np.median(np.diff(seen.times_s)))
        if source_fps < self.minimum_source_fps:
            raise Drop("low frame rate", f"{source_fps:.2f} frames per second")

    def _clips(self, whole: Clip, seen: Seen, first: int, end: int) -> Iterator[Clip | Rejected]:
        """The clips of the source frames `first` ... `end` - 1, one shot."""
        chosen = self._sample(seen.times_s[first:end])
        count = math.ceil(len(chosen) / (self.maximum_seconds * self.fps))
        for part in np.array_split(chosen, count):
            frames = first + part
            times_s = seen.times_s[frames]
            clip = whole.copy(id=f"{whole.id}_{round(times_s[0] * 1000):07d}", frame_times_s=times_s)
            reason, detail = self._fault(seen, frames)
            yield Rejected(clip, reason, detail) if reason else clip

    def _sample(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the frames nearest to a constant rate that starts with the first."""
        step = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1 / self.fps
        count = max(math.floor((times_s[-1] + step - times_s[0]) * self.fps + 1e-6), 1)
        wanted = times_s[0] + np.arange(count) / self.fps
        middles = (times_s[1:] + times_s[:-1]) / 2
        return np.asarray(np.searchsorted(middles, wanted - 1e-9), np.int64)

    def _fault(self, seen: Seen, frames: NDArray[np.int64]) -> tuple[str, str]:
        """(reason, detail) to reject a clip, or empty."""
        if len(frames) < self.minimum_frames:
            return "too short", f"{len(frames)} frames at {self.fps:g} per second"
        since = seen.times_s[np.maximum(seen.anchors[frames], frames[0])]
        standing = float((seen.times_s[frames] - since).max())
        if standing >= self.frozen_seconds:
            return "frozen", f"the picture stands for {standing:.2f} s"
        return "", ""


@dataclass(frozen=True)
class Seen:
    """What one pass over N source frames measured. Index i of a change is the step from frame i - 1 to i."""

    times_s: NDArray[np.float64]             # [N] presentation times
    levels: NDArray[np.float64]              # [N] mean level, 0-255
    changes: NDArray[np.float64]             # [N] mean absolute change of the thumbnails, in levels; 0 at 0
    anchors: NDArray[np.int64]               # [N] since which frame the picture stands
    lasting: NDArray[np.float64]             # [N] as `changes`, from frame i - 1 to i + 2 (or the last)
    colours: NDArray[np.float64]             # [N] change of the colour histograms, 0 ... 1
    detected: frozenset[int]                 # first frames of shots, as the detector says
    error: str                               # why decoding ended early, or empty


def measure(frames: Iterable[tuple[float, NDArray[np.uint8]]], frozen_below: float) -> Seen:
    """Look at every frame, (time in s, uint8 [H, W, 3] RGB), once. A DecodeError ends it, and is noted."""
    import cv2
    from scenedetect import AdaptiveDetector, FrameTimecode

    from stages.video import DecodeError

    detector: Any = AdaptiveDetector(min_scene_len=1)
    detected: set[int] = set()
    times: list[float] = []
    steps: list[tuple[float, float, float]] = []
    anchors: list[int] = []
    anchor: NDArray[Any] | None = None
    lasting = [0.0]
    window: deque[NDArray[Any]] = deque(maxlen=4)       # thumbnails of this frame and the three before
    colours: NDArray[Any] | None = None
    error = ""
    try:
        for time, frame in frames:
            # The detector counts frames; the rate it is told does not matter.
            code = FrameTimecode(len(times), fps=25.0)
            detected.update(c.frame_num for c in detector.process_frame(code, frame[..., ::-1]))
            thumbnail = cv2.resize(frame, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
            window.append(thumbnail.astype(np.float32))
            before, colours = colours, _histogram(frame)
            change = float(np.abs(window[-1] - window[max(len(window) - 2, 0)]).mean())
            recoloured = 0.0 if before is None else float(np.abs(colours - before).sum()) / 2
            steps.append((float(window[-1].mean()), change, recoloured))
            if anchor is None or float(np.abs(window[-1] - anchor).max()) >= frozen_below:
                anchor = window[-1]
                anchors.append(len(times))
            else:
                anchors.append(anchors[-1])
            times.append(time)
            if len(window) == 4:
                lasting.append(float(np.abs(window[3] - window[0]).mean()))
    except DecodeError as stop:
        error = stop.detail or stop.reason
    if times:
        last = FrameTimecode(len(times) - 1, fps=25.0)
        detected.update(c.frame_num for c in detector.post_process(last))
    ends = list(window)[len(window) - 1 - (len(times) - len(lasting)):-1]
    lasting += [float(np.abs(window[-1] - thumbnail).mean()) for thumbnail in ends]
    levels, changes, recolours = np.array(steps, np.float64).reshape(-1, 3).T
    return Seen(
        np.array(times, np.float64), levels, changes, np.array(anchors, np.int64),
        np.array(lasting[:len(times)], np.float64), recolours, frozenset(detected), error,
    )


def cuts(seen: Seen) -> list[int]:
    """First frames of new shots, ascending, without 0."""
    count = len(seen.times_s)
    usual = float(np.median(seen.changes[1:])) if count > 1 else 0.0
    found = []
    for i in range(1, count):
        change = seen.changes[i]
        end = i <= END_STEPS or i >= count - END_STEPS
        stays = min(seen.lasting[i], seen.lasting[max(i - 2, 1)] if i > 2 else change) >= STAYS * change
        hard = change > HARD_CHANGE or (change > HARD_CHANGE_COLOURS and seen.colours[i] > HARD_COLOURS)
        at_end = end and change > max(END_CHANGE, END_RATIO * usual)
        gap = seen.times_s[i] - seen.times_s[i - 1] > GAP_S
        if gap or at_end or (stays and (hard or i in seen.detected)):
            found.append(i)
    return found


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


def _histogram(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the pixels in each bin of each channel; the whole sums to 1."""
    bins = frame[::2, ::2] >> 3
    counts = [np.bincount(bins[..., k].ravel(), minlength=HISTOGRAM) for k in range(3)]
    return np.concatenate(counts) / bins.size
