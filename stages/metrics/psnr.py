"""PSNR of reconstructions: 10 log10 (255^2 / mean squared error) of each frame, averaged in dB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value
from stages.metrics.pairs import Frames, levels, per_frame

NAMES = ("psnr",)
MOST_DB = 100.0


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`psnr`: dB. Higher is better."""
    return per_frame(evaluation, "psnr", psnr, unit="dB", direction="higher")


def psnr(real: Frames, made: Frames) -> NDArray[np.float64]:
    """[T] dB of videos [T, H, W, 3] with levels of 0 to 255; equal frames have 100 dB, not infinity.

    Raises ValueError as `pairs.levels` does.
    """
    a, b = levels(real, made)
    error = ((a - b) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(error, 255**2 * 10 ** (-MOST_DB / 10))))
