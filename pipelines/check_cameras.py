"""`pv3d check-cameras`: whether cameras are what a model can be trained with, and if not, why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.camera import RADIUS
from pipelines.camera_files import Cameras, Chosen, find_cameras, is_workflow
from stages.cameras import HEAD
from stages.rotations import angle_between

Array = NDArray[np.float64]

ROTATION = 1e-3                  # R R^T may miss the identity by so much, and det R miss 1
ROW = 1e-3                       # as a row that has to be 0 0 0 1 or 0 0 1
DISTANCE = 0.02                  # world units, from 2.7 away from the origin or from the head
FOCAL = (1.0, 20.0)              # image sides: fields of view of 53 and 3 degrees
OFF_CENTRE = 0.1                 # image sides: of the principal point, and of what makes pixels no squares
LOOKS_PAST_DEG = 5.0             # between the line of sight and the head; the picture ends at 6.7
SOUND_SHOWN = 100                # lines of the table without a fault
JUMP_DEG = 15.0                  # between neighbouring frames: 375 degrees a second at 25 of them


@dataclass(frozen=True)
class Worst:
    """The worst values of one file; angles in degrees, lengths in world units, the lens in image sides."""

    rotation_off: float
    determinant_off: float
    distance_min: float
    distance_max: float
    focal_min: float
    focal_max: float
    looks_past_deg: float
    jump_deg: float


@dataclass(frozen=True)
class Checked:
    """One line of the table."""

    name: str
    cameras: int
    fault: str                   # the first one, or empty
    worst: Worst | None          # None when there is nothing to measure


COLUMNS = (
    ("cameras", ""), ("R off", "rotation_off"), ("det off", "determinant_off"), ("nearest", "distance_min"),
    ("farthest", "distance_max"), ("focal", "focal_min"), ("to", "focal_max"), ("past deg", "looks_past_deg"),
    ("jump deg", "jump_deg"),
)  # fmt: skip


def check_cameras(
    paths: Sequence[str], overlay: Path | None = None, clips: int = 12, profile: str | None = None,
    overrides: tuple[str, ...] = (),
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Check every camera of every path, and draw `clips` of their clips into the folder `overlay`.

    The answer's "fault" is the first fault, or empty. Raises ValueError for a path that can hold no cameras.
    """
    chosen = Chosen(profile, overrides)
    remote = chosen.of_server and any(path.startswith("s3://") for path in paths)
    if chosen != Chosen() and not remote and not any(is_workflow(path) for path in paths):
        raise ValueError(
            "--profile and --set: change a workflow, and no PATH is one; name workflow.yaml "
            "(with an s3:// PATH only --set storage.s3.* counts)"
        )
    found = [check(cameras) for path in paths for cameras in find_cameras(path, chosen)]
    faults = [f"{row.name}: {row.fault}" for row in found if row.fault]
    answer: dict[str, Any] = {
        "files": [asdict(row) for row in found],
        "cameras": sum(row.cameras for row in found),
        "faults": len(faults),
        "fault": faults[0] if faults else "",
    }
    lines = _table(found)
    if not faults:
        lines.append(f"no fault in {answer['cameras']} cameras")
    if overlay is not None:
        from pipelines.overlay_video import write_overlays

        answer["videos"] = [str(file) for file in write_overlays(paths, overlay, clips, chosen)]
        lines += answer["videos"]
    return answer, "\n".join(lines)


def check(cameras: Cameras) -> Checked:
    """Measure all cameras of a file, and name the first that is wrong."""
    c = cameras.numbers
    if cameras.fault:
        return Checked(cameras.name, 0, cameras.fault, None)
    finite = np.isfinite(c).all(axis=1)
    if not finite.all():
        return Checked(cameras.name, len(c), f"camera {np.argmin(finite)} is not finite; recompute it", None)
    jumps = angle_between(_rotation(c)[:-1], _rotation(c)[1:]) if cameras.neighbours else np.zeros(0)
    fault = min(_faults(c, jumps), default=(0, ""), key=lambda found: found[0])     # of equals the first
    text = f"camera {fault[0]} {fault[1]}" if fault[1] else ""
    return Checked(cameras.name, len(c), text, _worst(c, jumps))


def _worst(c: Array, jumps: Array) -> Worst:
    distance = np.linalg.norm(_position(c), axis=1)
    focal = c[:, [16, 20]]
    figures = (
        _rotation_off(c).max(), np.abs(np.linalg.det(_rotation(c)) - 1).max(), distance.min(), distance.max(),
        focal.min(), focal.max(), _looks_past(c).max(), jumps.max(initial=0),
    )  # fmt: skip
    return Worst(*(round(float(figure), 6) for figure in figures))


