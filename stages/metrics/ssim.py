"""SSIM of reconstructions (Wang et al. 2004): Gaussian window, sigma 1.5, biased covariances, mean of RGB.

scikit-image's, in the variant of the paper; its default, a uniform window of 7 px, gives other numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value
from stages.metrics.pairs import Frames, levels, per_frame

NAMES = ("ssim",)
SMALLEST = 11                    # px, the window


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`ssim`: -1 to 1. Higher is better."""
    return per_frame(evaluation, "ssim", ssim, unit="similarity", direction="higher")


def ssim(real: Frames, made: Frames) -> NDArray[np.float64]:
    """[T] of videos [T, H, W, 3] with levels of 0 to 255, at least 11 px wide and high.

    Raises ValueError as `pairs.levels` does, and for smaller frames.
    """
    from skimage.metrics import structural_similarity

    a, b = levels(real, made)
    if min(a.shape[1:3]) < SMALLEST:
        side = f"{a.shape[2]}x{a.shape[1]}"
        raise ValueError(f"frames of {side} px are too small for SSIM; {SMALLEST} px at least")
    return np.array([
        structural_similarity(
            x, y, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b, strict=True)
    ])  # fmt: skip
