"""`pv3d bench cameras`: how near the estimated cameras are to what is known of them.

With `--data DIR`: against the head poses of Deep3DFaceReconstruction in DIR/reference/
deep3d_coefficients.npz (`<video>/angle` [N, 3], rad: pitch, yaw, roll; row i is frame i + lag of the video,
and the lag is not known). The videos go through the stages from the cut to the cameras, with the best
backends that are here; only what is too short, small or tight to train with is admitted. Cameras are turned
back to how the frame was held.

`mae_mean_deg`    mean absolute difference in degrees over all videos and angles, after the best lag of at
                  most 3 frames, without the mean difference of each video and angle: nobody's face is the
                  average face, so a constant is arbitrary
`mae_worst_deg`   the worst of any angle of any video
`jitter_ratio`    median second difference of our angles, by that of the reference at the same frames; the
                  mean over videos and angles
`seconds_share`   of the reference, that was compared
`clips_missing`   videos with a reference of which no clip has cameras

Without it: against the true cameras of the demo's clips, mean and worst error of yaw, pitch and roll.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.benches.identity import best_backends
from pipelines.benches.manifest import Listed, Videos, read
from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.workflow import Step, Workflow, load
from stages import deep3d
from stages.cameras import as_filmed
from stages.clip import Clip
from stages.crop import AlignCrop

Array = NDArray[np.float64]

REFERENCE = Path("reference", "deep3d_coefficients.npz")
ANGLE = "/angle"
CROP_PX = 64
MAX_LAG = 3                              # frames of the video
LEAST_ROWS = 8                           # of a comparison
OPEN = (                                 # admit what is too short, small or tight to train with
    "stages.SplitShots.minimum_frames=12", "stages.SplitShots.minimum_source_fps=1",
    "stages.FollowFace.minimum_frames=12", "stages.FollowFace.minimum_face_px=1",
    "stages.AlignCrop.min_source_px=1", "stages.AlignCrop.max_padded=1",
)  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One video against its reference, [3] each: pitch, yaw and roll."""

    lag: int
    seconds: float
    error_deg: Array
    jitter_ratio: Array


def run(
    data: Path | None = None, workflow: str = "workflow.yaml", root: str = "", camera: str = "pnp",
    in_process: int = 0, progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures. `root` names a store that keeps what is made; `camera` is FitCameras' backend."""
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        if data is None:
            return {"figures": _demo(load(workflow, "demo"), root or folder)}
        references = read_references(data)
        rows = [row for row in read(data) if row.name in references]
        progress(f"faces: {best_backends()['stages.FollowFace.backend']}, cameras: {camera}")
        clips = _clips(load(workflow, None, _settings(camera)), rows, root or folder, bool(in_process))
    return {"figures": measure(clips, rows, references, progress)}


def read_references(data: Path) -> dict[str, Array]:
    """[N, 3] in degrees by video. Raises ValueError naming the file."""
    path = data / REFERENCE
    if not path.is_file():
        raise ValueError(f"--data {data}: has no {REFERENCE}; give a folder with one")
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name.endswith(ANGLE)]
        return {name.removesuffix(ANGLE): np.rad2deg(file[name].astype(np.float64)) for name in names}


