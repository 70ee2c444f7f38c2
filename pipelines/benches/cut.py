"""What cutting costs, over decoding alone.

A 60 s file, 1280 x 720 at 25 frames per second, H.264 with a key frame every 125 frames, is made for the
purpose; a list wants twelve clips of 3 s, spread over it. Three ways to get them are timed by turns:

    ours        the whole stage SplitShots as it runs in a worker: open once, seek, decode, pictures as
                arrays, shot detection on each of them, clip records
    bare        PyAV in one thread: open once, go to each clip the shorter way (on, or by a seek to the key
                frame before it), decode to its end, and do nothing with the frames
    from zero   the way of the lists' own scripts: open anew for each clip and decode from the beginning to
                its end; the frames are not even converted
    full size   what later stages do with the clips: each by its own seek, every frame at full size as RGB

Times are CPU seconds of all threads of this process, the least of several rounds; everything runs in one
thread. `over_bare_decode` is the time of bare over ours, for the frames of the same clips.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS, KEY_EVERY = 1280, 720, 25, 125
SECONDS = 60.0
CLIPS, CLIP_SECONDS, FIRST_S, STEP_S = 12, 3.0, 0.6, 4.85       # at every distance from a key frame

Spans = list[tuple[float, float]]


def run(
    rounds: int = 5, seconds: float = SECONDS, progress: Callable[..., object] | None = None
) -> dict[str, Any]:
    """Figures as above; `frames_per_s` of wanted frames is of one core. `seconds` shortens the file."""
    import cv2

    if rounds < 1 or seconds < FIRST_S + CLIP_SECONDS:
        raise ValueError(f"bench cut: {rounds} rounds of {seconds} s; give 1 or more, and 4 s or more")
    cv2.setNumThreads(1)
    say = progress or (lambda *words: None)
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        path = Path(folder, "cut.mp4")
        encode(path, scene(round(seconds * FPS)))
        say("made %.0f s of video, %.1f Mbit/s", seconds, path.stat().st_size * 8e-6 / seconds)
        spans = clip_spans(seconds)
        ways: dict[str, Callable[[], int]] = {
            "bare": lambda: bare(path, spans),
            "ours": stage_way(path, spans),
            "full size": lambda: full_size(path, spans),
            "from zero": lambda: from_zero(path, spans),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        counts = {}
        for number in range(rounds):
            for name, way in ways.items():
                if name in ("from zero", "full size") and number >= 2:      # slow, and far from any limit
                    continue
                begun = time.process_time()
                counts[name] = way()
                times[name].append(time.process_time() - begun)
            say("round %d: %s", number + 1, {name: round(some[-1], 3) for name, some in times.items()})
    best = {name: min(some) for name, some in times.items()}
    wanted = sum(round((end - start) * FPS) for start, end in spans)
    if {counts["ours"], counts["full size"]} != {wanted}:
        raise RuntimeError(f"{counts} frames came, {wanted} were wanted")
    return {
        "figures": {
            "over_bare_decode": best["bare"] / best["ours"],
            "over_decode_from_zero": best["from zero"] / best["ours"],
            "full_size_over_bare_decode": best["bare"] / best["full size"],
            "clips": len(spans),
            "clips_per_s": len(spans) / best["ours"],
            "frames_per_s": wanted / best["ours"],
            "bare_decoded_frames": counts["bare"],
        }
    }  # fmt: skip


def clip_spans(seconds: float) -> Spans:
    """(start, end) in s, on the grid of the frames."""
    starts = (round((FIRST_S + n * STEP_S) * FPS) / FPS for n in range(CLIPS))
    return [(start, start + CLIP_SECONDS) for start in starts if start + CLIP_SECONDS <= seconds]


def stage_way(path: Path, spans: Spans) -> Callable[[], int]:
    """SplitShots over a listed video; gives the number of frames of the clips that came out."""
    from infra.storage import FolderStorage
    from stages.clip import Clip
    from stages.shots import SplitShots

    stage = SplitShots()
    stage.setup(FolderStorage(path.parent))
    listed = [{"key": str(n), "start_s": start, "end_s": end} for n, (start, end) in enumerate(spans)]

    def cut() -> int:
        unit = Clip("v", path.name, str(path), listed={"spans": listed})
        return sum(clip.frame_count for clip in stage.process(unit) if isinstance(clip, Clip))

    return cut


def full_size(path: Path, spans: Spans) -> int:
    """The frames as the stages after the cut read them."""
    from stages.video import read_frames

    grids = [start + np.arange(round((end - start) * FPS)) / FPS for start, end in spans]
    return sum(frame.shape[0] == HEIGHT for grid in grids for frame in read_frames(path, grid))


def bare(path: Path, spans: Spans) -> int:
    """Frames decoded: those between a key frame and its clip too, but none twice."""
    import av

    count, at = 0, 0.0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for start, end in spans:
            if start * FPS // KEY_EVERY * KEY_EVERY / FPS > at:
                container.seek(int(start / stream.time_base), stream=stream, backward=True)
            count += _decode_to(container, stream, end)
            at = end
    return count


def from_zero(path: Path, spans: Spans) -> int:
    """As `bare`, each clip by itself."""
    import av

    count = 0
    for _, end in spans:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            count += _decode_to(container, stream, end)
    return count


def _decode_to(container: Any, stream: Any, end_s: float) -> int:
    last = end_s - 1.5 / FPS
    for count, frame in enumerate(container.decode(stream), start=1):
        if frame.time >= last:
            return count
    return 0


def scene(count: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 [720, 1280, 3] RGB: a textured head moves before a textured wall; the camera sways; grain."""
    import cv2

    random = np.random.default_rng(0)
    wall, head = _texture(random, 1700, 920, 120), _texture(random, 480, 480, 150)
    y, x = np.mgrid[:480, :480]
    inside = (((x - 240) / 190) ** 2 + ((y - 240) / 235) ** 2 < 1)[..., None]
    grain = random.normal(0, 5, (8, HEIGHT, WIDTH, 3)).astype(np.int16)
    for n in range(count):
        t = n / FPS
        left, top = round(200 + 30 * math.sin(0.5 * t)), round(100 + 15 * math.sin(0.7 * t))
        frame = wall[top:top + HEIGHT, left:left + WIDTH].copy()
        left, top = round(400 + 60 * math.sin(1.3 * t)), round(120 + 25 * math.sin(1.9 * t))
        place = frame[top:top + 480, left:left + 480]
        light = 1 + 0.1 * math.sin(2.3 * t)
        place[:] = np.where(inside, np.clip(head * light, 0, 255).astype(np.uint8), place)
        yield np.asarray(cv2.add(frame, grain[n % 8], dtype=cv2.CV_8U), np.uint8)


def _texture(random: np.random.Generator, width: int, height: int, level: float) -> NDArray[np.uint8]:
    """Noise of five sizes, the coarse strongest."""
    import cv2

    picture = np.full((height, width, 3), level, np.float32)
    for across in (4, 16, 64, 256, 640):
        noise = random.normal(size=(across * height // width + 1, across, 3)).astype(np.float32)
        picture += 64 / across**0.5 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(picture.clip(0, 255), np.uint8)


def encode(path: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    """H.264 as sites deliver it: three B-frames, no further key frame than the regular ones."""
    import av

    every = {"g": str(KEY_EVERY), "keyint_min": str(KEY_EVERY), "sc_threshold": "0"}
    options = {"preset": "veryfast", "crf": "23", **every}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
