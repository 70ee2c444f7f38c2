"""Read and write video: frames by presentation time, upright, square pixels, one thread, equal bytes.

Every caller names frames by seconds, never by counting: files have variable rates, B-frames and edit lists.
Whatever is wrong with a file becomes a `DecodeError`, which a stage lets pass: it is a `Drop`.
"""

from __future__ import annotations

import contextlib
import math
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop

Frame = NDArray[np.uint8]

SEEK_FROM_S = 2.0                # before this, decoding from zero is as fast as a seek
LAST_FRAME_S = 0.2               # how long the last frame may stand for wanted times after it
TIE_S = 1e-4                     # times this close are equal: containers round them
MAX_PIXELS = 1 << 26             # a broken header may promise any size; 8192 x 8192 is more than any camera's
MAX_BARREN_PACKETS = 2000        # packets in a row without a frame: broken, give up

# Colour conversion for pixels that are kept: the fast way is a level darker and differs between CPU types,
# this one costs 2 ms more at 720p.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
EXACT |= Interpolation.FULL_CHR_H_INT

# x264 writes its thread count into the stream, and pixels depend on it: fix it inside x264. Its macroblock
# tree reads memory that nothing has written, at most widths (400, 448, 480, 720): other bytes on every run.
H264 = {"crf": "18", "preset": "veryfast", "x264-params": "threads=1:sliced-threads=0:mbtree=0"}


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


@contextlib.contextmanager
def resolve(store: Storage, video: str) -> Iterator[Path]:
    """A local path of `Clip.video` while the context lasts: "store:<key>" or an absolute path.

    Raises DecodeError when there is no such file.
    """
    if not video.startswith("store:"):
        yield Path(video)
        return
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(store.local(video.removeprefix("store:")))
        except FileNotFoundError:
            raise DecodeError(f"{video} is not in the store") from None
        yield path


def probe(path: Path) -> VideoInfo:
    """Read the header and the first frame of a video. Raises DecodeError."""
    with _open(path) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise DecodeError("no frame can be decoded")
        width, height = _displayed(stream, first[1])
        rate = stream.average_rate or stream.guessed_rate
        duration_s = (container.duration or 0) / 1e6
        if stream.duration:
            duration_s = float(stream.duration * stream.time_base)
        return VideoInfo(width, height, float(rate or 0), max(duration_s, 0.0), stream.frames)


def frame_times(path: Path) -> NDArray[np.float64]:
    """Presentation times in s, ascending, of the frames that the container lists; decodes nothing.

    A broken file lists frames that cannot be decoded. Raises DecodeError.
    """
    with _open(path) as (container, stream), _errors():
        times = {float(p.pts * stream.time_base) for p in container.demux(stream) if p.pts is not None}
    return np.array(sorted(t for t in times if t >= 0), np.float64)


