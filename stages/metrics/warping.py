"""Warping error: does the side view, moved by its own depth, agree with the front view?

Paper, appendix A.4: image and depth at 256 x 256; every pixel of the side view is lifted by its depth and
projected into the front camera; the error is the mean absolute difference (0 to 255) over the re-projected
pixels that fall inside the front view; the mean over the four front-side pairs of a video.

`official` differs as the authors' script does (`official_warp`): it scatters side pixels into a picture and
averages over the pixels written there, with a mask that is computed per side pixel and applied to the front
picture's index, border pixels that catch what falls outside, and the horizontal intrinsics for both axes;
its pictures of 256 px are rounded to whole levels. Its two times are drawn with replacement, so that they may
be equal; the paper's differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.camera import Camera
from stages.metrics import FRONT_SIDE_PAIRS, Evaluation, MultiView, Value, check_views, each, mean_of
from stages.metrics.chamfer import resize

NAMES = ("warping_error",)
Array = NDArray[np.float64]
SIDE = 256


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`warping_error`: grey levels, 0 to 255. Lower is better."""
    official = evaluation.mode == "official"
    numbers = list(each(evaluation.views, partial(video_error, official=official)))
    unit, hidden = "grey levels of 255", "no side pixel falls into the front view"
    value = mean_of(numbers, unit=unit, direction="lower", mode=evaluation.mode, nan_means=hidden)
    return {"warping_error": value}


def video_error(view: MultiView, *, official: bool) -> float:
    """Mean over the four front-side pairs, grey levels; NaN when none has one."""
    check_views(view, "images", "depth", "cameras")
    pairs = np.array([pair_error(view, front, side, official=official) for front, side in FRONT_SIDE_PAIRS])
    return float(np.nanmean(pairs)) if not np.isnan(pairs).all() else float("nan")


def pair_error(view: MultiView, front: int, side: int, *, official: bool) -> float:
    """Grey levels; NaN when no pixel of the side view falls into the front view."""
    if official:
        import cv2

        image_front, image_side = (
            cv2.resize(view.images[i], (SIDE, SIDE)).astype(np.float64) for i in (front, side)
        )
        return official_warp(
            view.cameras[front], view.cameras[side], image_front, image_side, view.depth[side]
        )[2]
    image_front = resize(view.images[front], SIDE)
    image_side = resize(view.images[side], SIDE)
    depth = resize(view.depth[side][..., None], SIDE)[..., 0]
    return warping_error(view.cameras[front], view.cameras[side], image_front, image_side, depth)


def warping_error(
    camera_front: NDArray[Any],
    camera_side: NDArray[Any],
    image_front: NDArray[Any],
    image_side: NDArray[Any],
    depth_side: Array,
) -> float:
    """Mean |I_front(x') - I_side(x)| over the side pixels x whose x' lies in the front view.

    Cameras [25]; images [S, S, 3], 0 to 255; depth [S, S] along the ray. I_front(x') is read bilinearly.
    There is no test of occlusion, as the paper has none.
    """
    from scipy.ndimage import map_coordinates

    side = depth_side.shape[0]
    points = lift(Camera.decode(camera_side), depth_side)
    uv, in_front = project(Camera.decode(camera_front), points)
    visible = in_front & (uv >= 0).all(axis=-1) & (uv < 1).all(axis=-1)
    if not visible.any():
        return float("nan")
    column_row = uv[visible] * side - 0.5
    rows_columns = column_row[:, ::-1].T
    channels = np.moveaxis(np.asarray(image_front, np.float64), -1, 0)
    front = np.stack([map_coordinates(c, rows_columns, order=1, mode="nearest") for c in channels], axis=-1)
    return float(np.abs(front - image_side[visible]).mean())


def official_warp(
    camera_front: NDArray[Any],
    camera_side: NDArray[Any],
    image_front: NDArray[Any],
    image_side: NDArray[Any],
    depth_side: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """(warped picture [S, S, 3], mask [S, S, 3], mean error on the mask), faults of the authors' script
    included.

    `depth_side` [R, R] is enlarged to the images' side S here.
    """
    size = image_front.shape[0]
    points = lift(Camera.decode(camera_side), resize(depth_side[..., None], size)[..., 0])
    uv, _ = project(Camera.decode(camera_front), points, horizontal_for_both=True)
    outside = (np.abs(uv * 2 - 1) > 1).any(axis=-1)
    column, row = np.clip(np.trunc(uv * size).astype(np.int64), 0, size - 1).reshape(-1, 2).T
    warped = np.zeros((size, size, 3), dtype=np.float32)
    written = np.zeros((size, size), dtype=bool)
    warped[row, column] = image_side.reshape(-1, 3)  # no z-test: the last write wins
    written[row, column] = True
    mask = np.repeat((written & ~outside)[..., None], 3, axis=-1)
    warped[~mask] = 0
    error = np.abs(warped - image_front)[mask].mean() if mask.any() else np.nan
    return warped, mask, float(error)


def lift(camera: Camera, depth: Array) -> Array:
    """World points [S, S, 3] of pixel centres at `depth` [S, S] along their rays. Skew is honoured."""
    size = depth.shape[0]
    centre = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centre, centre)
    k = camera.intrinsics
    y = (v - k[1, 2]) / k[1, 1]
    x = (u - k[0, 2] - k[0, 1] * y) / k[0, 0]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    return np.asarray(camera.position + depth[..., None] * (rays @ camera.rotation.T))


def project(
    camera: Camera, points: Array, *, horizontal_for_both: bool = False
) -> tuple[Array, NDArray[np.bool_]]:
    """(image coordinates in sides [..., 2], whether the point lies in front of the camera)."""
    local = (points - camera.position) @ camera.rotation
    z = np.where(np.abs(local[..., 2]) < 1e-9, 1e-9, local[..., 2])
    x, y, k = local[..., 0] / z, local[..., 1] / z, camera.intrinsics
    u = k[0, 0] * x + k[0, 1] * y + k[0, 2]
    v = k[0, 0] * y + k[0, 2] if horizontal_for_both else k[1, 1] * y + k[1, 2]
    return np.stack([u, v], axis=-1), local[..., 2] > 0
