"""Metrics: what a metric gets, and what it answers.

A metric is a file with a function `compute(evaluation) -> {name: Value}`; `workflow.yaml` names the file by
its import path. It never puts a number under a name whose weights or definition it does not have: it answers
`not_computed(reason)` instead. Two optional constants of the file are read beforehand: `WEIGHTS`, the weight
files that it can use, and `BACKENDS`, the fields of `Evaluation` that name the models it runs.

Light on purpose (numpy only); a metric imports what it needs inside its functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mode = Literal["paper", "official"]
"""`paper`: as appendix A.4 of the paper defines it. `official`: as the authors' scripts compute it."""

FRONT, SIDE = (0, 3), (1, 2)
"""Views of `MultiView`: (t0, front), (t1, side), (t0, side), (t1, front)."""
FRONT_SIDE_PAIRS = ((0, 2), (3, 1), (0, 1), (3, 2))
ALL_PAIRS = (*FRONT_SIDE_PAIRS, (0, 3), (2, 1))


@dataclass(frozen=True, kw_only=True)
class Value:
    """One figure, or the reason why there is none (`value` is then None)."""

    value: float | None
    unit: str
    direction: Literal["higher", "lower"]
    samples: int = 0
    """Videos that went into it."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the mean over videos (normal approximation), from two videos on."""
    mode: Mode = "paper"
    reason: str = ""
    note: str = ""
    """What a reader must know to compare the figure."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval) if self.interval else None}


@dataclass(frozen=True, kw_only=True)
class MultiView:
    """One generated video at two times t0, t1 from two cameras: four views in the order of `FRONT` and
    `SIDE`."""

    images: NDArray[np.uint8]  # [4, H, W, 3] RGB
    depth: NDArray[np.float32]  # [4, R, R] distance along the ray, world units
    opacity: NDArray[np.float32]  # [4, R, R] sum of the ray's weights, 0 to 1
    points: NDArray[np.float32]  # [4, R, R, 3] expected point of each ray, world units
    cameras: NDArray[np.float32]  # [4, 25]
    times: NDArray[np.float32]  # [4]


class Views(Protocol):
    """The multi-view samples, read one at a time so that memory does not grow with their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[MultiView]: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a metric may use."""

    views: Views | Sequence[MultiView]
    bin_size: float
    """Distance between two coarse samples of a ray, world units: the volume sampling bin of the generator."""
    mode: Mode = "paper"
    identity_backend: str = "stages.backends.dlib:DlibIdentity"
    """Import path of the identity network that gives `id/<its name>`."""
    face_backend: str = "stages.backends.dlib:DlibFaces"
    """Import path of the face detector that gives `faces_found/<its name>`."""
    weights: Callable[[str], Path | None] = lambda name: None
    """Where a named weights file lies, None when it is missing."""


Compute = Callable[[Evaluation], dict[str, Value]]


def not_computed(
    reason: str, *, unit: str, direction: Literal["higher", "lower"], mode: Mode = "paper"
) -> Value:
    return Value(value=None, unit=unit, direction=direction, mode=mode, reason=reason)


def missing_weights(name: str) -> str:
    """The reason for a figure whose network is not here."""
    return f"weights file {name} missing; see `pv3d weights list`"


def mean_of(
    per_video: ArrayLike,
    *,
    unit: str,
    direction: Literal["higher", "lower"],
    mode: Mode = "paper",
    note: str = "",
    nan_means: str = "",
) -> Value:
    """The mean of one number per video; videos without one (NaN, for the reason given) are not counted."""
    numbers = np.asarray(per_video, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) == 0:
        return not_computed(f"no video gave a value: {nan_means}", unit=unit, direction=direction, mode=mode)
    mean, interval = float(numbers.mean()), None
    if len(numbers) > 1:
        half = 1.96 * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
        interval = (mean - half, mean + half)
    return Value(
        value=mean,
        unit=unit,
        direction=direction,
        samples=len(numbers),
        interval=interval,
        mode=mode,
        note=note,
    )


def weights_of(path: str) -> tuple[str, ...]:
    """The weight files that the metric at an import path can use: its `WEIGHTS`."""
    return tuple(getattr(importlib.import_module(path.partition(":")[0]), "WEIGHTS", ()))


def backends_of(path: str) -> tuple[str, ...]:
    """The fields of `Evaluation` that name the models which the metric at an import path runs: its
    `BACKENDS`."""
    return tuple(getattr(importlib.import_module(path.partition(":")[0]), "BACKENDS", ()))


def load(path: str) -> Compute:
    """The `compute` that an import path names: `package.module` or `package.module:function`.

    Raises ValueError, naming the path and the cure, when there is none.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name or "compute", None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"evaluate.metrics: cannot import {path!r} ({error}); name a file such as stages.metrics.chamfer"
        ) from None
    if not callable(found):
        raise ValueError(
            f"evaluate.metrics: {path!r} has no function {name or 'compute'!r}; "
            "see stages/metrics/__init__.py"
        )
    compute: Compute = found
    return compute
