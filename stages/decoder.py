"""Decode one video file in one thread: open it once, go to any time, take frames in order of presentation.

Frames are upright and their pixels square. Whatever is wrong with a file becomes a `DecodeError`, which a
stage lets pass: it is a `Drop`.
"""

from __future__ import annotations

import contextlib
import math
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stages.base import Drop
from stages.pictures import Frame, displayed_size, picture_of

Timed = tuple[float, Any]        # presentation time in s, libav frame

SEEK_FROM_S = 2.0                # where no index tells better: what is nearer is reached by decoding
LEAD_S = 0.25                    # so long before a wanted time every frame is decoded
TIE_S = 1e-4                     # times this close are equal: containers round them
MAX_PIXELS = 1 << 26             # a broken header may promise any size; 8192 x 8192 is more than any camera's
MAX_BARREN_PACKETS = 2000        # packets in a row without a frame: broken, give up

# What a video file may be. Others are pictures, or play lists that name further files.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,ivf,nut,m4v,h264,hevc,obu,y4m,yuv4mpegpipe,gif"


class DecodeError(Drop):
    """The file cannot be decoded as asked. `detail` says why, in one line."""

    def __init__(self, detail: str, reason: str = "cannot decode") -> None:
        super().__init__(reason, " ".join(detail.split()))


@dataclass(frozen=True)
class VideoInfo:
    """What a file promises: displayed size in px (rotated, square pixels), rate, length."""

    width: int
    height: int
    fps: float                   # average of the container; 0 when it names none
    duration_s: float            # 0 when unknown
    frame_count: int             # as promised by the header; 0 when unknown


