"""What a page is shown and when: a thread per page in one of four states.

    moving     the camera or a slider moves: quick pictures, always of what is wanted now
    settling   it has stopped: the full picture is made, and given up when something moves again
    still      the full picture is shown: nothing is done
    playing    frames are made some ahead and shown at their time

Whatever is wanted is asked for anew before every picture, so a page never waits for an old one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.view_renderer import FULL, LEVELS, QUARTER, Picture, Renderer, Shot, StaleError

log = logging.getLogger(__name__)

State = Literal["moving", "settling", "still", "playing"]

QUIET_S = 0.15                   # without a move before the full picture is begun
SMOOTH_S = 0.05                  # a quick picture should take no longer
AHEAD = 6
GUESSES = (1.0, 0.7, 0.2, 0.06)  # what the levels take of a full picture, until it is measured


@dataclass(frozen=True)
class Wanted:
    """What a page wants to see; `shot.level` is the loop's to choose."""

    shot: Shot
    playing: bool = False
    fps: float = 25.0


class Loop:
    """`wanted()` tells what the page wants, `show(picture, shot)` sends one, `played(frame)` tells which."""

    def __init__(
        self, renderer: Renderer, wanted: Callable[[], Wanted], show: Callable[[Picture, Shot], None],
        played: Callable[[int], None], failed: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.renderer, self.wanted = renderer, wanted
        self._show, self._played, self._failed = show, played, failed
        self.state: State = "settling"
        self._changed, self._closed = threading.Event(), threading.Event()
        self._moved_at = -QUIET_S
        self._seconds: dict[str, float] = {}
        self._shown: Shot | None = None
        self._again = 0
        self._thread = threading.Thread(target=self._run, name="pv3d-view", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def changed(self, *, moving: bool = False, again: bool = False) -> None:
        """Something is wanted that was not before; `moving`: more of it is about to come; `again`: even what
        has been shown."""
        if again:
            self._again += 1
            self._shown = None
        if moving:
            self._moved_at = time.monotonic()
        self._changed.set()

    def close(self, timeout: float = 5.0) -> None:
        self._closed.set()
        self._changed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.clear()
            wanted = self.wanted()
            try:
                if wanted.playing:
                    self._play(wanted)
                else:
                    self._stand(wanted.shot)
            except StaleError:
                continue
            except ValueError as error:      # weights that have diverged, a latent that does not fit
                self._failed(" ".join(str(error).split()))
                self._changed.wait()

    def _stand(self, shot: Shot) -> None:
        """One step towards the full picture of a shot."""
        full = replace(shot, level=FULL)
        if full == self._shown:
            self.state = "still"
            self._changed.wait()
            return
        quiet = self._moved_at + QUIET_S - time.monotonic()
        quick = replace(shot, level=self.quick())
        if quick.level != FULL and quick != self._shown and not self.renderer.ready(full):
            self.state = "moving" if quiet > 0 else "settling"
            self._send(quick, self._picture(quick))
        elif quiet > 0 and quick.level != FULL:
            self._changed.wait(quiet)
        else:
            self.state = "settling"
            self._send(full, self._picture(full, self._changed.is_set if quick.level != FULL else None))

    def _play(self, begun: Wanted) -> None:
        """Until something other than the frame changes."""
        self.state = "playing"
        ahead: deque[tuple[Shot, Picture]] = deque()
        frame, step, due = begun.shot.frame, 1, time.monotonic()
        while not self._closed.is_set():
            wanted = self.wanted()
            if not wanted.playing or replace(wanted.shot, frame=0) != replace(begun.shot, frame=0):
                return
            now = time.monotonic()
            if ahead and now >= due:
                shot, picture = ahead.popleft()
                self._send(shot, picture)
                self._played(shot.frame)
                due = max(due + 1 / wanted.fps, now)
            elif len(ahead) < AHEAD:
                last = self.renderer.frames(wanted.shot.portrait) - 1
                step = 1 if frame <= 0 else -1 if frame >= last else step        # back and forth
                frame = min(max(frame + step, 0), last)
                full = replace(wanted.shot, frame=frame, level=FULL)
                fits = self.renderer.ready(full) or self.quick(1 / wanted.fps) == FULL
                shot = full if fits else replace(full, level=self.quick(1 / wanted.fps))
                ahead.append((shot, self._picture(shot)))
            else:
                self._changed.clear()
                self._changed.wait(due - now)

    def quick(self, seconds: float = SMOOTH_S) -> str:
        """The best level that is made in time."""
        if not self._seconds:
            return LEVELS[-2]
        for level in LEVELS:
            if self._takes(level) <= seconds:
                return level
        return QUARTER

    def _takes(self, level: str) -> float:
        if level in self._seconds:
            return self._seconds[level]
        known = next(iter(self._seconds))
        return self._seconds[known] * GUESSES[LEVELS.index(level)] / GUESSES[LEVELS.index(known)]

    def _picture(self, shot: Shot, stale: Callable[[], bool] | None = None) -> Picture:
        ready, planes = self.renderer.ready(shot), self.renderer.planes_made
        begun = time.perf_counter()
        picture = self.renderer.picture(shot, stale)
        if not ready and self.renderer.planes_made == planes:        # what a moving camera costs
            took = time.perf_counter() - begun
            before = self._seconds.get(shot.level, took)
            self._seconds[shot.level] = 0.7 * before + 0.3 * took
        return picture

    def _send(self, shot: Shot, picture: Picture) -> None:
        if self._closed.is_set():
            return
        again = self._again
        self._show(picture, shot)
        self._shown = shot if again == self._again else None     # asked for anew meanwhile
