"""What the project's own camera stage sees in single frames: is there a face, and which way is it turned?

A frame goes the way that a video's frames go: the detector of a face backend, whose score is believed where
`FollowFace` believes it, its points, the crop of `AlignCrop`, the rigid points of `FitCameras`. Nothing is
smoothed, since each frame stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages import backends

DETECTION_SIDE = 256             # px: smaller frames are enlarged to what detectors are made for
FEWEST = 8                       # frames, below which a correlation says nothing


def face_yaw(image: NDArray[np.uint8], detector: backends.FaceBackend) -> float:
    """Degrees, in the signs of `stages.rotations`, of the surest face in uint8 [H, W, 3]; NaN without one."""
    import cv2

    from stages.affine import apply
    from stages.crop import crop_transforms
    from stages.pnp import fit_poses
    from stages.rotations import euler_from_rotation

    if len(image) < DETECTION_SIDE:
        side = (DETECTION_SIDE, DETECTION_SIDE)
        image = np.asarray(cv2.resize(image, side, interpolation=cv2.INTER_CUBIC), np.uint8)
    detector.start()
    found = [seen for seen in detector.detect(image) if seen.score >= detector.believe_above]
    if not found:
        return float("nan")
    points = detector.landmarks(image, found[0].box)
    if not np.isfinite(points).all():
        return float("nan")
    indices, places = detector.rigid()
    size = len(image)
    crop = crop_transforms(backends.to_68(type(detector), points), size)
    rotations, _, _ = fit_poses(apply(crop, points[indices])[None], places, size)
    return float(euler_from_rotation(rotations[0])[0])


@dataclass(frozen=True)
class Following:
    """How measured angles follow the commanded ones, over the frames in which a face was found."""

    found: float
    """Share of frames with a face."""
    correlation: float
    """Pearson's; NaN below `FEWEST` frames, or where one of both does not vary."""
    slope: float
    """Of the line through them: 1 where a commanded degree is a measured one."""
    error_deg: float
    """Mean absolute difference, nothing removed."""


def following(commanded_deg: ArrayLike, measured_deg: ArrayLike) -> Following:
    """Both [N], in degrees; NaN where no face was measured."""
    commanded, measured = (np.asarray(angles, np.float64) for angles in (commanded_deg, measured_deg))
    seen = np.isfinite(measured)
    x, y = commanded[seen], measured[seen]
    nothing: Any = float("nan")
    error = float(np.abs(x - y).mean()) if len(x) else nothing
    if len(x) < FEWEST or min(np.ptp(x), np.ptp(y)) < 1e-9:
        return Following(float(seen.mean()), nothing, nothing, error)
    slope = float(np.cov(x, y, bias=True)[0, 1] / x.var())
    return Following(float(seen.mean()), float(np.corrcoef(x, y)[0, 1]), slope, error)
