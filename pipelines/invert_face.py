"""A picture or a video of somebody's, as the training saw its own: aligned squares and their cameras.

The project's stages do it: SplitShots, FollowFace, SmoothLandmarks, AlignCrop, FitCameras, in a folder that
is gone afterwards. A picture is a video of one frame, kept without loss.
"""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import boxes
from stages.backends import Detection
from stages.base import Drop, Rejected, Stage
from stages.clip import Clip
from stages.track import DETECT_PIXELS

log = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 1 << 26            # 8192 x 8192: of a picture, before it is decoded
MOST_SIDE = 32766                # px, of what the lossless video takes
MOST_BYTES = 1 << 28             # of a picture's file
FPS = 25.0
FACE = "stages.backends.dlib:DlibFaces"
CLOSER = (2.0, 4.0)              # how much a picture without a face is enlarged, to tell a small one
SMALLEST_FACE_PX = 80.0
AROUND = 0.25                    # sides of a face's box, on every side, within which it is looked for


@dataclass(frozen=True)
class Found:
    """T frames of one face."""

    pictures: Picture
    """[T, size, size, 3] RGB, aligned"""
    cameras: NDArray[np.float32]
    """[T, 25]"""
    warnings: tuple[str, ...]
    """What the user should know, one line each"""


def is_picture(source: Path) -> bool:
    return source.suffix.lower() in PICTURES


def find_face(
    source: Path, size: int, *, frames: int = 1, face: int | None = None, start_s: float = 0.0,
    backend: str = FACE,
) -> Found:  # fmt: skip
    """`frames` frames (1 of a picture) of the largest face, or of the `face`-th largest, from `start_s` on.

    Raises ValueError of one line for what cannot be read, and for a face that cannot be used.
    """
    if not source.is_file():
        raise ValueError(f"{source}: no such file")
    with tempfile.TemporaryDirectory(prefix="pv3d-invert-") as folder:
        if is_picture(source):
            video, frames = Path(folder, "picture.mkv"), 1
            write_lossless(video, read_picture(source))
            clip = _clip(video, 0.0, 1)
        else:
            video = source.resolve()
        try:
            told: list[str] = []
            if not is_picture(source):
                clip = _shot(video, start_s, frames, told)
            return _aligned(clip, Path(folder, "store"), size, face, backend, told)
        except Drop as drop:
            detail = f" ({drop.detail})" if drop.detail else ""
            raise ValueError(f"{source}: {drop.reason}{detail}{CURES.get(drop.reason, '')}") from None


CURES = {
    "no face": "; a profile, and a face of under 80 px, is not found: give one that looks at the camera",
    "face too small": "; give a larger picture of it",
    "face lost": "; give a part in which it is seen all along (--start, --frames)",
    "two faces": "; choose with --face",
    "camera not found": "; a profile cannot be used: give one that looks at the camera",
    "face partly outside the frame": "; give one with more around the head",
}  # fmt: skip


