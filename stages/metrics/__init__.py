"""Metrics: what a metric gets, and what it answers.

A metric is a file with a function `compute(evaluation) -> {name: Value}`; `workflow.yaml` names the file by
its import path. It never puts a number under a name whose weights or definition it does not have: it answers
`not_computed(reason)` instead. Optional constants of the file are read beforehand:

    WEIGHTS     entries of the table of weights that it can use
    BACKENDS    the fields of `Evaluation` that name the models it runs
    NAMES       names of its figures ("id/*" for those that end in a backend's name), for `register.gate`
    REAL        True when it sees real videos: another dataset is another result

Light on purpose (numpy only); a metric imports what it needs inside its functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from infra.storage import Storage

T = TypeVar("T")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
Video = NDArray[np.uint8]
"""[T, H, W, 3] RGB"""

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
    """95 % confidence interval over videos, from two on: bootstrap for means, jackknife for distances."""
    mode: Mode = "paper"
    reason: str = ""
    note: str = ""
    """What a reader must know to compare the figure."""
    network: str = ""
    """sha256 of the file of the network that gave it; "" for a figure without one."""

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


def check_views(view: MultiView, *names: str) -> None:
    """Raise ValueError when one of these arrays is not of four views, or not finite: a nearest neighbour or a
    cast to pixels would make a number of it."""
    for name in names:
        array: NDArray[Any] = getattr(view, name)
        if len(array) != 4:
            raise ValueError(f"{name} of {len(array)} views, not of 4")
        if not np.isfinite(array).all():
            raise ValueError(f"the views' {name} hold numbers that are not finite; the model has diverged")


class Samples(Protocol[S_co]):
    """Videos that are made or read one at a time, so that memory does not grow with their number."""

    def __len__(self) -> int: ...

    def map(self, function: Callable[[S_co], T]) -> Iterator[T]:
        """What `function` gives for each, in the order of their numbers. It may run in other processes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a metric may use."""

    views: Samples[MultiView] | Sequence[MultiView] = ()
    bin_size: float = 1.0
    """Distance between two coarse samples of a ray, world units: the volume sampling bin of the generator."""
    videos: Samples[Video] | Sequence[Video] = ()
    """Generated ones, of `frames` frames."""
    real: Samples[Video] | Sequence[Video] = ()
    """Of people whom the training has not seen, cut and written as the generated ones."""
    real_key: str = ""
    """Which real videos: the version of the dataset, a dash, a hash of how they are cut. "": nothing is
    kept."""
    real_missing: str = "there are no real videos to compare with"
    """Why `real` is empty."""
    reconstructions: Iterable[tuple[Video, Video]] = ()
    """(real video, what an inversion made of it)"""
    frames: int = 16
    """Of every video."""
    size: int = 0
    """Its side, px; 0 when any will do."""
    statistics: Path | None = None
    """A file of I3D statistics that takes the place of the real videos."""
    cache: Storage | None = None
    """Where statistics of real videos are kept."""
    mode: Mode = "paper"
    identity_backend: str = "stages.backends.dlib:DlibIdentity"
    """Import path of the identity network that gives `id/<its name>`."""
    face_backend: str = "stages.backends.dlib:DlibFaces"
    """Import path of the face detector that gives `faces_found/<its name>`."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Files in place of the listed ones, by the name of the entry in the table of weights."""
    weights: Callable[[str], Path | None] = lambda name: None
    """Where a named weights file lies, None when it is missing."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What one metric leaves to another of the same evaluation."""


Compute = Callable[[Evaluation], dict[str, Value]]


def not_computed(
    reason: str, *, unit: str, direction: Literal["higher", "lower"], mode: Mode = "paper"
) -> Value:
    return Value(value=None, unit=unit, direction=direction, mode=mode, reason=reason)


def each(samples: Samples[S] | Iterable[S], function: Callable[[S], T]) -> Iterator[T]:
    """What `function` gives for each of the samples, in order; also of a plain list."""
    mapped = getattr(samples, "map", None)
    found: Iterator[T] = mapped(function) if mapped else map(function, samples)  # type: ignore[arg-type]
    return found


def mean_of(
    per_video: ArrayLike,
    *,
    unit: str,
    direction: Literal["higher", "lower"],
    mode: Mode = "paper",
    note: str = "",
    nan_means: str = "",
    network: str = "",
) -> Value:
    """The mean of one number per video; videos without one (NaN, for the reason given) are not counted."""
    numbers = np.asarray(per_video, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) == 0:
        return not_computed(f"no video gave a value: {nan_means}", unit=unit, direction=direction, mode=mode)
    return Value(
        value=float(numbers.mean()),
        unit=unit,
        direction=direction,
        samples=len(numbers),
        interval=bootstrap(numbers),
        mode=mode,
        note=note,
        network=network,
    )


def bootstrap(per_video: ArrayLike, draws: int = 1000) -> tuple[float, float] | None:
    """95 % interval of the mean: percentiles over videos drawn anew, with a fixed seed. None for one."""
    numbers = np.asarray(per_video, dtype=np.float64)
    if len(numbers) < 2:
        return None
    random = np.random.default_rng(0)
    means = [numbers[random.integers(0, len(numbers), len(numbers))].mean() for _ in range(draws)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def weights_of(path: str) -> tuple[str, ...]:
    """The weight files that the metric at an import path can use: its `WEIGHTS`."""
    return tuple(getattr(importlib.import_module(path.partition(":")[0]), "WEIGHTS", ()))


def backends_of(path: str) -> tuple[str, ...]:
    """The fields of `Evaluation` that name the models which the metric at an import path runs: its
    `BACKENDS`."""
    return tuple(getattr(importlib.import_module(path.partition(":")[0]), "BACKENDS", ()))


def sees_real(path: str) -> bool:
    """Whether the metric at an import path compares with real videos: its `REAL`."""
    return bool(getattr(importlib.import_module(path.partition(":")[0]), "REAL", False))


def names_of(path: str) -> tuple[str, ...] | None:
    """The names of the figures that the metric at an import path gives: its `NAMES`. None when it does not
    say."""
    return getattr(importlib.import_module(path.partition(":")[0]), "NAMES", None)


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
