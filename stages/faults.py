"""Which frames of a followed face cannot be used, and why. Arrays of T frames in, no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]         # [T]
Series = NDArray[np.float64]     # [T]

AGAIN_S = 1.0                    # a second face that is seen again so soon was there between
WINDOW_S = 1.0                   # size and sharpness cut a clip where the median over so long is too low ...
LENIENT = 0.9                    # ... by this factor; so a clip that is near a limit is not cut to pieces


@dataclass(frozen=True)
class Run:
    """The frames `first` ... `end` - 1. `reason` is empty when they can be used."""

    first: int
    end: int
    reason: str = ""

    def __len__(self) -> int:
        return self.end - self.first


def runs(values: Sequence[object]) -> list[Run]:
    """Pieces of equal values, without a reason yet."""
    found, first = [], 0
    for _, group in groupby(values):
        end = first + len(list(group))
        found.append(Run(first, end))
        first = end
    return found


def missing(seen: Mask, longest_gap: int) -> Mask:
    """Frames in gaps that are too long to be filled."""
    out = np.zeros(len(seen), bool)
    for run in runs(seen.tolist()):
        out[run.first:run.end] = not seen[run.first] and len(run) > longest_gap
    return out


def accompanied(others: Mask, every: int, fps: float, lasting_s: float) -> Mask:
    """Frames with a second face that was seen, at looks every `every` frames, for longer than `lasting_s`."""
    out = np.zeros(len(others), bool)
    looks = np.flatnonzero(others)
    apart = [i for i, (a, b) in enumerate(pairwise(looks), 1) if b - a > max(AGAIN_S * fps, every)]
    for group in np.split(looks, apart):
        if len(group) * every / fps > lasting_s:
            out[max(group[0] - every + 1, 0):group[-1] + every] = True
    return out


def low(values: Series, limit: float, fps: float) -> Mask:
    """Frames that last, around which the median of `values` is clearly below `limit`. NaN: not measured."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(len(values), bool)
    series = np.interp(np.arange(len(values)), known, values[known])
    width = min(round(WINDOW_S * fps) | 1, len(series) - 1 | 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(series, width // 2, mode="edge"), width)
    below = np.asarray(np.median(windows, axis=-1) < LENIENT * limit, np.bool_)
    for run in runs(below.tolist()):
        if len(run) < min(WINDOW_S * fps, len(below)):
            below[run.first:run.end] = False
    return below


def label(faults: dict[str, Mask]) -> list[str]:
    """The reason of each frame, the first that holds; "" where none does."""
    reasons = np.full(len(next(iter(faults.values()))), "", object)
    for reason, mask in reversed(faults.items()):
        reasons[mask] = reason
    return [str(reason) for reason in reasons]
