"""`pv3d bench landmarks`: what following a face costs beside its models, and how steady the points are.

The first `frames` frames of every good clip of the manifest go through `FollowFace`, with MediaPipe where its
package and files are here, else with dlib. The stage and its models take turns, and the best time of each
clip counts, so that a busy machine does no harm.

`stage_over_models`          rate of the whole stage, decoding included, by that of its models alone: the same
                             calls with the same pictures
`detector_share`             the detector's part of the stage's time
`every_k_change_pct`         median change of the distance of the eyes, in per cent, against points that are
                             found in a frame from a detection in that frame, with no frame before
`jitter_after_over_before`   robust second difference of the points after `SmoothLandmarks`, by that before
`frames_per_second`          of the stage
`clips`, `clips_missing`     that were measured; of which the stage keeps nothing
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from infra.storage import FolderStorage
from pipelines.benches.identity import best_backends
from pipelines.benches.manifest import read
from stages import backends, video
from stages.backends import Box, Detection, FaceBackend
from stages.base import Drop, Rejected
from stages.clip import Clip
from stages.faces import READ_LONG_SIDE, FollowFace
from stages.smooth import SmoothLandmarks
from stages.track import Track

ROUNDS = 3
ALONE_EVERY = 7                  # of so many frames one is looked at alone; no multiple of `detect_every`
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)


class Recorder:
    """A `FaceBackend` that remembers what it was asked."""

    def __init__(self, model: FaceBackend) -> None:
        self.model = model
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def start(self) -> None:
        self.calls.append(("start", ()))
        self.model.start()

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        self.calls.append(("detect", (frame,)))
        return self.model.detect(frame)

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        self.calls.append(("landmarks", (frame, box)))
        return self.model.landmarks(frame, box)


def run(
    data: Path, frames: int = 96, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The figures of the module's text. Raises ValueError when there is nothing to measure on."""
    path = best_backends()["stages.FollowFace.backend"]
    progress(f"backend: {path}")
    stage = FollowFace(backend=path, minimum_face_px=1, minimum_frames=1)
    rows = [row for row in read(data) if row.good]
    if not rows:
        raise ValueError(f"--data {data}: manifest.csv has no good clip; give a folder with some")
    found = []
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        stage.setup(FolderStorage(Path(folder)))
        for row in rows:
            figures = None
            with contextlib.suppress(Drop):
                figures = measure(stage, _clip(row.name, row.path, frames))
            kept = "nothing kept" if figures is None else f"{figures['ratio']:.3f} of the models' rate"
            progress(f"{row.name}: {kept}")
            found.append(figures)
    return {"figures": _figures([f for f in found if f is not None], found.count(None)), "backend": path}


def _clip(name: str, path: Path, frames: int) -> Clip:
    info = video.probe(path)
    times_s = video.frame_times(path)[:frames]
    return Clip(name, name, str(path), fps=info.fps, width=info.width, height=info.height,
                frame_times_s=times_s)  # fmt: skip


def measure(stage: FollowFace, clip: Clip) -> dict[str, Any]:
    """Times in s, differences in % and jitters of one clip. Raises Drop when the stage keeps nothing."""
    model = stage.model
    recorder = Recorder(model)
    stage.model = cast(FaceBackend, recorder)
    try:
        kept = [out for out in stage.process(clip) if not isinstance(out, Rejected)]
    finally:
        stage.model = model
    stage_s, models_s, detector_s = np.min([_race(stage, clip, recorder) for _ in range(ROUNDS)], axis=0)
    jitters = [jitter(points) for out in kept for points in _before_and_after(out)]
    return {
        "frames": clip.frame_count, "stage_s": stage_s, "models_s": models_s, "detector_s": detector_s,
        "ratio": models_s / stage_s, "before": np.mean(jitters[::2]), "after": np.mean(jitters[1::2]),
        "changes": _changes(stage, clip, kept),
    }  # fmt: skip


def _race(stage: FollowFace, clip: Clip, recorder: Recorder) -> tuple[float, float, float]:
    """Seconds of the stage, of its models alone, and of the detector among them."""
    begun = time.perf_counter()
    list(stage.process(clip))
    stage_s = time.perf_counter() - begun
    seconds = {"start": 0.0, "detect": 0.0, "landmarks": 0.0}
    for name, arguments in recorder.calls:
        call = getattr(recorder.model, name)
        begun = time.perf_counter()
        call(*arguments)
        seconds[name] += time.perf_counter() - begun
    return stage_s, sum(seconds.values()), seconds["detect"]


def _before_and_after(clip: Clip) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    (smooth,) = SmoothLandmarks().process(clip)
    return clip.need("landmarks").astype(np.float64), smooth.need("smooth_landmarks").astype(np.float64)


def jitter(points: NDArray[np.float64]) -> float:
    """Median length of the second difference of [T, 68, 2], by the distance of the outer eye corners."""
    corners = np.median(np.linalg.norm(points[:, 36] - points[:, 45], axis=-1))
    return float(np.median(np.linalg.norm(np.diff(points, 2, axis=0), axis=-1)) / corners)


def eye_distance(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Between the centres of the eyes: [T, 68, 2] -> [T]."""
    apart = points[:, LEFT_EYE].mean(axis=1) - points[:, RIGHT_EYE].mean(axis=1)
    return np.asarray(np.linalg.norm(apart, axis=-1), np.float64)


def _changes(stage: FollowFace, clip: Clip, kept: list[Clip]) -> list[float]:
    """Differences in % of the eyes' distance in some frames, followed and looked at alone."""
    followed: dict[float, float] = {}
    for out in kept:
        followed |= zip(out.need("frame_times_s").tolist(), eye_distance(out.need("landmarks")), strict=True)
    times_s = clip.need("frame_times_s")[::ALONE_EVERY].tolist()
    scale = max(max(clip.width, clip.height) / READ_LONG_SIDE, 1.0)
    changes = []
    read_again = video.read_frames(Path(clip.video), times_s, READ_LONG_SIDE)
    for time_s, frame in zip(times_s, read_again, strict=True):
        alone = Track(stage.model, [None], every=1, longest_gap=0, second_size=stage.second_face_size)
        alone.step(frame)
        if alone.points[0] is not None and time_s in followed:
            points = backends.to_68(type(stage.model), alone.points[0])
            distance = float(eye_distance(points[None])[0]) * scale
            changes.append(100 * abs(followed[time_s] / distance - 1))
    return changes


def _figures(found: list[dict[str, Any]], missing: int) -> dict[str, float]:
    def total(name: str) -> float:
        return float(sum(clip[name] for clip in found))

    if not found:
        return {"clips": 0, "clips_missing": missing}
    return {
        "stage_over_models": total("models_s") / total("stage_s"),
        "detector_share": total("detector_s") / total("stage_s"),
        "every_k_change_pct": float(np.median([change for clip in found for change in clip["changes"]])),
        "jitter_after_over_before": total("after") / total("before"),
        "frames_per_second": total("frames") / total("stage_s"),
        "clips": len(found),
        "clips_missing": missing,
    }
