"""Kernel inception distance of frames: the unbiased squared MMD of Binkowski et al. 2018.

Kernel (x . y / D + 1)^3 of the features of FID's network; one frame of each video, in turn of its first,
second, ... frame, so that samples are independent. All pairs count, where the original draws subsets of
1,000: the expectation is the same and nothing is left to a draw. The paper reports none; both modes are one.

    kid           the listed network
    kid/<file>    another (`evaluate.networks.inception`)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value, not_computed
from stages.metrics.fid import INCEPTION, frame_features, frames_note, inception
from stages.metrics.frechet import GROUPS, student_interval

WEIGHTS = (INCEPTION,)
REAL = True
NAMES = ("kid", "kid/*")
BLOCK = 1024
Array = NDArray[np.float64]


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`kid`: squared MMD without unit; lower is better, and it may fall below 0. The interval is a
    delete-one-group jackknife over generated videos."""
    network, reason = inception(evaluation)
    if network is None or reason:
        return {"kid": not_computed(reason, unit="squared MMD", direction="lower", mode=evaluation.mode)}
    real, made = frame_features(evaluation, network)
    if real.features is None:
        raise ValueError("real videos: their statistics hold no features for KID; delete them")
    x, y = np.stack(made.rows), np.asarray(real.features)
    for what, rows in (("generated", x), ("real", y)):
        if len(rows) < 2:
            raise ValueError(f"{what} videos: {len(rows)} is too few for KID; give at least 2")
    note = frames_note(evaluation, network, real, 0)
    value, interval = unbiased_mmd(x, y)
    return {network.figure("kid"): Value(
        value=value, unit="squared MMD", direction="lower", samples=len(x), mode=evaluation.mode,
        interval=interval, network=network.sha256, note=f"one frame of each; {note}",
    )}  # fmt: skip


def unbiased_mmd(
    x: NDArray[np.float32], y: NDArray[np.float32], groups: int = GROUPS
) -> tuple[float, tuple[float, float] | None]:
    """(squared MMD of x [N, D] and y [M, D], its interval without each group of x in turn)."""
    group = np.arange(len(x)) % groups
    within, cross = np.zeros((groups, groups)), np.zeros(groups)
    for at in range(0, len(x), BLOCK):
        rows = slice(at, at + BLOCK)
        one_hot = np.eye(groups)[group[rows]]
        for start in range(0, len(x), BLOCK):
            columns = slice(start, start + BLOCK)
            kernel = polynomial(x[rows], x[columns])
            if start == at:
                np.fill_diagonal(kernel, 0)
            within += one_hot.T @ kernel @ np.eye(groups)[group[columns]]
        for start in range(0, len(y), BLOCK):
            cross += one_hot.T @ polynomial(x[rows], y[start : start + BLOCK]).sum(axis=1)
    own = _sum_of_pairs(y) / (len(y) * (len(y) - 1))
    sizes = np.bincount(group, minlength=groups)

    def without(out: int | None) -> float:
        kept = np.array([index != out for index in range(groups)])
        count = sizes[kept].sum()
        pairs = within[np.ix_(kept, kept)].sum() / (count * (count - 1))
        return float(pairs + own - 2 * cross[kept].sum() / (count * len(y)))

    filled = [index for index in range(groups) if sizes[index]]
    value = without(None)
    if len(filled) < 2 or any(len(x) - sizes[index] < 2 for index in filled):
        return value, None
    return value, student_interval(value, [without(index) for index in filled])


def polynomial(x: NDArray[np.float32], y: NDArray[np.float32]) -> Array:
    """(x . y / D + 1)^3 of all pairs [N, M], in float64."""
    product: Array = x.astype(np.float64) @ y.astype(np.float64).T
    kernel: Array = (product / x.shape[1] + 1) ** 3
    return kernel


def _sum_of_pairs(y: NDArray[np.float32]) -> float:
    """The kernel's sum over all pairs of two different rows."""
    total = 0.0
    for at in range(0, len(y), BLOCK):
        for start in range(0, len(y), BLOCK):
            kernel = polynomial(y[at : at + BLOCK], y[start : start + BLOCK])
            total += float(kernel.sum()) - (float(np.trace(kernel)) if start == at else 0.0)
    return total