def _faults(c: Array, jumps: Array) -> Iterator[tuple[int, str]]:
    """(camera, what is wrong with it and what to do) of the first offender of every check."""
    determinant, lens = np.linalg.det(_rotation(c)), c[:, 16:].reshape(-1, 3, 3)
    focal, past = lens[:, [0, 1], [0, 1]], _looks_past(c)
    distances = [np.linalg.norm(_position(c) - centre, axis=1) for centre in (0 * HEAD, HEAD)]
    too_far = np.abs(np.array(distances) - RADIUS).min(axis=0)
    centre = np.abs(lens[:, :2, 2] - 0.5).max(axis=1)
    squares = np.abs(np.stack([lens[:, 0, 1], lens[:, 1, 0], focal[:, 0] - focal[:, 1]])).max(axis=0)
    checks = [
        (_rotation_off(c), ROTATION, "has no rotation (R R^T is off by {:.2g}); orthonormalise it"),
        (-determinant, 0, "mirrors space (det R is -{:.2g}); give OpenCV axes: right, down, forward"),
        (np.abs(determinant - 1), ROTATION, "has a rotation whose det is off by {:.2g}; orthonormalise it"),
        (np.abs(c[:, 12:16] - (0, 0, 0, 1)).max(axis=1), ROW,
         "has a pose whose last row is off 0 0 0 1 by {:.2g}; give camera-to-world, row by row"),
        (np.abs(lens[:, 2] - (0, 0, 1)).max(axis=1), ROW,
         "has intrinsics whose last row is off 0 0 1 by {:.2g}; give them row by row"),
        (centre, OFF_CENTRE, "has its principal point {:.2g} image sides off; divide intrinsics by the side"),
        (-(focal.min(axis=1) - FOCAL[0]), 0, "has a focal length of {:.2g} image sides below 1; check it"),
        (focal.max(axis=1), FOCAL[1], "has a focal length of {:.2g}; divide pixels by the image side"),
        (squares, OFF_CENTRE, "has no square pixels (off by {:.2g}); give one focal length and no skew"),
        (too_far, DISTANCE, "is {:.3f} off its distance of 2.7; move it along its ray from the origin"),
        (past, LOOKS_PAST_DEG, "looks past the head by {:.1f} degrees; it must look at the origin"),
    ]  # fmt: skip
    for values, limit, text in checks:
        bad = values > limit
        if bad.any():
            first = int(np.argmax(bad))
            yield first, text.format(values[first])
    if (jumps > JUMP_DEG).any():
        first = int(np.argmax(jumps > JUMP_DEG))
        yield first + 1, f"is turned by {jumps[first]:.1f} degrees from the one before; cut the clip there"


def _rotation(c: Array) -> Array:
    return c[:, :16].reshape(-1, 4, 4)[:, :3, :3]


def _position(c: Array) -> Array:
    return c[:, [3, 7, 11]]


def _rotation_off(c: Array) -> Array:
    rotation = _rotation(c)
    product = rotation @ rotation.transpose(0, 2, 1) - np.eye(3)
    return np.asarray(np.abs(product).max(axis=(1, 2)), np.float64)


def _looks_past(c: Array) -> Array:
    """[T] degrees between the line of sight and the head."""
    towards = HEAD - _position(c)
    forward = _rotation(c)[:, :, 2]
    sine = np.linalg.norm(np.cross(forward, towards), axis=1)
    return np.asarray(np.rad2deg(np.arctan2(sine, (forward * towards).sum(axis=1))), np.float64)


def _table(rows: Sequence[Checked]) -> list[str]:
    """All faults; of what has none, the first so many, so that a large data set stays readable."""
    sound = [row for row in rows if not row.fault]
    hidden = {id(row) for row in sound[SOUND_SHOWN:]}
    lines = _lines([row for row in rows if id(row) not in hidden])
    if hidden:
        lines.append(f"and {len(hidden)} more without a fault; --json has them all")
    return lines


def _lines(rows: Sequence[Checked]) -> list[str]:
    width = max([len(row.name) for row in rows], default=0)
    lines = [" ".join([f"{'':<{width}}", *(f"{title:>9}" for title, _ in COLUMNS)])]
    for row in rows:
        figures = asdict(row.worst) if row.worst else {}
        values = [f"{figures[key]:9.4g}" if key in figures else f"{'':9}" for _, key in COLUMNS[1:]]
        lines.append(" ".join([f"{row.name:<{width}}", f"{row.cameras:9d}", *values]).rstrip())
        if row.fault:
            lines.append(f"{'':<{width}} {row.fault}")
    return lines
