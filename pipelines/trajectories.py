"""Where the camera goes: named paths around the head, or cameras that something else has.

A named path begins at the front (plus the given view) and comes back to where it began, so that it loops. Its
angles are those of `model.camera.orbit` at eye height.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PATHS = ("still", "orbit", "nod", "figure-eight")
YAW_DEG, PITCH_DEG = 30.0, 15.0
"""How far a moving path goes to either side unless told."""


def trajectory(
    path: str, frames: int, *, yaw_deg: float | None = None, pitch_deg: float | None = None,
    cameras: Any = None,
) -> Floats:  # fmt: skip
    """[frames, 25]. `path`: one of PATHS; a file, folder or store of cameras as `check-cameras` takes it,
    with `#CLIP` behind it where it has several.

    `yaw_deg`, `pitch_deg`: how far a moving path goes to either side; of `still`, the view itself. `cameras`:
    the `model.camera` of the model, the installed one unless given. Raises ValueError of one line.
    """
    for option, value in (("--yaw", yaw_deg), ("--pitch", pitch_deg)):
        if value is not None and not abs(value) <= 360:
            raise ValueError(f"{option} {value:g}: give degrees from -360 to 360")
    if path not in PATHS:
        return _of_file(path, frames)
    if cameras is None:
        from model import camera as cameras
    turn = 2 * np.pi * np.arange(frames) / frames
    moves = {
        "still": (np.ones(frames) * (yaw_deg or 0.0), np.ones(frames) * (pitch_deg or 0.0)),
        "orbit": (_or(yaw_deg, YAW_DEG) * np.sin(turn), np.ones(frames) * (pitch_deg or 0.0)),
        "nod": (np.ones(frames) * (yaw_deg or 0.0), _or(pitch_deg, PITCH_DEG) * np.sin(turn)),
        "figure-eight": (
            _or(yaw_deg, YAW_DEG) * np.sin(turn), _or(pitch_deg, PITCH_DEG) * np.sin(2 * turn) / 2
        ),
    }  # fmt: skip
    yaws, pitches = moves[path]
    return np.stack([view(cameras, y, p) for y, p in zip(yaws.tolist(), pitches.tolist(), strict=True)])


def view(cameras: Any, yaw_deg: float, pitch_deg: float) -> Floats:
    """[25]: a camera on the sphere that looks at the origin; 0, 0 is the canonical one."""
    made = cameras.orbit(yaw_deg, pitch_deg, target=(0.0, 0.0, 0.0), vertical_offset=0.0)
    return np.asarray(made.encode(), np.float32)


def turned(seen: Floats, yaw_deg: float) -> Floats:
    """Cameras [T, 25] carried round the head's upright axis by `yaw_deg`, towards +x."""
    angle = np.deg2rad(yaw_deg)
    spin = np.eye(4)
    spin[0, 0] = spin[2, 2] = np.cos(angle)
    spin[0, 2], spin[2, 0] = np.sin(angle), -np.sin(angle)
    out = seen.copy()
    out[:, :16] = (spin @ seen[:, :16].reshape(-1, 4, 4)).reshape(-1, 16)
    return out


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _of_file(text: str, frames: int) -> Floats:
    """The first `frames` cameras of one clip; fewer are played to and fro."""
    from model.camera import check_cameras
    from pipelines.camera_files import find_cameras

    path, _, clip = text.partition("#")
    if not clip and not Path(path).exists() and "://" not in path:
        raise ValueError(f"--camera {text}: no such file; give one, or {', '.join(PATHS)}")
    found = [one for one in find_cameras(path) if not clip or one.name.endswith((f" {clip}", f"/{clip}"))]
    if not found:
        raise ValueError(f"--camera {text}: has no clip {clip!r}; `pv3d check-cameras {path}` lists them")
    chosen = found[0]
    if chosen.fault:
        raise ValueError(f"--camera {chosen.name}: {chosen.fault}")
    if len(found) > 1:
        name = found[0].name.rpartition(" ")[2]
        raise ValueError(f"--camera {text}: has {len(found)} clips; name one, such as {path}#{name}")
    if not chosen.neighbours:
        raise ValueError(f"--camera {text}: its cameras are of single pictures, not of a clip")
    try:
        numbers = check_cameras(chosen.numbers).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"--camera {chosen.name}: {error}") from None
    there_and_back = np.concatenate([numbers, numbers[-2:0:-1]])
    return there_and_back[np.arange(frames) % len(there_and_back)]
