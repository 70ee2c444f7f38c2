"""What the metrics of reconstructions share: real videos and what an inversion made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value, mean_of, not_computed

NONE = "no reconstructions were given"
Frames = NDArray[Any]
"""[T, H, W, 3] RGB, levels 0 to 255: uint8, or floating point"""
Measure = Callable[[Frames, Frames], NDArray[np.float64]]


def per_frame(
    evaluation: Evaluation, name: str, measure: Measure, *, unit: str, direction: Literal["higher", "lower"],
    note: str = "", network: str = "",
) -> dict[str, Value]:  # fmt: skip
    """`measure` of every pair of videos, averaged over its frames, then over videos (bootstrap interval)."""
    if iter(evaluation.reconstructions) is evaluation.reconstructions:
        raise ValueError("reconstructions are an iterator, empty for the next metric; give a list")
    numbers = [float(np.mean(measure(real, made))) for real, made in evaluation.reconstructions]
    if not numbers:
        return {name: not_computed(NONE, unit=unit, direction=direction, mode=evaluation.mode)}
    return {name: mean_of(
        numbers, unit=unit, direction=direction, mode=evaluation.mode, note=note, network=network
    )}  # fmt: skip


def levels(real: Frames, made: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64 [T, H, W, 3]. Raises ValueError for different shapes, and for numbers that are not
    finite or no levels of 0 to 255."""
    a, b = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or not a.size:
        shapes = f"{list(b.shape)}, its video {list(a.shape)}"
        raise ValueError(f"a reconstruction is {shapes}; both are [T, H, W, 3]")
    for what, x in (("video", a), ("reconstruction", b)):
        if not np.isfinite(x).all():
            raise ValueError(f"a {what} has frames that are not finite")
        if x.min() < 0 or x.max() > 255:
            raise ValueError(f"a {what} has levels from {x.min():.4g} to {x.max():.4g}, not 0 to 255")
    return a, b
