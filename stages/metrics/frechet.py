"""Frechet distance between two sets of features: the arithmetic under FVD."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def statistics(features: NDArray[Any]) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of features [N, D] in float64, with 1/N as the authors' script has it.

    Raises ValueError for fewer than two samples or for numbers that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features have shape {x.shape}; a covariance needs at least 2 samples of D numbers")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite numbers; look at the frames they came from")
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / len(x)


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the singular values of C_a^(1/2) C_b^(1/2): real, and accurate for
    singular covariances too (fewer samples than features).
    """
    if mean_a.shape != mean_b.shape or cov_a.shape != cov_b.shape:
        raise ValueError(
            f"statistics of {mean_a.shape[0]} and {mean_b.shape[0]} features; use one network for both"
        )
    trace_root = np.linalg.norm(_root(cov_a) @ _root(cov_b), ord="nuc")
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