def read_picture(source: Path) -> Picture:
    """uint8 [H, W, 3] RGB, upright. Raises ValueError for what is no sound picture, and for a huge one."""
    from PIL import Image, ImageOps

    if source.stat().st_size > MOST_BYTES:
        raise ValueError(f"{source}: {source.stat().st_size:,} bytes; a picture has {MOST_BYTES:,} at most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > MOST_PIXELS:
                    raise Image.DecompressionBombError(f"{width} x {height} px")
                if max(width, height) > MOST_SIDE:
                    raise ValueError(f"{width} x {height} px; {MOST_SIDE:,} are the most on a side")
                upright = ImageOps.exif_transpose(opened.convert("RGB"))
                return np.ascontiguousarray(np.asarray(upright, np.uint8))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{source}: is huge; scale it to {MOST_PIXELS:,} pixels or fewer") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, TypeError) as error:
        cause = " ".join(str(error).split())[:100]
        raise ValueError(f"{source}: cannot be decoded as a picture ({cause})") from None


def write_lossless(path: Path, picture: Picture) -> None:
    """A video of one frame whose pixels are those of the picture."""
    import av

    height, width = picture.shape[:2]
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=int(FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _clip(video: Path, start_s: float, frames: int, **fields: Any) -> Clip:
    from stages.video import probe

    times, info = start_s + np.arange(frames) / FPS, probe(video)
    return Clip(
        id="portrait", source=video.name, video=str(video), fps=FPS, width=info.width, height=info.height,
        frame_times_s=times, **fields,
    )  # fmt: skip


def _shot(video: Path, start_s: float, frames: int, told: list[str]) -> Clip:
    """The first `frames` frames from `start_s` on, of one shot: that which is there, or the next."""
    from infra.storage import FolderStorage
    from stages.shots import SplitShots

    if not (start_s >= 0 and np.isfinite(start_s)):
        raise ValueError(f"--start {start_s}: give seconds, 0 or more")
    with tempfile.TemporaryDirectory(prefix="pv3d-shots-") as folder:
        stage = SplitShots(minimum_frames=2, minimum_source_fps=5.0, frozen_seconds=1e6, maximum_seconds=600)
        stage.setup(FolderStorage(folder))
        whole = Clip(id="portrait", source=video.name, video=str(video))
        shots = [out for out in stage.process(whole) if isinstance(out, Clip)]
    left = []
    for shot in shots:
        times = shot.need("frame_times_s")
        times = times[times >= start_s - 1e-6]
        if len(times) >= 2:
            left.append(shot.copy(frame_times_s=times))
    if not left:
        raise Drop("too short", f"no shot of two frames after {start_s:g} s")
    chosen = left[0]
    if len(left) > 1 and chosen.frame_count < frames:
        chosen = max(left, key=lambda shot: min(shot.frame_count, frames))
    if chosen.frame_count < frames:
        told.append(f"{chosen.frame_count} frames to the next cut or the end, not {frames}")
    return chosen.copy(id="portrait", frame_times_s=chosen.need("frame_times_s")[:frames])


def _aligned(
    clip: Clip, folder: Path, size: int, face: int | None, backend: str, told: list[str]
) -> Found:
    from infra.storage import FolderStorage
    from stages.cameras import FitCameras
    from stages.crop import AlignCrop
    from stages.faces import FollowFace
    from stages.smooth import SmoothLandmarks

    store = FolderStorage(folder)
    follow = FollowFace(
        backend=backend, minimum_frames=2, minimum_face_px=SMALLEST_FACE_PX, minimum_sharpness=0.0
    )
    follow.setup(store)
    clip = _chosen(clip, follow, face, told)
    chain: list[Stage] = [
        SmoothLandmarks(), AlignCrop(size=size, quality=100, max_padded=0.5, min_source_px=0.0), FitCameras()
    ]  # fmt: skip
    found = _only(list(follow.process(clip)), told)
    for stage in chain:
        stage.setup(store)
        found = _only(list(stage.process(found)), told)
    if found.frame_count < clip.frame_count:
        told.append(f"{found.frame_count} of {clip.frame_count} frames can be used")
    pictures = np.stack(_members(store.read(found.aligned)))
    return Found(pictures, found.need("cameras").astype(np.float32), tuple(told))


def _only(outputs: list[Clip | Rejected], told: list[str]) -> Clip:
    """The longest of what a stage keeps. Raises Drop when that is nothing."""
    kept = [out for out in outputs if isinstance(out, Clip)]
    if not kept:
        lost = next(out for out in outputs if isinstance(out, Rejected))
        raise Drop(lost.reason, lost.detail)
    return max(kept, key=lambda clip: clip.frame_count)


def _chosen(clip: Clip, follow: Any, face: int | None, told: list[str]) -> Clip:
    """The clip with a box around the face that is meant, where there are several. Raises ValueError for a
    `face` that there is not, and Drop where there is none."""
    from stages.video import read_frames

    first = next(iter(read_frames(Path(clip.video), clip.need("frame_times_s")[:1])))
    seen = faces_of(follow.model, first)
    if not seen:
        for closer in CLOSER:
            if small := faces_of(follow.model, first, closer):
                side = boxes.side(small[0].box)
                raise Drop("face too small", f"about {side:.0f} px, {SMALLEST_FACE_PX:g} are needed")
        if len(clip.need("frame_times_s")) == 1:
            raise Drop("no face")
        return clip                          # it may come later
    if face is not None and not 1 <= face <= len(seen):
        raise ValueError(f"--face {face}: {len(seen)} found; give 1, the largest, to {len(seen)}")
    if len(seen) == 1:
        return clip
    if face is None:
        told.append(f"{len(seen)} faces; the largest is taken, --face 2 takes the next")
    box = seen[(face or 1) - 1].box
    side = AROUND * boxes.side(box)
    left, top, right, bottom = box[0] - side, box[1] - side, box[2] + side, box[3] + side
    shares = [left / clip.width, top / clip.height, right / clip.width, bottom / clip.height]
    return clip.copy(listed={"span": {"boxes": [[0.0, *shares]]}})


def faces_of(model: Any, frame: Picture, closer: float = 1.0) -> list[Detection]:
    """Those that surely are faces, in px of the frame, the largest first."""
    import cv2

    height, width = frame.shape[:2]
    scale = min((DETECT_PIXELS / (height * width)) ** 0.5, 1.0) * closer
    scale = min(scale, (16 * DETECT_PIXELS / (height * width)) ** 0.5)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = frame if scale == 1 else np.asarray(cv2.resize(frame, size, interpolation=how), np.uint8)
    model.start()
    seen = [
        Detection(boxes.scaled(d.box, 1 / scale), d.score)
        for d in model.detect(picture) if d.score >= model.believe_above
    ]  # fmt: skip
    return sorted(seen, key=lambda d: -boxes.side(d.box))


def _members(data: bytes) -> list[Picture]:
    import cv2

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [file.read() for file in map(tar.extractfile, tar) if file]
    found = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in files]
    return [np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8) for picture in found]
