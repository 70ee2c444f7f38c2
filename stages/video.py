"""Read and write video: frames by presentation time, upright, square pixels, one thread, equal bytes.

Every caller names frames by seconds, never by counting: files have variable rates, B-frames and edit lists.
Whatever is wrong with a file becomes a `DecodeError`, which a stage lets pass: it is a `Drop`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import TryLater
from stages.decoder import DecodeError, Reader, Timed, VideoInfo
from stages.pictures import EXACT, Frame

__all__ = [
    "DecodeError", "Frame", "MissingVideoError", "Reader", "VideoInfo", "frame_times", "probe", "read_all",
    "read_frames", "resolve", "write_video",
]

LAST_FRAME_S = 0.2               # how long the last frame may stand for wanted times after it

# x264 writes its thread count into the stream, and pixels depend on it: fix it inside x264. Its macroblock
# tree reads memory that nothing has written, at most widths (400, 448, 480, 720): other bytes on every run.
H264 = {"preset": "veryfast", "x264-params": "threads=1:sliced-threads=0:mbtree=0"}


class MissingVideoError(TryLater, DecodeError):
    """A downloaded video was deleted: nothing is wrong with the clip, and the video may come again."""


@contextlib.contextmanager
def resolve(store: Storage, video: str) -> Iterator[Path]:
    """A local path of `Clip.video` while the context lasts: an absolute path, "store:<key>" or "s3://…".

    Raises MissingVideoError for what is no longer in the store, DecodeError when there is no such file.
    """
    if not video.startswith(("store:", "s3://")):
        yield Path(video)
        return
    with contextlib.ExitStack() as stack:
        try:
            if video.startswith("store:"):
                path = stack.enter_context(store.local(video.removeprefix("store:")))
            else:
                from infra.s3 import fetched

                path = stack.enter_context(fetched(video, store.s3))
        except FileNotFoundError:
            if video.startswith("store:"):
                raise MissingVideoError(f"{video} is not there", "video missing") from None
            raise DecodeError(f"{video} is not there") from None
        yield path


def probe(path: Path) -> VideoInfo:
    """Read the header and the first frame of a video. Raises DecodeError."""
    with Reader(path) as reader:
        return reader.info()


def frame_times(path: Path) -> NDArray[np.float64]:
    """Presentation times in s, ascending, of the frames that the container lists; decodes nothing.

    A broken file lists frames that cannot be decoded. Raises DecodeError.
    """
    with Reader(path) as reader:
        return reader.listed_times()


def read_all(
    path: Path, long_side: int | None = None, start_s: float = -math.inf, end_s: float = math.inf
) -> Iterator[tuple[float, Frame]]:
    """Every frame as (presentation time in s, uint8 [H, W, 3] RGB), from `start_s` to before `end_s`.

    With `long_side`, in px, larger frames are scaled down to it, and colours are converted the fast way.
    Raises DecodeError where decoding stops early.
    """
    with Reader(path) as reader:
        yield from reader.read(start_s, end_s, long_side)


def read_frames(
    path: Path, times_s: Sequence[float] | NDArray[np.float64], long_side: int | None = None
) -> Iterator[Frame]:
    """For each of `times_s` (ascending, s) the frame presented nearest to it, as uint8 [H, W, 3] RGB.

    Decodes once, from the last key frame before the first time. A frame wanted twice is the same array.
    `long_side` as in `read_all`.
    Raises DecodeError, also when the file ends before the last time.
    """
    wanted = [float(t) for t in times_s]
    if any(b < a for a, b in pairwise(wanted)):
        raise ValueError("times_s: not ascending; sort them, frames are read in one pass")
    if not wanted:
        return
    with Reader(path) as reader:
        for frame, count in _nearest(reader.frames(wanted[0]), wanted):
            picture = reader.picture(frame, long_side)
            for _ in range(count):
                yield picture


def _nearest(frames: Iterator[Timed], wanted: list[float]) -> Iterator[tuple[Any, int]]:
    """(frame, how many wanted times it serves) in order; a tie goes to the earlier frame."""
    served = 0
    before: Timed | None = None
    for time, frame in frames:
        if before is not None:
            middle = (before[0] + time) / 2
            count = _count_up_to(wanted, served, middle)
            if count:
                yield before[1], count
                served += count
                if served == len(wanted):
                    return
        before = (time, frame)
    if before is None:
        raise DecodeError("no frame can be decoded")
    if wanted[-1] > before[0] + LAST_FRAME_S:
        raise DecodeError(f"ends at {before[0]:.3f} s, {wanted[-1]:.3f} s is wanted", "truncated")
    yield before[1], len(wanted) - served


def _count_up_to(wanted: list[float], start: int, limit: float) -> int:
    end = start
    while end < len(wanted) and wanted[end] <= limit:
        end += 1
    return end - start


def write_video(path: Path, frames: Iterable[Frame], fps: float, crf: int = 18) -> None:
    """Write uint8 [H, W, 3] RGB frames of even size as H.264 mp4; equal frames give equal bytes.

    `crf` is x264's constant rate factor, 0 to 51: lower is better and larger.
    The file appears whole or not at all. Raises ValueError for no frames or an odd size.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _encode(container, frames, fps, crf)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(container: Any, frames: Iterable[Frame], fps: float, crf: int) -> None:
    options = {"crf": str(crf), **H264}
    rate = Fraction(fps).limit_denominator(1001)
    stream: Any = None
    for index, picture in enumerate(frames):
        if stream is None:
            height, width = picture.shape[:2]
            if height % 2 or width % 2:
                raise ValueError(f"frames: {width}x{height} px is odd; H.264 in yuv420p needs even sizes")
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count = 1
            context.time_base = 1 / rate
            context.colorspace = context.color_primaries = context.color_trc = 1     # bt709
            context.color_range = 1
        source = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = source.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=EXACT, threads=1
        )
        frame.pts, frame.time_base = index, 1 / rate
        container.mux(stream.encode(frame))
    if stream is None:
        raise ValueError("frames: none given; a video needs at least one")
    container.mux(stream.encode(None))
