"""What the numbers of Deep3DFaceReconstruction mean: its angles and translation, and EG3D's way to a camera.

The network looks at a 224 px picture whose origin of the face is in the middle, through a lens of 1015 px.
Points of the face are rows: p = X R + t, ten minus p_z is their depth, y points up. EG3D scales this world by
0.27 and moves it by (0, 0.006, 0.161). numpy only; the network itself is `stages.backends.deep3d`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.crop import RECROP_CENTRE, RECROP_SCALE
from stages.rotations import UPRIGHT, turn

Array = NDArray[np.float64]

INPUT_PX = 224
FACE_SCALE = 102.0                           # px of the input per unit of the standard points
FOCAL_PX = 1015.0
DISTANCE = 10.0                              # of the camera, in the network's units
WORLD_PER_UNIT = 0.27
OFFSET = np.array([0.0, 0.006, 0.161])       # world


def rotation_from_angles(angles_rad: ArrayLike) -> Array:
    """[..., 3] pitch, yaw, roll in radians, as the network gives them -> [..., 3, 3], its R."""
    angles = np.asarray(angles_rad, np.float64)
    pitch, yaw, roll = (angles[..., i] for i in range(3))
    return np.swapaxes(turn(0, 1, roll) @ turn(2, 0, yaw) @ turn(1, 2, pitch), -1, -2)


def angles_from_rotation(rotations: ArrayLike) -> Array:
    """[..., 3, 3] camera to world -> [..., 3] pitch, yaw, roll in radians, as the network would give them."""
    matrix = np.swapaxes(np.asarray(rotations, np.float64) @ UPRIGHT, -1, -2)
    pitch = np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2])
    yaw = -np.arcsin(np.clip(matrix[..., 2, 0], -1, 1))
    roll = np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return np.stack([pitch, yaw, roll], axis=-1)


def camera_from_network(angles_rad: ArrayLike, translations: ArrayLike) -> tuple[Array, Array]:
    """[..., 3] and [..., 3] -> rotation [..., 3, 3] camera to world, position [..., 3] in world units.

    The position is where the camera stands; `stages.cameras.at_distance` brings it to EG3D's radius.
    """
    matrix = rotation_from_angles(angles_rad)
    shift = np.asarray(translations, np.float64) - (0, 0, DISTANCE)
    centre = -(matrix @ shift[..., None])[..., 0]
    return matrix @ UPRIGHT, centre * WORLD_PER_UNIT + OFFSET


def input_transforms(crop_transforms: ArrayLike, crop_size: int) -> Array:
    """[..., 2, 3] source px to crop px -> [..., 2, 3] source px to px of the network's input.

    Both pictures have the origin of the face in the middle; the input shows 94 % of the crop's side.
    """
    shown = crop_size * (INPUT_PX / FACE_SCALE) / (RECROP_CENTRE / RECROP_SCALE)
    zoom = INPUT_PX / shown
    found = zoom * np.asarray(crop_transforms, np.float64)
    found[..., 2] += (INPUT_PX - 1) / 2 - zoom * (crop_size - 1) / 2
    return found
