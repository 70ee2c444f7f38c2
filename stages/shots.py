"""Cut a video into unbroken shots at a constant rate: open it once, decode every frame that counts once."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.shot_changes import GAP_S, LONG_SIDE, Seen, measure, moving_runs, shots
from stages.smooth import check_not_negative
from stages.sources import lists
from stages.sources.lists import Part

if TYPE_CHECKING:
    from stages.decoder import Reader, VideoInfo

MOST_FPS = 240.0                 # output frames per second: beyond, records outgrow memory

Outputs = Iterator[Clip | Rejected]


@dataclass
class SplitShots(Stage):
    """Cut at shot changes, black, gaps, and frozen or damaged pictures; reject what is short, slow or broken.

    A cut is where PySceneDetect's AdaptiveDetector would see one and the picture stays changed (after a flash
    it does not), where a change is so hard that no motion can make it, where a step stands alone among small
    ones, or where one of the first or last frames differs.
    Shots longer than `maximum_seconds` become consecutive clips of about equal length.

    Output frame n of a listed part is the source frame presented nearest to its start + n / fps; without a
    list, counting begins with the shot.
    """

    fps: float = 25.0                        # output frames per second; the nearest source frame is taken
    minimum_frames: int = 48                 # output frames
    maximum_seconds: float = 20.0
    minimum_source_fps: float = 20.0         # below, frames would come twice, and motion would stutter
    missing_fraction: float = 0.05           # of what the header promises: more is "truncated"
    black_below: float = 8.0                 # mean level, 0-255
    frozen_below: float = 5.0                # levels: a picture of which no part changes more ...
    frozen_seconds: float = 1.0              # ... for so long is "frozen"; talking heads stand for half of it

    name: ClassVar[str] = "SplitShots"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("fps", "width", "height", "frame_times_s")
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"stages.shots.fps: {self.fps:g} is no frame rate; give up to {MOST_FPS:g}")
        if self.minimum_frames < 1:
            raise ValueError(f"stages.shots.minimum_frames: {self.minimum_frames} is below 1; give 1 or more")
        check_not_negative(
            missing_fraction=self.missing_fraction, black_below=self.black_below,
            frozen_below=self.frozen_below, frozen_seconds=self.frozen_seconds,
        )  # fmt: skip
        if self.minimum_source_fps <= 0:
            raise ValueError(f"stages.shots.minimum_source_fps: {self.minimum_source_fps:g} is not positive")
        if self.maximum_seconds * self.fps < 2 * self.minimum_frames:
            raise ValueError(
                f"stages.shots.maximum_seconds: {self.maximum_seconds} is short; give at least "
                f"{2 * self.minimum_frames / self.fps} (two clips of minimum_frames)"
            )

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store

    def process(self, clip: Clip) -> Outputs:
        yield from _distinct(self._outputs(clip))

    def _outputs(self, clip: Clip) -> Outputs:
        from stages import video

        yield from lists.refuse(clip)
        if clip.listed.get("spans") == []:
            return
        wanted = lists.parts(clip)
        with video.resolve(self._store, clip.video) as path, video.Reader(path, exact=False) as reader:
            info = reader.info()
            for part, seen in self._looks(reader, wanted):
                whole = part.clip.copy(fps=self.fps, width=info.width, height=info.height)
                yield from _damage(reader, whole, part)
                try:
                    self._check(seen, part, info if part.clip is clip else None)
                    yield from self._part(whole, seen, part)
                except Drop as drop:
                    if part.clip is clip:
                        raise
                    yield Rejected(whole, drop.reason, drop.detail)     # the other parts live on

    def _looks(self, reader: Reader, parts: Sequence[Part]) -> Iterator[tuple[Part, Seen]]:
        """What is to be seen in each part, ascending. Parts that overlap share one pass."""
        margin = 1 / self.minimum_source_fps             # the frame nearest to the start may lie before it
        waiting = deque(sorted(parts, key=lambda part: (part.start_s, part.end_s)))
        while waiting:
            run = [waiting.popleft()]
            end_s = run[0].end_s
            while waiting and waiting[0].start_s - margin < end_s + margin:
                run.append(waiting.popleft())
                end_s = max(end_s, run[-1].end_s)
            frames = reader.read(run[0].start_s - margin, end_s + margin, LONG_SIDE)
            seen = measure(frames, self.frozen_below)
            last_s = seen.times_s[-1] if len(seen.times_s) else -math.inf
            # What lies beyond a broken place is looked for once more, by a seek.
            beyond = [part for part in run[1:] if seen.error and part.start_s > last_s]
            waiting.extendleft(reversed(beyond))
            for part in run[:len(run) - len(beyond)]:
                yield part, seen.between(part.start_s - margin, part.end_s + margin)

    def _check(self, seen: Seen, part: Part, info: VideoInfo | None) -> None:
        """Raise Drop for what is wrong with the part, or with the whole file, for which `info` is given."""
        count = len(seen.times_s)
        if seen.error:
            raise Drop("truncated", f"decoding ends after {count} frames: {seen.error}")
        promised, end_s, length_s = 0, 0.0, 0.0                             # zeros are unknown
        if info is not None:
            promised, end_s, length_s = info.frame_count, info.duration_s, info.duration_s
        elif math.isfinite(part.end_s):
            end_s, length_s = part.end_s, part.end_s - max(part.start_s, 0.0)
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

    def _part(self, whole: Clip, seen: Seen, part: Part) -> Outputs:
        """The clips of a part."""
        shortest_s = (self.minimum_frames - 1) / self.fps - 1e-6
        runs = [
            run for first, end in shots(seen, self.black_below)
            for run in moving_runs(seen, first, end, self.frozen_seconds, shortest_s)
        ]
        if not runs:
            raise Drop("black", f"no frame reaches mean level {self.black_below:g}")
        outputs = 0
        for first, end, stands in runs:
            for clip in self._clips(whole, seen.times_s[first:end], part):
                outputs += 1
                times_s = clip.need("frame_times_s")
                if stands:
                    detail = f"the picture stands for {times_s[-1] - times_s[0]:.2f} s"
                    yield Rejected(clip, "frozen", detail)
                elif len(times_s) < self.minimum_frames:
                    yield Rejected(clip, "too short", f"{len(times_s)} frames at {self.fps:g} per second")
                else:
                    yield clip
        if not outputs:
            raise Drop("too short", "no frame at the output's times")

    def _clips(self, whole: Clip, times_s: NDArray[np.float64], part: Part) -> Iterator[Clip]:
        """The clips of one shot of a part, whose frames are presented at `times_s`."""
        chosen = times_s[self._nearest(times_s, part)]
        count = math.ceil(len(chosen) / (self.maximum_seconds * self.fps))
        for own in np.array_split(chosen, count) if count else []:
            yield whole.copy(id=f"{whole.id}_{round(own[0] * 1000):07d}", frame_times_s=own)

    def _nearest(self, times_s: NDArray[np.float64], part: Part) -> NDArray[np.int64]:
        """Indices of the frames nearest to the output's times that the shot covers."""
        origin = part.start_s if math.isfinite(part.start_s) else float(times_s[0])
        half = float(np.median(np.diff(times_s))) / 2 if len(times_s) > 1 else 0.0
        first = max(math.ceil((times_s[0] - half - origin) * self.fps - 1e-6), 0)
        end = math.floor((times_s[-1] + half - origin) * self.fps + 1e-6) + 1
        if math.isfinite(part.end_s):
            end = min(end, round((part.end_s - origin) * self.fps))
        wanted = origin + np.arange(first, end) / self.fps
        middles = (times_s[1:] + times_s[:-1]) / 2
        return np.asarray(np.searchsorted(middles, wanted - 1e-9), np.int64)


def _distinct(outputs: Outputs) -> Outputs:
    """The same with ids of their own: shots of a broken file may begin in one millisecond."""
    taken: Counter[str] = Counter()
    for out in outputs:
        clip = out.clip if isinstance(out, Rejected) else out
        taken[clip.id] += 1
        if taken[clip.id] > 1:
            clip = clip.copy(id=f"{clip.id}-{taken[clip.id]}")
        yield replace(out, clip=clip) if isinstance(out, Rejected) else clip


def _damage(reader: Reader, whole: Clip, part: Part) -> Iterator[Rejected]:
    """The record of the frames of a part that the reader left out as damaged, if there are any."""
    times = sorted({t for t in reader.damaged_s if part.start_s <= t < part.end_s})
    if times:
        clip = whole.copy(id=f"{whole.id}_{round(times[0] * 1000):07d}d")
        yield Rejected(clip, "damaged", f"{len(times)} pictures from {times[0]:.2f} s to {times[-1]:.2f} s")