def measure(
    clips: Sequence[Clip],
    rows: Sequence[Listed],
    references: dict[str, Array],
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """The figures of clips with cameras; `source` of a clip is the name of its row."""
    from stages.video import frame_times

    found, seconds = [], 0.0
    for row in rows:
        own = [clip for clip in clips if clip.source == row.name]
        times_s = frame_times(row.path)
        seconds += len(references[row.name]) * float(np.diff(times_s).mean())
        compared = compare(own, times_s, references[row.name]) if own else None
        if compared is None:
            progress(f"{row.name}: missing")
            continue
        found.append(compared)
        error = ", ".join(f"{value:.2f}" for value in compared.error_deg)
        progress(f"{row.name}: pitch, yaw, roll {error} degrees, lag {compared.lag}")
    errors = np.array([one.error_deg for one in found]).reshape(-1, 3)
    ratios = np.array([one.jitter_ratio for one in found]).reshape(-1, 3)
    return {
        "videos": len(rows),
        "clips_missing": len(references) - len(found),
        "mae_mean_deg": float(errors.mean()) if found else float("nan"),
        "mae_worst_deg": float(errors.max()) if found else float("nan"),
        **{f"{name}_deg_mean": float(errors[:, i].mean()) if found else float("nan")
           for i, name in enumerate(("pitch", "yaw", "roll"))},
        "seconds_share": sum(one.seconds for one in found) / max(seconds, 1e-9),
        "jitter_ratio": float(ratios.mean()) if found else float("nan"),
    }  # fmt: skip


def compare(clips: Sequence[Clip], times_s: Array, reference: Array) -> Compared | None:
    """The clips of one video, whose frames are at `times_s`, with its reference [N, 3] in degrees.

    None when too little of them overlaps.
    """
    tracks = [(angles(clip), _frames(clip, times_s)) for clip in clips]
    best: tuple[float, Compared] | None = None
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        pairs = [_overlap(track, frames - lag, reference) for track, frames in tracks]
        ours, theirs = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        if len(ours) < LEAST_ROWS:
            continue
        fit = _correlation(ours, theirs)
        if best is None or fit > best[0]:
            difference = ours - theirs
            error = np.abs(difference - difference.mean(axis=0)).mean(axis=0)
            jitter = [_jitter([pair[i] for pair in pairs]) for i in (0, 1)]
            best = fit, Compared(lag, len(ours) / clips[0].fps, error, jitter[0] / jitter[1])
    return best[1] if best else None


def angles(clip: Clip) -> Array:
    """[T, 3] pitch, yaw, roll in degrees as Deep3D counts them, of the frame as it was held."""
    cameras = as_filmed(clip.need("cameras"), clip.need("crop_transforms"))
    rotations = cameras[:, :16].reshape(-1, 4, 4)[:, :3, :3]
    return np.rad2deg(deep3d.angles_from_rotation(rotations))


def _frames(clip: Clip, times_s: Array) -> NDArray[np.intp]:
    """Which frames of the video a clip holds."""
    wanted = clip.need("frame_times_s")
    return np.asarray(np.abs(wanted[:, None] - times_s).argmin(axis=1), np.intp)


def _overlap(track: Array, rows: NDArray[np.intp], reference: Array) -> tuple[Array, Array]:
    known = (rows >= 0) & (rows < len(reference))
    return track[known], reference[rows[known]]


def _correlation(a: Array, b: Array) -> float:
    """Mean over the columns of [N, 3]."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return float(((a * b).sum(axis=0) / np.maximum(scale, 1e-9)).mean())


def _jitter(tracks: Sequence[Array]) -> Array:
    """[3]: median absolute second difference, in no case over the end of a track."""
    steps = np.concatenate([np.abs(np.diff(track, 2, axis=0)) for track in tracks])
    return np.asarray(np.maximum(np.median(steps, axis=0), 1e-6), np.float64)


def _settings(camera: str) -> list[str]:
    faces = best_backends()["stages.FollowFace.backend"]
    return [f"stages.FollowFace.backend={faces}", f"stages.FitCameras.backend={camera}", *OPEN]


def _clips(planned: Workflow, rows: list[Listed], root: str, in_process: bool) -> list[Clip]:
    """What comes out of the stage that writes cameras."""
    step = next(step for step in planned.steps if "cameras" in step.stage.writes)
    storage = planned.storage.model_copy(update={"root": root})
    steps = tuple(_small(step) for step in planned.steps)
    planned = replace(planned, storage=storage, source=Videos(rows), steps=steps)
    prepare(planned, until=step.name, in_process=in_process)
    ledger = Ledger(planned.store())
    refs = [ref for record in ledger.records(step.name) for ref in ledger.outputs(record)]
    return [ledger.load(ref, ("cameras", "crop_transforms", "frame_times_s")) for ref in refs]


def _small(step: Step) -> Step:
    """Smaller pictures, which the cameras do not depend on."""
    stage = step.stage
    return replace(step, stage=replace(stage, size=CROP_PX)) if isinstance(stage, AlignCrop) else step


def _demo(planned: Workflow, root: str) -> dict[str, float]:
    """Makes the demo's clips anew, unless `root` has them."""
    from stages.sources.portraits import pose_errors

    planned = replace(planned, storage=planned.storage.model_copy(update={"root": root}))
    step = next(step for step in planned.steps if "cameras" in step.stage.writes)
    prepare(planned, until=step.name)
    store = planned.store()
    ledger = Ledger(store)
    refs = [ref for record in ledger.records(step.name) for ref in ledger.outputs(record)]
    errors = [error for ref in refs if (error := pose_errors(store, ledger.load(ref))) is not None]
    figures: dict[str, float] = {"clips": len(errors)}
    for name in ("yaw", "pitch", "roll"):
        figures[f"{name}_deg_mean"] = sum(e[name] for e in errors) / max(len(errors), 1)
        figures[f"{name}_deg_worst"] = max((e[name] for e in errors), default=0.0)
    return figures
