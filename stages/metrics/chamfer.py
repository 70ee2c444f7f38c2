"""Chamfer distance between the point clouds of a video's views: is the geometry one, from every side?

Paper, appendix A.4: for a pair of views, the median over points of the squared distance to the nearest point
of the other cloud, both ways added; rays of opacity below 0.5 are removed; clouds are interpolated to 64 x
64 and divided by the volume sampling bin; the mean over all pairs with another time or another view (six per
video), first of a video, then of all. The two times differ.

`official` differs as the authors' script does: the four front-side pairs only, no division by the bin, no
interpolation, removed rays stay as targets, rays of opacity 0.5 itself are removed too, and the sum over all
pairs instead of the mean. Its two times are drawn with replacement, so that they may be equal.

Pairs without an opaque ray in one of the views are left out in both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics import (
    ALL_PAIRS,
    FRONT_SIDE_PAIRS,
    Evaluation,
    MultiView,
    Value,
    bootstrap,
    check_views,
    each,
    mean_of,
    not_computed,
)

NAMES = ("chamfer",)
Points = NDArray[Any]
SIDE = 64
OPAQUE = 0.5


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`chamfer`: squared bins (`paper`), or squared world units summed over all pairs (`official`). Lower is
    better."""
    if evaluation.mode == "official":
        return {"chamfer": _official(evaluation)}
    pairs = list(each(evaluation.views, partial(paper_pairs, bin_size=evaluation.bin_size)))
    numbers = [float(np.nanmean(p)) if not np.isnan(p).all() else float("nan") for p in pairs]
    return {"chamfer": mean_of(numbers, unit="bins squared", direction="lower", nan_means="no ray is opaque")}


def _official(evaluation: Evaluation) -> Value:
    """The sum over all pairs of all videos; pairs without an opaque ray are skipped, as in the authors'
    script."""
    pairs = np.array(list(each(evaluation.views, official_pairs)))
    unit = "world units squared, summed over all pairs"
    if np.isnan(pairs).all():                # also of no video at all
        return not_computed(
            "no video gave a value: no ray is opaque", unit=unit, direction="lower", mode="official"
        )
    sums = np.nansum(pairs, axis=1)
    mean = bootstrap(sums)
    return Value(
        value=float(sums.sum()), unit=unit, direction="lower", mode="official",
        samples=int((~np.isnan(pairs)).any(axis=1).sum()),
        interval=mean and (mean[0] * len(sums), mean[1] * len(sums)),
    )  # fmt: skip


def paper_pairs(view: MultiView, bin_size: float) -> NDArray[np.float64]:
    """[6] distances of one video in squared bins; NaN where a view has no opaque ray."""
    check_views(view, "points", "opacity")
    clouds = []
    for i in range(len(view.points)):
        points = resize(view.points[i], SIDE).reshape(-1, 3) / bin_size
        opaque = resize(view.opacity[i][..., None], SIDE).reshape(-1) >= OPAQUE
        clouds.append(points[opaque])
    return np.array([chamfer_median(clouds[a], clouds[b]) for a, b in ALL_PAIRS])


def official_pairs(view: MultiView) -> NDArray[np.float64]:
    """[4] distances of one video in squared world units; NaN where a view has no opaque ray."""
    check_views(view, "points", "opacity")
    clouds = [points.reshape(-1, 3) for points in view.points]
    opaque = [opacity.reshape(-1) > OPAQUE for opacity in view.opacity]
    return np.array([chamfer_median(clouds[a], clouds[b], opaque[a], opaque[b]) for a, b in FRONT_SIDE_PAIRS])


def chamfer_median(
    x: Points, y: Points, x_mask: NDArray[np.bool_] | None = None, y_mask: NDArray[np.bool_] | None = None
) -> float:
    """Median over x [N, 3] of min over y [M, 3] of |x - y|^2, plus the same from y.

    The masks choose the points whose distances count; every point stays a target. NaN when no point counts.
    """
    from scipy.spatial import cKDTree

    if len(x) == 0 or len(y) == 0:
        return float("nan")
    total = 0.0
    for points, targets, mask in ((x, y, x_mask), (y, x, y_mask)):
        distances, _ = cKDTree(np.asarray(targets, dtype=np.float64)).query(
            np.asarray(points, dtype=np.float64)
        )
        kept = distances if mask is None else distances[mask]
        if len(kept) == 0:
            return float("nan")
        total += lower_median(kept**2)
    return total


def lower_median(values: NDArray[np.float64]) -> float:
    """The lower of the two middle values, as torch's median is, so that it is a value that occurs."""
    return float(np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2])


def resize(image: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Bilinear to [side, side, C]; pixel centres stay where they are, edges are repeated."""
    from scipy.ndimage import map_coordinates

    height, width, channels = image.shape
    if height == width == side:
        return image.astype(np.float64)
    rows = (np.arange(side) + 0.5) * height / side - 0.5
    columns = (np.arange(side) + 0.5) * width / side - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    planes = [
        map_coordinates(image[..., c].astype(np.float64), grid, order=1, mode="nearest")
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)
