"""Frechet distance between two sets of features: the arithmetic under FVD and FID.

The confidence interval is a delete-one-group jackknife over the generated videos: video i belongs to group
i mod 10, every group is left out once, and the interval of Student's t with the jackknife's standard error is
given: of ten groups, 1.96 errors cover nine tenths only.
It holds for these real videos, which it does not draw anew. A bootstrap over videos would have to keep all
features, or all sums, per draw: the ten groups need ten covariances, whatever the number of videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics.statistics import Moments

Array = NDArray[np.float64]
GROUPS = 10


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


def distance_to(mean: Array, covariance: Array) -> Callable[[Moments], float]:
    """For the replicates of the jackknife: the distance to a reference whose root is taken once. Right to
    about 1e-6 of the trace where covariances are singular; `frechet_distance` is better there."""
    root, trace = _root(covariance), float(np.trace(covariance))

    def distance(features: Moments) -> float:
        other = features.covariance
        product = root @ other @ root
        values = np.linalg.eigvalsh((product + product.T) / 2)
        trace_root = float(np.sqrt(np.clip(values, 0, None)).sum())
        return float(((features.mean - mean) ** 2).sum()) + trace + float(np.trace(other)) - 2 * trace_root

    return distance


def jackknife(
    value: float, groups: Sequence[Moments], measure: Callable[[Moments], float]
) -> tuple[float, float] | None:
    """95 % interval about `value`, from what `measure` gives without each of the groups.

    None when a group is missing or leaving one out leaves fewer than two samples.
    """
    filled = [group for group in groups if group.count]
    if len(filled) < 2 or any(sum(g.count for g in filled if g is not out) < 2 for out in filled):
        return None
    return student_interval(value, [measure(whole([g for g in filled if g is not out])) for out in filled])


def whole(groups: Sequence[Moments]) -> Moments:
    """Of all groups together."""
    merged = Moments()
    for group in groups:
        merged = merged.merged(group)
    return merged


def student_interval(value: float, left_out: Sequence[float]) -> tuple[float, float]:
    """95 % of Student's t, with the jackknife's standard error, of the values without each group."""
    from scipy.special import stdtrit

    replicates = np.asarray(left_out)
    count = len(replicates)
    error = float(np.sqrt((count - 1) / count * ((replicates - replicates.mean()) ** 2).sum()))
    half = float(stdtrit(count - 1, 0.975)) * error
    return value - half, value + half


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
