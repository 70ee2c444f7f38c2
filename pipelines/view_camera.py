"""The page's free camera -> one that the model can be seen from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

YAW_DEG, PITCH_DEG = 60.0, 35.0
"""As far as a drag turns: beyond, no training has seen anything."""
ZOOM = (0.5, 4.0)


def seen_from(cameras: Any, position: Sequence[float], look_at: Sequence[float]) -> tuple[float, ...]:
    """25 numbers: the page's direction, turned back to the limits; its distance is a zoom, since the model
    casts its rays from one distance. `cameras`: the model's `model.camera`."""
    offset = np.asarray(position, np.float64) - np.asarray(look_at, np.float64)
    distance = float(np.linalg.norm(offset))
    if not math.isfinite(distance) or distance < 1e-6:
        offset, distance = np.array([0.0, 0.0, cameras.RADIUS]), cameras.RADIUS
    yaw, pitch = angles(offset)
    yaw, pitch = np.clip(yaw, -YAW_DEG, YAW_DEG), np.clip(pitch, -PITCH_DEG, PITCH_DEG)
    zoom = float(np.clip(cameras.RADIUS / distance, *ZOOM))
    y, p = np.deg2rad([yaw, pitch])
    at = cameras.RADIUS * np.array([np.cos(p) * np.sin(y), np.sin(p), np.cos(p) * np.cos(y)])
    camera = cameras.look_at(at, (0.0, 0.0, 0.0), focal=cameras.FOCAL * zoom)
    return tuple(float(x) for x in camera.encode())


def angles(offset: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """Yaw towards +x and pitch upwards, in degrees, of a place seen from the head."""
    x, y, z = np.asarray(offset, np.float64) / np.linalg.norm(offset)
    return math.degrees(math.atan2(x, z)), math.degrees(math.asin(y))