class Reader:
    """An open video file, for several reads. In ascending order they go through the file once.

    A read goes on from where the last one ended, unless a key frame lies between: then it seeks. On the way
    to what is wanted, frames on which no other depends are not decoded. Every method raises DecodeError.
    """

    def __init__(self, path: Path, exact: bool = True) -> None:
        """`exact=False` leaves the edges of blocks in B-frames as they are: good enough for a look."""
        self._path = path
        self._exact = exact
        self.damaged_s: list[float] = []                 # times of frames that were left out as damaged
        self._start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def info(self) -> VideoInfo:
        """What the header and the first frame say."""
        stream = self._stream
        first = next(self.frames(-math.inf), None)
        if first is None:
            raise DecodeError("no frame can be decoded")
        with errors():
            width, height = displayed_size(stream, first[1])
        rate = stream.average_rate or stream.guessed_rate
        duration_s = (self._container.duration or 0) / 1e6
        if stream.duration:
            duration_s = float(stream.duration * stream.time_base)
        return VideoInfo(width, height, float(rate or 0), max(duration_s, 0.0), stream.frames)

    def read(
        self, start_s: float = -math.inf, end_s: float = math.inf, long_side: int | None = None
    ) -> Iterator[tuple[float, Frame]]:
        """As `stages.video.read_all`."""
        for time, frame in self.frames(start_s):
            if time >= end_s - TIE_S:
                return
            if time >= start_s - TIE_S:
                yield time, self.picture(frame, long_side)

    def listed_times(self) -> NDArray[np.float64]:
        """As `stages.video.frame_times`; the reader has no frame to give afterwards."""
        with errors():
            packets = self._container.demux(self._stream)
            times = {float(p.pts * self._stream.time_base) for p in packets if p.pts is not None}
        return np.array(sorted(t for t in times if t >= 0), np.float64)

    def picture(self, frame: Any, long_side: int | None) -> Frame:
        with errors():
            return picture_of(self._stream, frame, long_side)

    # --- where in the file we are --------------------------------------------------------------------------

    def _start(self) -> None:
        self._container, self._stream = _open(self._path, self._exact)
        self._jumped = False                             # whether frames before this place were left out
        self._stand(-math.inf)

    def _restart(self, start_s: float) -> None:
        self._container.close()
        self._start()

    def _stand(self, skip_before: float) -> None:
        """Begin to decode at the file's present place."""
        self._skip_before = skip_before                  # s; frames before it are wanted by no one
        self._recent: deque[Timed] = deque(maxlen=2)     # the last frames taken; the next read may want them
        self._taken = 0
        self._frames = self._decode(self._container.demux(self._stream))

    def frames(self, start_s: float) -> Iterator[Timed]:
        """Frames from the last one at or before `start_s` on; all, where there is none."""
        for go in (self._go_on, self._seek_early, self._restart):
            try:
                go(start_s)
                frames = self._go()
                before, after = _around(frames, start_s)
            except DecodeError:
                if self._jumped:
                    continue                             # the fault may be the seek's
                raise
            near = before is not None and (after is None or before[0] >= start_s - LEAD_S)
            if near or not self._jumped:
                break
        yield from chain([one for one in (before, after) if one is not None], frames)

    def _go(self) -> Iterator[Timed]:
        """The frames taken last, and those after them."""
        yield from list(self._recent)
        for one in self._frames:
            self._recent.append(one)
            self._taken += 1
            yield one

    def _go_on(self, start_s: float) -> None:
        """Stand where the way to `start_s` is short."""
        all_held = self._taken == len(self._recent) and not self._jumped
        at = -math.inf if all_held else self._recent[0][0] if self._recent else math.inf
        if start_s < at:
            if start_s < SEEK_FROM_S:
                self._restart(start_s)
            else:
                self._seek(start_s, start_s - LEAD_S)
        elif self._key_between(max(at, 0.0), start_s):
            self._seek(start_s, start_s - LEAD_S)
        elif start_s - LEAD_S > max(at, 0.0):
            self._jumped = True
            self._skip_before = start_s - LEAD_S

    def _seek_early(self, start_s: float) -> None:
        self._seek(max(start_s - LEAD_S, 0.0), -math.inf)

    def _seek(self, time_s: float, skip_before: float) -> None:
        """Stand at the key frame at or before `time_s`, as far as the container knows."""
        self._jumped = True
        with errors():
            self._container.seek(int(time_s / self._stream.time_base), stream=self._stream, backward=True)
        self._stand(skip_before)

    def _key_between(self, at_s: float, time_s: float) -> bool:
        """Whether a seek to `time_s` would come out after `at_s`; a guess where the file has no index."""
        if time_s <= at_s:
            return False
        base = self._stream.time_base
        index = getattr(self._stream, "index_entries", ())         # absent before PyAV 17
        if not index or index[-1].timestamp * base < time_s - SEEK_FROM_S:
            return time_s - at_s > SEEK_FROM_S                     # it grows while a file is read
        found = index.search_timestamp(int(time_s / base))
        return bool(found >= 0 and index[found].timestamp * base > at_s)

    def _decode(self, packets: Iterator[Any]) -> Iterator[Timed]:
        """Frames with strictly ascending times.

        Left out are those that would go back in time, and damaged ones with all up to the next key frame.
        """
        stream = self._stream
        context, jumped, base = stream.codec_context, self._jumped, float(stream.time_base)
        step = float(1 / stream.average_rate) if stream.average_rate else 0.04
        last = -math.inf
        size: tuple[int, int] | None = None
        barren, damaged = 0, False
        while True:
            with errors():
                packet = next(packets, None)
                if packet is None and damaged and last == -math.inf:
                    raise DecodeError("no picture is sound")
                if packet is None:
                    return
                early = packet.pts is not None and packet.pts * base < self._skip_before
                context.skip_frame = "NONREF" if early else "DEFAULT"
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    frames, damaged = [], True
            barren = 0 if frames or early else barren + 1
            if barren > MAX_BARREN_PACKETS:
                raise DecodeError(f"{barren} packets in a row hold no frame")
            for frame in frames:
                if frame.time is None and jumped:
                    raise DecodeError("the frames have no times")
                time = frame.time if frame.time is not None else max(last, -step) + step
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise DecodeError(f"the picture changes from {size} to {(frame.width, frame.height)} px")
                damaged = bool(frame.is_corrupt or (damaged and not frame.key_frame))
                if damaged:
                    self.damaged_s.append(time)
                elif time > last:
                    last = time
                    yield time, frame


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn what the codec library raises into DecodeError."""
    try:
        yield
    except av.FFmpegError as error:
        raise DecodeError(error.strerror or type(error).__name__) from None
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise DecodeError(str(error) or type(error).__name__) from None


def open_container(path: Path) -> Any:
    """A libav container of a local file. Raises DecodeError."""
    try:
        status = path.stat()
    except OSError as error:
        raise DecodeError(f"cannot open: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not a regular file")            # a pipe would block for ever
    if status.st_size == 0:
        raise DecodeError("the file is empty")
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with errors():
        return av.open(str(path), metadata_errors="replace", container_options=options)


def _open(path: Path, exact: bool) -> tuple[Any, Any]:
    """(container, video stream)."""
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(open_container(path))
        stream = _video_stream(container, exact)
        stack.pop_all()
    return container, stream


def _video_stream(container: Any, exact: bool) -> Any:
    stream = container.streams.best("video")               # not a cover picture, where there is better
    if stream is None:
        raise DecodeError("no video stream")
    context = stream.codec_context
    if context is None:
        raise DecodeError("unknown video codec")
    if stream.time_base is None:
        raise DecodeError("the video stream has no time base")
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS), "skip_loop_filter": "default" if exact else "bidir"}
    if hasattr(av.stream, "Discard"):                      # since PyAV 17
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all      # sound is not even read
    return stream


def _around(frames: Iterator[Timed], time_s: float) -> tuple[Timed | None, Timed | None]:
    """The last of `frames` at or before a time, and the next; takes no more of them."""
    before = None
    for one in frames:
        if one[0] > time_s:
            return before, one
        before = one
    return before, None