def read_all(
    path: Path, long_side: int | None = None, start_s: float = -math.inf, end_s: float = math.inf
) -> Iterator[tuple[float, Frame]]:
    """Every frame as (presentation time in s, uint8 [H, W, 3] RGB), from `start_s` to before `end_s`.

    With `long_side`, in px, larger frames are scaled down to it, and colours are converted the fast way.
    Raises DecodeError where decoding stops early.
    """
    with _open(path) as (container, stream):
        for time, frame in _from(container, stream, start_s):
            if time >= end_s - TIE_S:
                return
            if time >= start_s - TIE_S:
                yield time, _picture(stream, frame, long_side)


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
    with _open(path) as (container, stream):
        for frame, count in _nearest(_from(container, stream, wanted[0]), wanted):
            picture = _picture(stream, frame, long_side)
            for _ in range(count):
                yield picture


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Write uint8 [H, W, 3] RGB frames of even size as H.264 mp4; equal frames give equal bytes.

    The file appears whole or not at all. Raises ValueError for no frames or an odd size.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _encode(container, frames, fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(container: Any, frames: Iterable[Frame], fps: float) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    stream: Any = None
    for index, picture in enumerate(frames):
        if stream is None:
            height, width = picture.shape[:2]
            if height % 2 or width % 2:
                raise ValueError(f"frames: {width}x{height} px is odd; H.264 in yuv420p needs even sizes")
            stream = container.add_stream("libx264", rate=rate, options=H264)
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


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what the codec library raises into DecodeError."""
    try:
        yield
    except av.FFmpegError as error:
        raise DecodeError(error.strerror or type(error).__name__) from None
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise DecodeError(str(error) or type(error).__name__) from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        status = path.stat()
    except OSError as error:
        raise DecodeError(f"cannot open: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not a regular file")            # a pipe would block for ever
    if status.st_size == 0:
        raise DecodeError("the file is empty")
    with _errors():
        container = av.open(str(path), metadata_errors="replace")
    with container:
        if not container.streams.video:
            raise DecodeError("no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise DecodeError("unknown video codec")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if stream.time_base is None:
            raise DecodeError("the video stream has no time base")
        yield container, stream


def _decode(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """(time in s, libav frame), times strictly ascending; frames that would go back in time are left out."""
    step = float(1 / stream.average_rate) if stream.average_rate else 0.04
    last = -math.inf
    size: tuple[int, int] | None = None
    barren = 0
    packets = container.demux(stream)
    while True:
        with _errors():
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        if packet is None:
            return
        barren = 0 if frames else barren + 1
        if barren > MAX_BARREN_PACKETS:
            raise DecodeError(f"{barren} packets in a row hold no frame")
        for frame in frames:
            time = frame.time if frame.time is not None else max(last, -step) + step
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise DecodeError(f"the picture changes from {size} to {(frame.width, frame.height)} px")
            if time > last:
                last = time
                yield time, frame


def _from(container: Any, stream: Any, start_s: float) -> Iterator[tuple[float, Any]]:
    """Decode from a key frame at or before `start_s`; from zero where the file cannot seek there."""
    if start_s >= SEEK_FROM_S:
        try:
            container.seek(int(start_s / stream.time_base), stream=stream, backward=True)
            frames = _decode(container, stream)
            first = next(frames, None)
        except (av.FFmpegError, OverflowError, DecodeError):
            first = None
        if first is not None and first[0] <= start_s:
            yield first
            yield from frames
            return
        with _errors():
            container.seek(0)
    yield from _decode(container, stream)


def _nearest(frames: Iterator[tuple[float, Any]], wanted: list[float]) -> Iterator[tuple[Any, int]]:
    """(frame, how many wanted times it serves) in order; a tie goes to the earlier frame."""
    served = 0
    before: tuple[float, Any] | None = None
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


def _displayed(stream: Any, frame: Any) -> tuple[int, int]:
    """Width and height in px as displayed: pixels made square by widening, then turned upright."""
    aspect = stream.sample_aspect_ratio
    width, height = frame.width, frame.height
    if aspect and aspect != 1 and Fraction(1, 8) < aspect < 8:
        width = max(round(width * aspect), 1)
    return (height, width) if frame.rotation % 180 else (width, height)


def _picture(stream: Any, frame: Any, long_side: int | None) -> Frame:
    upright_width, upright_height = _displayed(stream, frame)
    if long_side is not None and max(upright_width, upright_height) > long_side:
        scale = long_side / max(upright_width, upright_height)
        upright_width = max(round(upright_width * scale), 1)
        upright_height = max(round(upright_height * scale), 1)
    turned = frame.rotation % 180 != 0
    width, height = (upright_height, upright_width) if turned else (upright_width, upright_height)
    with _errors():
        converted = frame.reformat(
            width, height, "rgb24",
            src_colorspace=Colorspace.ITU709 if frame.colorspace == 1 else Colorspace.ITU601,
            interpolation=EXACT if long_side is None else Interpolation.AREA,
            threads=1,
        )
        picture: Frame = converted.to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4         # rotation is counter-clockwise, as np.rot90 is
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture
