"""L1 of reconstructions: mean absolute difference, as a share of the full range of levels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value
from stages.metrics.pairs import Frames, levels, per_frame

NAMES = ("l1",)


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`l1`: 0 to 1. Lower is better."""
    return per_frame(evaluation, "l1", l1, unit="share of full range", direction="lower")


def l1(real: Frames, made: Frames) -> NDArray[np.float64]:
    """[T] of videos [T, H, W, 3] with levels of 0 to 255. Raises ValueError as `pairs.levels` does."""
    a, b = levels(real, made)
    return np.asarray(np.abs(a - b).mean(axis=(1, 2, 3)) / 255)
