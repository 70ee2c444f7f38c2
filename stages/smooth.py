"""Low-pass the landmarks over time (PV3D, appendix A.3). A clip is one shot: nothing leaks over a cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.base import Stage
from stages.clip import Clip

MOST_SIGMA_S = 20.0              # the filter's kernel grows with it


def low_pass(values: ArrayLike, sigma_s: float, fps: float) -> NDArray[np.float64]:
    """Gaussian filter along the first axis, [T, ...] at `fps`; ends are reflected. 0 s changes nothing."""
    from scipy.ndimage import gaussian_filter1d

    series = np.asarray(values, np.float64)
    if sigma_s == 0:
        return series.copy()
    filtered: NDArray[np.float64] = gaussian_filter1d(series, sigma_s * fps, axis=0, mode="reflect")
    return filtered


def check_not_negative(**settings: float) -> None:
    """Raise ValueError, naming the setting, unless every one is 0 or more."""
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name}: {value} is not allowed; give 0 or more")


def check_sigma(**settings: float) -> None:
    """Raise ValueError, naming the setting, unless every one is a width in seconds that makes sense."""
    check_not_negative(**settings)
    for name, value in settings.items():
        if value > MOST_SIGMA_S:
            raise ValueError(f"{name}: {value} s is longer than a clip; give {MOST_SIGMA_S:g} or less")


@dataclass
class SmoothLandmarks(Stage):
    """Gaussian over time on each coordinate. Neither PV3D nor what it follows publishes a width."""

    sigma_s: float = 0.04                    # s: one frame at 25 frames per second

    name: ClassVar[str] = "SmoothLandmarks"
    reads: ClassVar[tuple[str, ...]] = ("landmarks", "fps")
    writes: ClassVar[tuple[str, ...]] = ("smooth_landmarks", "smooth_mesh")
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_sigma(sigma_s=self.sigma_s)

    def process(self, clip: Clip) -> Iterator[Clip]:
        landmarks = low_pass(clip.need("landmarks"), self.sigma_s, clip.fps)
        mesh = None if clip.mesh is None else low_pass(clip.mesh, self.sigma_s, clip.fps)
        yield clip.copy(                         # a mesh is megabytes: as found, it stays with FollowFace
            mesh=None,
            smooth_landmarks=landmarks.astype(np.float32),
            smooth_mesh=None if mesh is None else mesh.astype(np.float32),
        )
